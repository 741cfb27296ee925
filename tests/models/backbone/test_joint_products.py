"""Linear maps of one input as one product: the same numbers, names and weights, and fewer products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.backbone.generation import compile_step, generate
from models.backbone.joint_products import Part
from tests.models.test_laws import MODELS, draw_tokens, kept, stirred

PROMPT = draw_tokens(0, 6)
GREEDY = {"num_tokens": 5, "temperature": 0.0, "top_k": None, "seed": 0}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_tokens_weights_and_names_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights = stirred(name).eval(), kept(name).state_dict()
    expected = generate(kept(name).eval(), PROMPT, **GREEDY)
    monkeypatch.setattr(torch, "compile", lambda f, **settings: f)
    compile_step(model)
    after = model.state_dict()
    assert list(after) == list(weights) and all(torch.equal(after[each], weights[each]) for each in weights)
    assert torch.equal(generate(model, PROMPT, **GREEDY), expected)
    # As where a compiler looks on, in the order of a step.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(step(model), step(kept(name)), rtol=1e-9, atol=1e-9)


def step(model: torch.nn.Module) -> Tensor:
    state = model.init_state(len(PROMPT))
    return model.step_(PROMPT[:, 0], [each.mixer.reserve(held, 1) for each, held in zip(model.blocks, state, strict=True)])


@pytest.mark.parametrize(
    ("name", "products"),
    # What the mixer reads, its output, gate and up, and down; two matrices behind each other are two more.
    [("gated_deltanet", 4), ("transformer", 4), ("kda", 6)],
)
@torch.no_grad()
def test_products_of_a_block(name: str, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.Graph] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.graph)
        return module.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options, **settings: compiler(f, backend=keep, **settings))
    model, reference = stirred(name).eval(), kept(name).eval()
    compile_step(model)
    torch.testing.assert_close(step(model), step(reference), rtol=1e-9, atol=1e-9)
    # One graph for all blocks, and one for the head.
    found = [sum(node.target is torch._C._nn.linear for node in graph.nodes) for graph in graphs]
    assert found == [products, 1]


@torch.no_grad()
def test_weights_lie_once_and_may_be_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **settings: f)
    model = stirred("gated_deltanet").eval()
    compile_step(model)
    parts = [each for each in model.modules() if isinstance(each, Part)]
    assert len({each.joint for each in parts}) == 2 * len(model.blocks)
    assert all(each.weight.untyped_storage().data_ptr() == each.joint.weight.untyped_storage().data_ptr() for each in parts)
    model.load_state_dict({name: 2.0 * weight for name, weight in model.state_dict().items()})
    for joint in {each.joint for each in parts}:
        together = torch.cat([each.weight for each in parts if each.joint is joint])
        assert torch.equal(joint.weight, together)
