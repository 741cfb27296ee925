"""Which of two ways works the products of decayed channels out is a matter of the tokens before, and of speed alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import diagonal_plus_low_rank, generalized_delta_rule, gla
from models.ops.channel_decay import RANGE

B, T, H, K, V, CHUNK_SIZE = 2, 40, 3, 5, 4, 16

Form = Callable[..., tuple[Tensor, Tensor]]
IN_CHUNKS = {"chunk_size": CHUNK_SIZE}


def by_gla(x: dict[str, Tensor], *, form: str = "chunked") -> tuple[Tensor, Tensor]:
    inputs = {name: x[name] for name in ("q", "k", "v", "log_decay", "state")}
    return getattr(gla, form)(**inputs, **(IN_CHUNKS if form == "chunked" else {}))


def by_general(x: dict[str, Tensor], *, form: str = "chunked") -> tuple[Tensor, Tensor]:
    inputs = {"q": x["q"], "e": x["k"], "a": x["a"], "u": x["v"], "log_decay": x["log_decay"], "state": x["state"]}
    op = getattr(generalized_delta_rule, form)
    return op(**inputs, erase=None, write=None, **(IN_CHUNKS if form == "chunked" else {}))


def by_low_rank(x: dict[str, Tensor], *, form: str = "chunked") -> tuple[Tensor, Tensor]:
    op, floor = getattr(diagonal_plus_low_rank, form), diagonal_plus_low_rank.FLOOR
    return op(**x, e=0.3 * x["k"], floor=floor, **(IN_CHUNKS if form == "chunked" else {}))


each_op = pytest.mark.parametrize("form", [by_gla, by_general, by_low_rank])


def draw(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    drawn = {"q": normal(B, T, H, K), "v": normal(B, T, H, V), "log_decay": F.logsigmoid(normal(B, T, H, K) + 2.0)}
    drawn |= {name: F.normalize(normal(B, T, H, K), dim=-1) for name in ("k", "a")}
    return {name: x.to(dtype) for name, x in {**drawn, "state": normal(B, H, V, K)}.items()}


@each_op
def test_a_strong_decay_moves_no_bit_before_it(form: Form) -> None:
    inputs = draw()
    o, _ = form(inputs)
    for t in (7, CHUNK_SIZE, 30):
        later = {**inputs, "log_decay": inputs["log_decay"].clone()}
        later["log_decay"][0, t, 1] = -39.9
        later["log_decay"][0, t + 1, 1] = -39.9
        assert torch.equal(form(later)[0][:, :t], o[:, :t])


@each_op
def test_a_document_is_the_same_to_the_bit_behind_any_other(form: Form) -> None:
    start, inputs, others = 20, draw(), []
    inputs["log_decay"][:, start] = float("-inf")
    for strength in (0.0, -1.0, -39.9):
        earlier = {**inputs, "log_decay": inputs["log_decay"].clone(), "state": (strength - 1.0) * inputs["state"]}
        earlier["log_decay"][:, :start] = strength
        others.append(form(earlier))
    for o, state in others[1:]:
        assert torch.equal(o[:, start:], others[0][0][:, start:]) and torch.equal(state, others[0][1])


@each_op
@pytest.mark.parametrize("share", [0.98, 1.5])
def test_float32_keeps_its_digits_near_the_range(form: Form, share: float) -> None:
    """share: of RANGE, how far the sums of a chunk come."""
    inputs = draw()
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -share * RANGE / CHUNK_SIZE)
    expected = form({name: x.double() for name, x in inputs.items()}, form="recurrent")
    for x, y in zip(form(inputs), expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=5e-6)


def test_any_decays_are_asked_for_only_where_some_are_strong(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = gla._by_blocks
    monkeypatch.setattr(gla, "_by_blocks", lambda *inputs: asked.append(True) or original(*inputs))
    inputs = draw()
    by_gla(inputs)
    assert not asked
    inputs["log_decay"][0, 3, 0, 0] = -2.0 * RANGE
    by_gla(inputs)
    assert asked
