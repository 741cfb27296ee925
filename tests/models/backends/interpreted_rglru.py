"""The scan of RG-LRU under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

import pytest
import torch

from models.backends.triton import rglru
from tests.models.backends.test_rglru_triton import assert_equals_recurrent


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles as small as they can be: what is interpreted costs a call for every number."""
    monkeypatch.setattr(rglru, "LAUNCH", rglru.LAUNCH | {"BLOCK_T": 4, "BLOCK_W": 8})


@pytest.mark.parametrize("length", [1, 3, 4, 5, 10])
def test_it_is_the_recurrence(length: int) -> None:
    assert_equals_recurrent(length, width=10, device="cpu", dtype=torch.float64, kind="float64")


def test_it_is_the_recurrence_in_float32_where_the_last_state_is_not_weighed() -> None:
    assert_equals_recurrent(5, width=10, device="cpu", dtype=torch.float32, kind="float32", weigh_last=False)


@pytest.mark.parametrize("length", [3, 12, 17, 24])
def test_in_segments_it_is_the_recurrence(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 and 8 tokens, the last one shorter or not, and of one segment alone where none fits."""
    monkeypatch.setattr(rglru, "SHORTEST", 4)
    monkeypatch.setattr(rglru, "MOST", 4)
    assert rglru.cut(2, length, 10, programs=rglru.ENOUGH_FORWARD).number == {3: 1, 12: 3, 17: 3, 24: 3}[length]
    assert_equals_recurrent(length, width=10, device="cpu", dtype=torch.float64, kind="float64")
