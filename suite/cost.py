"""What a model costs: parameters, state and contractions, counted without allocating anything."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from suite.identity import canonical_json
from suite.interface import Interface, build_backbone


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers. state_bytes: held per sequence after seq_len tokens, in the precision of the training.

    flops_per_token: contractions of the forward pass in recurrent form, averaged over seq_len tokens.
    """

    parameters: int
    state_bytes: int
    flops_per_token: float


def model_cost(config: Mapping[str, Any], *, interface: Interface) -> Cost:
    """The cost of a settled configuration's model on sequences of its task's length."""
    mixers = {key: config["model"][key] for key in ("pattern", *config["model"]["pattern"])}
    dtype = product_dtype(config["train"]["autocast"])
    seq_len, backend = config["task"]["seq_len"], config["backend"]
    return _cost(canonical_json(mixers), canonical_json(config["size"]), interface, backend, seq_len, dtype)


def product_dtype(autocast: str) -> torch.dtype:
    """What matrix products give under this train.autocast."""
    return torch.bfloat16 if autocast == "bfloat16" else torch.float32


@functools.cache
def _cost(mixers: str, size: str, interface: Interface, backend: str, seq_len: int, dtype: torch.dtype) -> Cost:
    """Kept, since the arms of a sweep share their reference."""
    with torch.device("meta"):
        model = build_backbone(interface, json.loads(mixers), json.loads(size), backend=backend)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        state_bytes=model.state_bytes(seq_len, dtype),
        flops_per_token=model.forward_flops_per_token(seq_len),
    )
