"""How many times faster chunked Mesa trains than an honest loop over time, and what its solver's steps cost.

    python -m tests.benchmarks.mesa_speed [--threads 2] [--repeats 5]

Forward and backward. The loop solves every token by batched `cholesky` and `cholesky_solve`. Both forms take turns in
one process, and medians are compared, so what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import mesa
from models.ops.solvers import ConjugateGradients

ASKED = 12.0


def draw(batch: int, length: int, heads: int, dim: int) -> dict[str, Tensor]:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    inputs = {
        "q": F.normalize(normal(batch, length, heads, dim), dim=-1),
        "k": F.normalize(normal(batch, length, heads, dim), dim=-1),
        "v": normal(batch, length, heads, dim),
        "log_decay": F.logsigmoid(normal(batch, length, heads) + 4.0),
        "beta": normal(batch, length, heads).sigmoid(),
        "regularizer": torch.ones(heads, dim),
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def train_ms(form, inputs: dict[str, Tensor]) -> float:
    """Milliseconds of one forward and backward pass from an empty state."""
    batch, _, heads, dim = inputs["k"].shape
    zeros = torch.zeros(batch, heads, dim, dim)
    begin = time.perf_counter()
    o, _ = form(**inputs, state=mesa.MesaState(zeros, zeros))
    torch.autograd.grad(o.sum(), list(inputs.values()))
    return 1e3 * (time.perf_counter() - begin)


def chunked(max_steps: int, chunk_size: int, tolerance: float = 0.0):
    solver = ConjugateGradients(max_steps=max_steps, tolerance=tolerance, stop="right_hand_side")
    return partial(mesa.chunked, solver=solver, chunk_size=chunk_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs, form = draw(4, 1024, 4, 64), chunked(10, chunk_size=32)
    loop = mesa.recurrent
    train_ms(form, inputs)
    times = [(train_ms(loop, inputs), train_ms(form, inputs)) for _ in range(options.repeats)]
    loop_ms, chunked_ms = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"B=4 T=1024 H=4 K=V=64, 10 steps, {options.threads} threads, median of {options.repeats}")
    print(f"loop {loop_ms:.0f} ms, chunked {chunked_ms:.0f} ms, ratio {loop_ms / chunked_ms:.1f} (asked {ASKED:.0f})")
    inputs = draw(16, 128, 2, 32)
    print("B=16 T=128 H=2 K=V=32, chunked:")
    for label, form in {
        **{f"{steps} steps": chunked(steps, chunk_size=32) for steps in (0, 5, 10, 30)},
        "tolerance 1e-4": chunked(30, chunk_size=32, tolerance=1e-4),
    }.items():
        train_ms(form, inputs)
        print(f"  {label:<16}{statistics.median(train_ms(form, inputs) for _ in range(options.repeats)):>8.1f} ms")


if __name__ == "__main__":
    main()
