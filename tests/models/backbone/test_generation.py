"""Text from a model: the tokens are those that its forward pass asks for."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.backbone.generation import captured, compile_prompts, compile_step, draw, generate, narrow
from models.backbone.language_model import LanguageModel
from models.build import build_model
from models.mesa.layers import mesa_replaced
from tests.models import built
from tests.models.test_laws import MODELS, VARIANTS, VOCAB_SIZE, config, draw_tokens, kept, stirred
from tests.thinned import in_turn

SAMPLED = {"num_tokens": 6, "temperature": 1.0, "top_k": 5}
PROMPT = draw_tokens(0, 6)


def most_likely(model: torch.nn.Module, prompt: Tensor, generated: Tensor) -> Tensor:
    """The most likely token behind the prompt, and behind every beginning of what was generated, by one forward pass.

    These are the generated ones if and only if a forward pass over all that is there, again for each token, makes them: a later
    token changes nothing.
    """
    logits, _ = model(torch.cat([prompt, generated[:, :-1]], dim=1))
    return logits[:, prompt.shape[1] - 1 :].argmax(-1)


# Where Sherman and Morrison solve, a step is another function than the forward pass, unless nothing is forgotten.
@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
@torch.no_grad()
def test_greedy_tokens_are_those_of_forward_passes(name: str) -> None:
    model = kept(name).eval()
    actual = generate(model, PROMPT, num_tokens=9, temperature=0.0, top_k=None, seed=0)
    assert torch.equal(actual, most_likely(model, PROMPT, actual))


def test_the_seed_decides_the_tokens() -> None:
    model = stirred("gated_deltanet").eval()
    torch.manual_seed(0)
    first = generate(model, PROMPT, **SAMPLED, seed=1)
    torch.manual_seed(1)
    assert torch.equal(generate(model, PROMPT, **SAMPLED, seed=1), first)
    assert not torch.equal(generate(model, PROMPT, **SAMPLED, seed=2), first)


def test_tokens_are_drawn_by_their_probabilities_at_the_temperature() -> None:
    logits, count = torch.tensor([2.0, 0.0, 1.0, -3.0]), 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = draw(logits.expand(count, 4), temperature=0.7, top_k=None, generator=generator)
    # Five standard deviations of a share.
    torch.testing.assert_close(
        drawn.bincount(minlength=4) / count, (logits / 0.7).softmax(0), rtol=0.0, atol=5 * 0.5 / count**0.5
    )


def test_top_k_leaves_the_others_out() -> None:
    logits, generator = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    drawn = draw(logits, temperature=5.0, top_k=2, generator=generator)
    rank = (logits > logits.gather(1, drawn.unsqueeze(1))).sum(-1)
    assert rank.unique().tolist() == [0, 1]


@torch.no_grad()
def test_the_solver_steps_of_a_mesanet_are_a_value() -> None:
    model = stirred("mesanet").eval()
    with mesa_replaced(model, {"solver": {"max_steps": 0}}):
        few = generate(model, PROMPT, num_tokens=20, temperature=0.0, top_k=None, seed=0)
        assert torch.equal(few, most_likely(model, PROMPT, few))
    assert not torch.equal(generate(model, PROMPT, num_tokens=20, temperature=0.0, top_k=None, seed=0), few)


@pytest.mark.parametrize("name", ["gated_deltanet", "swa4", "hawk"])
@torch.no_grad()
def test_a_step_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured whole (fullgraph), what it writes in place included, by a compiler that generates no code."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options, **settings: compiler(f, backend="aot_eager", **settings))
    model = stirred(name).eval()
    expected = generate(model, PROMPT, num_tokens=9, temperature=0.0, top_k=None, seed=0)
    compile_step(model)
    # One for every batch size and size of a cache, where torch's own limit is 8.
    assert torch._dynamo.config.recompile_limit >= 64
    assert torch.equal(generate(model, PROMPT, num_tokens=9, temperature=0.0, top_k=None, seed=0), expected)


@pytest.mark.parametrize("name", ["gated_deltanet", "swa4", "hawk"])
@torch.no_grad()
def test_a_compiled_prompt_is_read_as_any_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From no state and from one, a graph of each for all blocks."""
    from torch._dynamo.testing import CompileCounterWithBackend

    compiler, count = torch.compile, CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compiler(f, backend=count, **settings))
    model = stirred(name).eval()
    expected, state = model(PROMPT)
    further, last = model(PROMPT, state)
    compile_prompts(model)
    for graphs in (1, 2, 2):
        again, held = model(PROMPT)
        torch.testing.assert_close(again, expected)
        if graphs > 1:
            torch.testing.assert_close(model(PROMPT, held), (further, last))
        assert len(model.blocks) > 1 and count.frame_count == graphs


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["transformer", "swa4"])
@torch.no_grad()
def test_a_compiled_step_writes_its_own_slot_of_a_cache(name: str) -> None:
    """Not a copy of the cache, which is what is made of a `scatter_`: no memory of its size is asked for."""
    # Imported here, since it takes a second of whoever collects tests.
    from torch._inductor.utils import get_code

    model = stirred(name).eval()
    prompt = PROMPT[:, :2].repeat(8, 1)
    _, state = model(prompt)
    state = model.reserve(state, 250 if name == "transformer" else 2)
    compile_step(model)
    # The code is only read: to build it took four fifths of the time, and what a cache holds of another compilation is not it.
    with torch._inductor.config.patch(fx_graph_cache=False):
        code, *_ = get_code(model.blocks[0].step_, torch.zeros(len(prompt), model.d_model, dtype=torch.float64), state[0])
    sizes = [math.prod(map(int, size.split(","))) for size in re.findall(r"= empty_strided_cpu\(\(([\d, ]+?),?\)", code)]
    assert sizes and max(sizes) < state[0]["cache"].numel()


