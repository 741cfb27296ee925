"""Optimizers without torch's compiler."""

from __future__ import annotations

import torch
from torch.optim import Adam, Muon, Optimizer


def spare_the_compiler() -> None:
    """Lets optimizers be made and take steps without importing torch._dynamo, which takes as long as all else at a start.

    torch wraps their methods so that a compiler which meets them goes around them. None meets them here: models are compiled,
    and optimizers are not. A torch that wraps them otherwise imports its compiler all the same.
    """
    for method in vars(Optimizer).values():
        if plain := getattr(method, "__wrapped__", None):
            # What `torch._disable_dynamo` keeps of the compiler, for which it would be imported.
            vars(plain).setdefault("__dynamo_disable", plain)
    for kind in (Adam, Muon):
        step = vars(kind)["step"]
        # It switches gradients off, between two breaks of a graph that the compiler would draw.
        if step.__code__.co_name == "_use_grad":
            kind.step = torch.no_grad()(step.__wrapped__)  # type: ignore[method-assign]
