"""Which tensors' devices are the current ones, on a machine without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the tensors whose devices are current, the innermost last: it changes as they are entered and left."""
    on: list[torch.Size] = []

    @contextlib.contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        on.append(x.shape)
        yield
        on.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    return on
