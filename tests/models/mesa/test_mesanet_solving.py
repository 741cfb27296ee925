"""How a Mesa layer is solved: random steps in training, another solver or decoder for a while, the token before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.backbone.language_model import LanguageModel
from models.mesa.layers import mesa_layers, mesa_replaced
from models.mesa.mixer import Mesa
from models.ops.mesa.sherman_morrison import invert
from tests.models.mesa.mesanet_cases import LAYER, B, H, build_layer, build_model, draw_tokens, draw_x
from tests.models.tolerances import assert_near


def drawn_steps(layer: Mesa, count: int, seed: int = 0) -> list[int]:
    steps = []
    for step in range(count):
        layer.begin_step(seed=seed, step=step)
        steps.append(layer.solver_in_use(1).max_steps)
    return steps


def test_random_steps_are_uniform_and_a_function_of_seed_and_step() -> None:
    layer = build_layer(random_steps=3)
    torch.manual_seed(0)
    first = drawn_steps(layer, 4000)
    torch.manual_seed(1)
    assert first == drawn_steps(layer, 4000) != drawn_steps(layer, 4000, seed=1)
    # Four standard deviations of a count with p = 1/4.
    assert all(abs(first.count(k) - 1000) < 110 for k in range(4)) and set(first) == set(range(4))


def test_random_steps_are_the_same_in_all_layers_and_only_in_training() -> None:
    model, tokens = build_model(random_steps=30), draw_tokens(9)
    own = {layer.solver for _, layer in mesa_layers(model)}
    model.begin_step(seed=0, step=0)
    drawn = {layer.solver_in_use(1) for _, layer in mesa_layers(model)}
    assert len(drawn) == 1 and drawn != own
    few = model(tokens)[0]
    plain = build_model()
    for _, layer in mesa_layers(plain):
        layer.solver = next(iter(drawn))
    assert torch.equal(few, plain(tokens)[0])
    model.eval()
    assert {layer.solver_in_use(1) for _, layer in mesa_layers(model)} == own
    assert torch.equal(model(tokens)[0], build_model()(tokens)[0])


def test_a_layer_without_random_steps_draws_nothing() -> None:
    layer = build_layer()
    assert set(drawn_steps(layer, 10)) == {LAYER["solver"]["max_steps"]}


@torch.no_grad()
def test_a_solver_is_replaced_within_the_block_alone() -> None:
    model, tokens = build_model(), draw_tokens(19)
    own = model(tokens)[0]
    layers = mesa_layers(model)
    assert [index for index, _ in layers] == [0, 1]
    before = [layer.solver for _, layer in layers]
    with mesa_replaced(model, {"solver": {"max_steps": 0, "initial": "query"}}):
        assert [layer.solver for _, layer in layers] == [replace(s, max_steps=0, initial="query") for s in before]
        assert not torch.isclose(model(tokens)[0], own).all()
    with pytest.raises(KeyError), mesa_replaced(model, {"solver": {"name": "cholesky"}}):
        raise KeyError
    assert [layer.solver for _, layer in layers] == before and torch.equal(model(tokens)[0], own)
    with pytest.raises(ValueError, match="max_stepz"), mesa_replaced(model, {"solver": {"max_stepz": 3}}):
        pass
    with pytest.raises(ValueError, match="-1"), mesa_replaced(model, {"solver": {"max_steps": -1}}):
        pass
    assert [layer.solver for _, layer in layers] == before


def stepped(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    state, logits = model.init_state(B), []
    for t in range(tokens.shape[1]):
        logits_t, state = model.step(tokens[:, t], state)
        logits.append(logits_t)
    return torch.stack(logits, dim=1), state


@torch.no_grad()
def test_rank_one_decoding_differs_where_gates_forget_and_not_when_it_always_inverts() -> None:
    """The largest difference of a logit: never inverted, at every 4th token, at every token."""
    model, tokens = build_model(solver={**LAYER["solver"], "name": "cholesky"}), draw_tokens(40)
    own, _ = stepped(model, tokens)
    differences = {}
    for refresh in (None, 4, 1):
        with mesa_replaced(model, {"decode": "sherman_morrison", "refresh": refresh}):
            assert model.init_state(B)[0]["R"].shape == (B, H, 16, 16)
            logits, _ = stepped(model, tokens)
        differences[refresh] = (logits - own).abs().max().item()
    assert differences[1] < 1e-9 < 1e-3 < differences[4] < differences[None]
    assert torch.equal(stepped(model, tokens)[0], own)


@torch.no_grad()
def test_a_sequence_goes_on_by_rank_one_updates_from_an_inversion_at_its_end() -> None:
    layer, x = build_layer(decode="sherman_morrison", refresh=4).double(), draw_x(19)
    _, state = layer(x)
    assert_near(state["R"], invert(state["H"], layer.regularizer), "float64")
    assert state["age"].tolist() == [3, 3]
    _, state = layer.step(draw_x(1)[:, 0], state)
    # The 20th token is due.
    assert_near(state["R"], invert(state["H"], layer.regularizer), "float64")
    assert state["age"].tolist() == [0, 0]
    _, state = layer.step(draw_x(1)[:, 0], state)
    assert not torch.isclose(state["R"], invert(state["H"], layer.regularizer), rtol=1e-6).all()
    starts = torch.tensor([[True], [False]])
    _, state = layer(draw_x(1), state, starts=starts)
    assert state["age"].tolist() == [1, 2]
    assert_near(state["R"][0], invert(state["H"], layer.regularizer)[0], "float64")


@torch.no_grad()
def test_the_token_before_saves_steps() -> None:
    """Where neighbouring tokens ask nearly the same."""
    settings = {**LAYER["solver"], "max_steps": 30, "tolerance": 1e-6}
    layer = build_layer(solver={**settings, "initial": "previous_token"}).double()
    x = draw_x(1) + 1e-3 * draw_x(40, seed=1)
    warm = layer.observe(x, spectrum=False)["steps"][:, 20:].double().mean()
    layer.solver = build_layer(solver=settings).solver
    fresh = layer.observe(x, spectrum=False)["steps"][:, 20:].double().mean()
    assert warm < fresh


@pytest.mark.parametrize("cut", [1, 8, 18])
@torch.no_grad()
def test_the_token_before_is_carried_over_a_cut(cut: int) -> None:
    """At one step, where the first guess still shows."""
    layer = build_layer(solver={**LAYER["solver"], "max_steps": 1, "initial": "previous_token"}).double()
    x = draw_x(19)
    whole, _ = layer(x)
    first, state = layer(x[:, :cut])
    assert_near(torch.cat([first, layer(x[:, cut:], state)[0]], dim=1), whole, "float64")
    state["x"].zero_()
    assert not torch.isclose(layer(x[:, cut:], state)[0][:, 0], whole[:, cut]).all()
