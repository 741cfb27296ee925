"""How far the read-outs of Mesa layers are from an exact solve in float64 of what these layers themselves read."""

from __future__ import annotations

import torch
from torch import Tensor

from models.mesa.mixer import Mesa
from models.mixer import State
from models.ops import mesa


def read_out(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    """The inputs of the recurrence on these tokens and what it reads out, `o` [B, T, H, V]; all under their names in the op."""
    state = mixer.init_state(len(x)) if state is None else state
    inputs = mixer.recurrence_inputs(x, state, starts=starts).inputs
    with torch.autocast(x.device.type, enabled=False):
        o, _ = mixer.recurrence(**inputs, state=state)
    regularizer = mixer.regularizer.expand(*x.shape[:2], -1, -1)
    return {name: values for name, values in inputs.items() if values is not None} | {"regularizer": regularizer, "o": o}


def readout_error(seen: dict[str, Tensor]) -> Tensor:
    """|o - o*| / |o*| at every token [B, T, H], with o* from exact float64 solves of float64 states, from zero states on.

    0 where both are zero, and NaN where an input is not finite.
    """
    inputs = {name: seen[name].double() for name in mesa.Inputs._fields if name in seen}
    # A log_decay of -inf is a reset.
    finite = all(values.isfinite().all() for name, values in inputs.items() if name != "log_decay")
    if not finite or inputs["log_decay"].isnan().any():
        return torch.full_like(inputs["beta"], torch.nan)
    batch_size, _, num_heads, key_dim = inputs["k"].shape
    G, H = (inputs["k"].new_zeros(batch_size, num_heads, rows, key_dim) for rows in (inputs["v"].shape[-1], key_dim))
    o, (exact, _) = seen["o"].double(), mesa.recurrent(mesa.Inputs(**inputs), state=mesa.MesaState(G, H))
    error = (o - exact).norm(dim=-1)
    return torch.where(error == 0.0, 0.0, error / exact.norm(dim=-1))
