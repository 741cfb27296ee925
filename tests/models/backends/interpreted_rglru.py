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
