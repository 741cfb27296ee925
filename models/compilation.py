"""What torch.compile has to be told once a process."""

from __future__ import annotations

import torch

GRAPHS_OF_A_FUNCTION = 64


def allow_many_shapes() -> None:
    """Lets torch.compile keep a graph for every shape and dtype that a sweep meets: its own limit is 8 a process, and where a
    graph must be whole it raises at the ninth.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_OF_A_FUNCTION)
