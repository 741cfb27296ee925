"""How near two ways of computing the same thing must come, and why not nearer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    relative: float
    absolute: float
    reason: str


TOLERANCES = {
    "float64": Tolerance(
        1e-8, 1e-9, "sums taken in another order: 1e-16 grows by the length and by the condition of Mesa's solve"
    ),
    "float32": Tolerance(1e-4, 2e-5, "sums taken in another order: 1e-7 a step over about a hundred steps, or times a condition"),
    "float32 model": Tolerance(
        1e-4, 1e-4, "as float32, through a whole model: a solve at a condition of 50 moved one logit of 3,705 by 5e-5"
    ),
}


def assert_near(actual: Tensor, expected: Tensor, kind: str) -> None:
    tolerance = TOLERANCES[kind]
    torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)
