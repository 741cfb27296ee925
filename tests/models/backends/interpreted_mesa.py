"""The Mesa kernels under Triton's interpreter, small: see `test_interpreted`."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels

# isort: split
from models.backends.triton import mesa_launches as launches
from models.backends.triton.mesa import mesa_chunked
from models.backends.triton.mesa_decode import mesa_decode_
from models.backends.triton.mesa_op import mesa as mesa_by_triton
from models.backends.triton.mesa_records import Ends, Tokens
from models.ops import mesa
from tests.models import built
from tests.models.backends import mesa_kernel_cases as cases
from tests.models.mesa.mesanet_cases import LAYER, build_layer

draw = partial(cases.draw, device="cpu")
F32 = torch.float32


def settings(max_steps: int, tolerance: float, initial: str = "diagonal") -> dict:
    return {
        "name": "cg",
        "max_steps": max_steps,
        "tolerance": tolerance,
        "stop": "right_hand_side",
        "initial": initial,
        "gradient": "implicit",
    }


@pytest.mark.parametrize(("length", "dtype"), [(66, torch.bfloat16), (3, F32)])
def test_equals_recurrent_form(length, dtype):
    cases.assert_equals_recurrent(draw(length=length, key_dim=32, value_dim=16, dtype=dtype))


@pytest.fixture
def cut(monkeypatch):
    """Every chunk is a segment and every head a piece."""
    for name, value in {"SHORTEST_SEGMENT": 1, "FEWEST_SEGMENTS": 2, "BYTES_OF_A_PIECE": 1, "TILES_OF_A_PIECE": 1}.items():
        monkeypatch.setattr(launches, name, value)


@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim", "dtype"),
    [(130, 32, 16, F32), (70, 16, 32, torch.bfloat16), (66, 64, 64, torch.bfloat16), (65, 128, 128, torch.bfloat16)],
)
def test_segments_and_pieces_equal_recurrent_form(cut, length, key_dim, value_dim, dtype):
    inputs = draw(length=length, key_dim=key_dim, value_dim=value_dim, dtype=dtype)
    assert launches.pieces(inputs["k"], inputs["v"]) == [range(1), range(1, 2)]
    cases.assert_equals_recurrent(inputs)


def test_no_state_is_kept_between_the_passes():
    inputs = draw(length=130, key_dim=16, value_dim=16, dtype=F32)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        mesa_chunked(**leaves, tolerance=1e-4, max_steps=0, initial="diagonal")
    given = {x.data_ptr() for x in leaves.values()}
    of_its_own = [tuple(x.shape) for x in kept if x.data_ptr() not in given]
    assert sorted(of_its_own) == [(1, 2, 16, 16), (1, 2, 16, 16), (3, 1, 130, 2, 16)]


@pytest.mark.parametrize("key_dim", [16, 64, 96])
def test_states_come_with_the_size_of_the_low_part_of_H(key_dim):
    inputs = draw(length=130, key_dim=key_dim, value_dim=16, dtype=torch.bfloat16)
    tokens = Tokens(*(inputs[name] for name in ("k", "v", "log_decay", "beta", "regularizer")))
    states = launches.empty_states(tokens.k, tokens.v, range(2))
    launches.states(tokens, launches.gates(tokens), Ends(inputs["G"], inputs["H"]), range(2), states, None)
    low = states.H[:, :, 1].float()
    assert low.any()
    torch.testing.assert_close(states.low.sum(-1), low.square().sum((-1, -2)))


@pytest.mark.parametrize(
    ("batch_size", "length", "num_heads", "dim"),
    [(8, 3000, 16, 64), (16, 2048, 8, 128), (1, 65_536, 8, 128), (1, 8192, 35, 128), (3, 700, 5, 128)],
)
def test_pieces_are_all_heads_and_their_states_are_small(batch_size, length, num_heads, dim):
    k = torch.empty(batch_size, length, num_heads, dim, dtype=torch.bfloat16, device="meta")
    pieces = launches.pieces(k, k)
    assert [head for piece in pieces for head in piece] == list(range(batch_size * num_heads))
    sizes = [sum(x.numel() * x.element_size() for x in launches.empty_states(k, k, piece)) for piece in pieces]
    assert max(sizes) == sizes[0] < 1.01 * max(launches.BYTES_OF_A_PIECE, sum(sizes) / 2)


@pytest.mark.parametrize(("initial", "max_steps"), [("zero", 0), ("zero", 2), ("diagonal", 0), ("diagonal", 2), ("query", 0)])
def test_few_steps_start_where_they_should(initial, max_steps):
    inputs = draw(length=3, key_dim=16, value_dim=16, dtype=F32)
    solver = built.solver(settings(max_steps, 0.0, initial))

    def exact(tensors):
        over_time = {name: x for name, x in tensors.items() if name not in ("G", "H")}
        state = mesa.MesaState(tensors["G"], tensors["H"])
        o, state = mesa.chunked(mesa.Inputs(**over_time), state=state, solver=solver, chunk_size=64)
        return o, state.G, state.H

    cotangents, names = cases.draw_cotangents(inputs)[:1], cases.NAMES[:7]
    expected = cases.results(exact, {name: x.double() for name, x in inputs.items()}, cotangents, names)
    stopped = partial(cases.kernel, tolerance=0.0, max_steps=max_steps, initial=initial)
    found = cases.errors(cases.results(stopped, inputs, cotangents, names), expected)
    # Directions are rounded to float16, 5e-4, and so is a guess.
    assert max(found.values()) < 1e-3, found


def test_token_does_not_see_later_ones():
    inputs = draw(length=12, key_dim=32, value_dim=16, dtype=F32)
    changed = {name: x.clone() for name, x in inputs.items()}
    for name in ("q", "k", "v", "beta"):
        changed[name][:, 8] = changed[name][:, 7]
    changed["log_decay"][:, 8] = -3.0
    for max_steps in (1, 40):
        first, second = (cases.kernel(x, tolerance=1e-6, max_steps=max_steps)[0] for x in (inputs, changed))
        # What scales a chunk's keys to float16 is a power of two of all of them.
        torch.testing.assert_close(first[:, :8], second[:, :8], rtol=2e-5, atol=2e-6)
        assert (first[:, 8:] - second[:, 8:]).abs().max() > 1e-3


def test_stops_by_tolerance_or_steps_and_at_once_for_nothing():
    inputs = draw(length=9, key_dim=32, value_dim=16, dtype=torch.bfloat16)
    inputs["q"][:, 3] = 0
    stops = ((1e-2, 30), (1e-4, 30), (1e-4, 3))
    loose, tight, few = (mesa_chunked(**inputs, tolerance=t, max_steps=n, initial="zero") for t, n in stops)
    assert loose.steps.float().mean() < tight.steps.float().mean()
    assert few.steps.max() == 3
    # A token that has stopped stays so, whatever others of its chunk need.
    assert tight.steps[0, :, 0].unique().numel() > 2
    assert (tight.steps[:, 3] == 0).all() and (tight.o[:, 3] == 0).all()


# One fills its tiles in neither direction, one is smaller than a tile, and one has as many columns as there are.
@pytest.mark.parametrize(("key_dim", "value_dim"), [(20, 48), (5, 3), (128, 8)])
def test_decode_is_the_step_of_the_op(key_dim, value_dim):
    inputs = draw(length=2, key_dim=key_dim, value_dim=value_dim, dtype=F32)
    inputs["log_decay"][0, 1, 0] = float("-inf")
    G, H = inputs.pop("G"), inputs.pop("H")
    for initial in ("zero", "diagonal", "query"):
        for max_steps, tolerance in ((20, 1e-6), (2, 0.0)):
            solver = built.solver(settings(max_steps, tolerance, initial))
            state, held = mesa.MesaState(G.double(), H.double()), {"G": G.clone(), "H": H.clone()}
            for t in range(2):
                token = {name: x if x.ndim == 2 else x[:, t : t + 1] for name, x in inputs.items()}
                o, state = mesa.decode(mesa.Inputs(**{name: x.double() for name, x in token.items()}), state=state, solver=solver)
                found = mesa_decode_(**token, **held, max_steps=max_steps, tolerance=tolerance, initial=initial)
                for x, y in ((found, o), (held["G"], state.G), (held["H"], state.H)):
                    # The tolerance times a condition of 4, or float32's rounding.
                    torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


def test_layer_compiles_without_a_break_and_steps_in_place():
    solver = settings(30, 1e-6)
    layer, reference = (build_layer(backend=backend, solver=solver) for backend in ("triton", "torch"))
    x = torch.randn(1, 3, LAYER["d_model"], generator=torch.Generator().manual_seed(0))

    def run(form):
        y, state = form(x)
        return [y.detach(), state["G"].detach(), *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    eager, compiled = run(layer), run(torch.compile(layer, fullgraph=True, backend="aot_eager"))
    expected, _ = reference(x)
    torch.testing.assert_close(compiled, eager, rtol=0.0, atol=0.0)
    torch.testing.assert_close(eager[0], expected.detach(), rtol=1e-4, atol=1e-4)
    state = layer.init_state(1)
    with torch.no_grad():
        held = state["H"]
        for t in range(3):
            y_t = layer.step_(x[:, t], state)
    assert state["H"] is held and held.any()
    torch.testing.assert_close(y_t, expected[:, 2].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q": torch.zeros(1, 1, 2, 16, dtype=torch.float64)}, "q is torch.float64"),
        ({"v": torch.zeros(1, 1, 2, 16, dtype=torch.float64)}, "v is torch.float64"),
    ],
)
def test_what_is_not_computed_is_named(changes, named):
    inputs = draw(length=1, key_dim=16, value_dim=16, dtype=F32)
    for form in (mesa_chunked, mesa_decode_):
        with pytest.raises(ValueError, match=named):
            form(**{**inputs, "tolerance": 1e-4, "max_steps": 30, "initial": "diagonal", **changes})


def test_more_heads_than_a_grid_holds_are_refused():
    inputs = draw(length=1, key_dim=16, value_dim=16, dtype=F32) | {"k": torch.zeros(32_768, 1, 2, 16)}
    with pytest.raises(ValueError, match="32768 sequences have 2 heads each, permitted .* are 65535"):
        mesa_chunked(**inputs, tolerance=1e-4, max_steps=30, initial="diagonal")


def test_dtypes_that_differ():
    inputs = draw(length=2, key_dim=16, value_dim=16, dtype=torch.bfloat16)
    exact, _, _ = cases.recurrent({name: x.double() for name, x in inputs.items()})
    o, _, _ = cases.kernel(inputs | {"v": inputs["v"].float()}, tolerance=1e-6, max_steps=30)
    assert o.dtype == torch.float32
    torch.testing.assert_close(o.double(), exact, rtol=1e-4, atol=1e-4)

    widened = inputs | {name: inputs[name].float() for name in ("q", "k")}
    state = mesa.MesaState(widened.pop("G"), widened.pop("H"))
    o, _ = mesa_by_triton(mesa.Inputs(**widened), state=state, solver=built.solver(settings(30, 1e-6)))
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.double(), exact, rtol=1e-2, atol=1e-2)


# Below the smallest normal number, with a reciprocal that is finite and with one that is not.
@pytest.mark.parametrize("size", [1e-38, 1e-42])
@pytest.mark.parametrize("what", ["q", "cotangent"])
def test_what_has_decayed_to_nothing_is_nothing(what, size):
    """The reciprocal of such a number is no float32; a gradient may decay so far in any long sequence."""
    inputs = draw(length=5, key_dim=16, value_dim=16, dtype=F32)
    if what == "q":
        inputs["q"] = inputs["q"] * size
    over_time = {name: x.requires_grad_() for name, x in inputs.items()}
    result = cases.kernel(over_time, tolerance=1e-4, max_steps=30, initial="diagonal")[0]
    cotangent = torch.ones_like(result) * (size if what == "cotangent" else 1.0)
    # A zero times an infinity is what is looked for.
    cotangent[..., 0] = 0.0
    gradients = torch.autograd.grad(result, list(over_time.values()), cotangent, allow_unused=True)
    assert result.isfinite().all() and all(g.isfinite().all() for g in gradients if g is not None)
