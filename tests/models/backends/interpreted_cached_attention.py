"""Attention over a cache by its kernels under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

import pytest
import torch

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels

# isort: split
from models.backends.triton import cached_attention_kernels as kernels
from models.backends.triton.cached_attention import _attend, attend
from tests.models.backends.current_devices import recorded
from tests.models.backends.test_cached_attention_triton import (
    SEEN,
    assert_is_the_definition,
    assert_layer_is_the_plain_one,
    draw,
)
from tests.thinned import pairwise

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


# A block of one warp has 16 slots of 128 numbers in bfloat16, and 64 of 32: fewer, whole ones, and one more.
@pairwise(
    slots=[1, 16, 33, 70],
    seen=list(SEEN),
    parts=[1, 2, 8],
    dtype=[F32, BF16, F16],
    key_dim=[6, 16, 64, 96, 128, 256],
)
def test_it_is_the_definition(slots, seen, parts, dtype, key_dim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LAUNCH", kernels.LAUNCH | {"num_warps": 1})
    monkeypatch.setattr(kernels, "num_parts", lambda heads, slots: parts)
    assert_is_the_definition(draw(3, 2, slots, key_dim, seen=seen, dtype=dtype, device="cpu"))


@pytest.mark.parametrize("slots", [31, 257])
def test_as_it_is_launched_it_is_the_definition(slots: int) -> None:
    assert_is_the_definition(draw(2, 2, slots, 128, seen="most", dtype=BF16, device="cpu"))


def test_scores_of_any_size_are_taken() -> None:
    """The largest in the last slot, far above the others, and all far below zero."""
    inputs = draw(1, 1, 40, 16, seen="ring", dtype=F32, device="cpu")
    inputs["k"][0, 0, -1] = 100.0 * inputs["q"][0, 0]
    assert_is_the_definition(inputs)
    inputs["k"][:] = -100.0 * inputs["q"][0, 0]
    assert_is_the_definition(inputs)


def test_inputs_of_any_strides_are_taken() -> None:
    inputs = draw(2, 3, 9, 16, seen="few", dtype=F32, device="cpu")
    for name, order in (("q", (2, 0, 1)), ("k", (3, 0, 2, 1)), ("v", (2, 1, 0, 3)), ("position", (0,))):
        back = [order.index(i) for i in range(len(order))]
        assert_is_the_definition(inputs | {name: inputs[name].permute(order).contiguous().permute(back)})
    assert_is_the_definition(inputs | {"position": inputs["position"].repeat_interleave(2)[::2]})


def test_no_sequence_is_none() -> None:
    inputs = draw(0, 3, 9, 16, seen="few", dtype=F32, device="cpu")
    assert attend(**inputs).shape == inputs["q"].shape


@pytest.mark.parametrize("window", [None, 12])
@torch.no_grad()
def test_a_layer_with_it_is_the_plain_one_compiled_and_not(window: int | None) -> None:
    assert_layer_is_the_plain_one("cpu", window=window, dtype=F32, backend="aot_eager")


def test_it_is_launched_on_the_device_of_q(monkeypatch: pytest.MonkeyPatch) -> None:
    on, launched = recorded(monkeypatch), []
    monkeypatch.setattr(kernels, "launch", lambda *_: launched.append([*on]))
    inputs = draw(1, 2, 64, 16, seen="few", dtype=F32, device="cpu")
    attend(**inputs)
    assert launched == 2 * [[inputs["q"].shape]]


def test_the_operator_is_registered_whole() -> None:
    torch.library.opcheck(_attend, tuple(draw(2, 3, 70, 16, seen="few", dtype=F32, device="cpu").values()))