@in_turn(name=MODELS, narrowed=[lambda model: narrow(model, torch.bfloat16), lambda model: model.to(torch.bfloat16)])
@torch.no_grad()
def test_bfloat16_weights_keep_a_wide_state(name: str, narrowed: Callable[[LanguageModel], object]) -> None:
    model = stirred(name, torch.float32).eval()
    expected, _ = model(PROMPT)
    narrowed(model)
    assert model.blocks[0].mlp.up_projection.weight.dtype == model.embedding.weight.dtype == torch.bfloat16
    _, state = model(PROMPT[:, :-1])
    state = model.reserve(state, 1)
    logits = model.step_(PROMPT[:, -1], state).float()
    # In the norm: eight bits of each weight through a solve can turn a single logit around.
    assert (logits - expected[:, -1]).norm() < 0.1 * expected[:, -1].norm()
    for block, block_state in zip(model.blocks, state, strict=True):
        if "cache" not in block_state:
            assert all(value.dtype in (torch.float32, torch.int64) for value in block_state.values()), type(block.mixer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"prompt": [[1, 2], [3]]}, "prompt is list.*one length"),
        ({"prompt": torch.zeros(2, 0, dtype=torch.int64)}, r"prompt is \[2, 0\]"),
    ],
)
def test_values_out_of_range_are_named(change: dict, said: str) -> None:
    arguments = {"prompt": PROMPT, "seed": 0, **SAMPLED, **change}
    with pytest.raises(ValueError, match=said):
        generate(stirred("gla"), **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gated_deltanet", "mesanet", "transformer", "swa4"])
@torch.no_grad()
def test_a_gpu_graph_gives_the_tokens_of_the_cpu(name: str) -> None:
    model = stirred(name).eval()
    expected = generate(model, PROMPT, num_tokens=9, temperature=0.0, top_k=None, seed=0)
    model = model.cuda()
    greedy = generate(model, PROMPT.cuda(), num_tokens=9, temperature=0.0, top_k=None, seed=0)
    assert torch.equal(greedy.cpu(), expected)
    drawn = [generate(model, PROMPT.cuda(), **SAMPLED, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_kernel_that_is_launched_early_waits(name: str) -> None:
    """The wait stands before a kernel lets the next one begin: else what follows may read what is not written yet."""
    from torch._inductor.utils import get_code

    model = stirred(name, torch.float32).eval().cuda()
    if torch.cuda.get_device_capability()[0] < 9 or not model.capturable:
        pytest.skip("launched early are captured kernels, from Hopper on")
    narrow(model, torch.bfloat16)
    _, state = model(PROMPT.cuda())
    state = model.reserve(state, 2)
    compile_step(model)
    with torch._inductor.config.patch(fx_graph_cache=False):
        codes = get_code(model.blocks[0].step_, model.embed(PROMPT[:, 0].cuda()), state[0])
    kernels = [each for code in codes for each in code.split("@triton_heuristics")[1:] if "'launch_pdl': True" in each]
    assert kernels
    for source in kernels:
        wait, launch = source.find("gdc_wait"), source.find("gdc_launch_dependents")
        assert wait >= 0 and not 0 <= launch < wait, source


# A single sequence, whose products are sums, and several.
@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("name", "backend"), [("mesanet", "triton"), ("gated_deltanet", "fla"), ("transformer", "torch")])
@torch.no_grad()
def test_a_compiled_and_captured_step_is_the_eager_one(name: str, backend: str, batch_size: int) -> None:
    """With bfloat16 weights: rounding at other places, eight bits each, moves a logit by a per cent or so."""
    mixer = {**config(name)["model"]["mixer"], "key_dim": 64} | ({"value_dim": 64} if name != "transformer" else {})
    with torch.device("cuda"):
        model = build_model(*built.uniform(mixer, config(name)["size"]), vocab_size=VOCAB_SIZE, backend=backend)
    model.reset_parameters(0)
    narrow(model.eval(), torch.bfloat16)
    tokens = draw_tokens(0)[:batch_size].cuda()
    _, state = model(tokens[:, :40])
    reserved = model.reserve([{key: value.clone() for key, value in block.items()} for block in state], 25)
    compile_step(model)
    token, logits = tokens[:, 40].clone(), tokens.new_empty(len(tokens), VOCAB_SIZE, dtype=torch.bfloat16)
    changed = [x for block in reserved for x in block.values()]
    replay = captured(lambda: logits.copy_(model.step_(token, reserved)), changed, torch.Generator("cuda"))
    for t in range(40, 64):
        token.copy_(tokens[:, t])
        replay()
        expected, state = model.step(tokens[:, t], state)
        assert (logits - expected).norm() < 3e-2 * expected.norm(), t
