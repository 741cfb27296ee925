"""Inputs of Mesa whose states are anything from well to badly conditioned, in float64, for one head."""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KEYS = ("random", "low_rank", "repeated", "anisotropic")
GATE_LOGITS = (0.0, 2.0, 4.0, 6.0, 9.0)
QUERIES = ("random", "keys")


class Case(NamedTuple):
    """keys: how they are drawn. gate_logit: about which the forget gate is; 9 is gamma = 0.9999, then capped as MesaNet does.

    queries: "random", or "keys" for the keys in another order.
    """

    keys: str
    gate_logit: float
    queries: str

    def __str__(self) -> str:
        return f"{self.keys}-{self.gate_logit:.0f}-{self.queries}"


CASES = [Case(*values) for values in itertools.product(KEYS, GATE_LOGITS, QUERIES)]


def draw_case(case: Case, *, length: int, dim: int, seed: int = 0) -> dict[str, Tensor]:
    """The arguments of the op from an empty state: B = H = 1, T = length, K = V = dim, unit keys and queries, Lambda 0.25."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    k = F.normalize(_draw_keys(case.keys, normal(length, dim), generator), dim=-1)
    beta = normal(length).sigmoid()
    gamma = torch.sigmoid(case.gate_logit + 0.5 * normal(length)) * (1.0 - 0.0025 * beta.square())
    q, order = F.normalize(normal(length, dim), dim=-1), torch.randperm(length, generator=generator)
    over_time = {
        "q": q if case.queries == "random" else k[order],
        "k": k,
        "v": normal(length, dim),
        "log_decay": gamma.log(),
        "beta": beta,
    }
    zeros = torch.zeros(1, 1, dim, dim, dtype=torch.float64)
    regularizer = torch.full((1, dim), 0.25, dtype=torch.float64)
    return {**{name: x[None, :, None] for name, x in over_time.items()}, "regularizer": regularizer, "G": zeros, "H": zeros}


def _draw_keys(kind: str, drawn: Tensor, generator: torch.Generator) -> Tensor:
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    length, dim = drawn.shape
    if kind == "low_rank":
        return normal(16, dim)[torch.randint(16, (length,), generator=generator)] + 0.05 * drawn
    if kind == "repeated":
        return normal(1, dim) + 1e-3 * drawn
    if kind == "anisotropic":
        return drawn * torch.linspace(3.0, 0.05, dim, dtype=torch.float64) ** 1.5
    assert kind == "random", kind
    return drawn
