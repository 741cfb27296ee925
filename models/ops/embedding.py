"""Rows of a matrix by their numbers: ids [...] int64 and weight [V, D] to [..., D]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def rows(ids: Tensor, weight: Tensor) -> Tensor:
    """The rows as PyTorch reads them."""
    return F.embedding(ids, weight)
