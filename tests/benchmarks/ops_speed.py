"""How many times faster the chunked form of every op trains than an honest loop over time.

    python -m tests.benchmarks.ops_speed [--threads 2] [--repeats 5]

Forward and backward at B=4 T=1024 H=4 K=V=64. Both forms take turns in one process, and medians are compared, so what
else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import decayed_linear_attention, delta_rule, mesa, mlstm
from models.ops.solvers import ConjugateGradients

B, T, H, D = 4, 1024, 4, 64

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], list[Tensor]]


class Op(NamedTuple):
    """loop and chunked map the drawn inputs to [o, *state]; at_least is the ratio that is asked for."""

    name: str
    draw: Callable[[], Tensors]
    loop: Run
    chunked: Run
    at_least: float | None


def draw_gated() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    return {
        "q": F.normalize(normal(B, T, H, D), dim=-1),
        "k": F.normalize(normal(B, T, H, D), dim=-1),
        "v": normal(B, T, H, D),
        "log_decay": F.logsigmoid(normal(B, T, H) + 4.0),
        "beta": normal(B, T, H).sigmoid(),
    }


def draw_mlstm() -> Tensors:
    drawn = draw_gated()
    log_beta = torch.logit(drawn.pop("beta"))
    return {**drawn, "log_beta": log_beta}


def draw_mesa() -> Tensors:
    return {**draw_gated(), "regularizer": torch.ones(H, D)}


def matrix_state(form: Callable[..., tuple[Tensor, Tensor]]) -> Run:
    return lambda inputs: list(form(**inputs, state=torch.zeros(B, H, D, D)))


def normalised_state(form: Callable[..., tuple[Tensor, mlstm.MLSTMState]]) -> Run:
    def run(inputs: Tensors) -> list[Tensor]:
        o, state = form(**inputs, state=mlstm.MLSTMState(torch.zeros(B, H, D, D), torch.zeros(B, H, D), torch.zeros(B, H)))
        return [o, state.G, state.z]

    return run


def two_states(form: Callable[..., tuple[Tensor, mesa.MesaState]]) -> Run:
    def run(inputs: Tensors) -> list[Tensor]:
        state = mesa.MesaState(torch.zeros(B, H, D, D), torch.zeros(B, H, D, D), None)
        o, state = form(mesa.Inputs(**inputs), state=state)
        return [o, state.G, state.H]

    return run


TEN_STEPS = ConjugateGradients(max_steps=10, tolerance=0.0, stop="right_hand_side", initial="diagonal", gradient="implicit")

OPS = [
    Op(
        "decayed linear attention",
        draw_gated,
        matrix_state(decayed_linear_attention.recurrent),
        matrix_state(partial(decayed_linear_attention.chunked, chunk_size=32)),
        10.0,
    ),
    Op(
        "gated delta rule",
        draw_gated,
        matrix_state(delta_rule.recurrent),
        matrix_state(partial(delta_rule.chunked, chunk_size=32)),
        10.0,
    ),
    Op(
        "mlstm",
        draw_mlstm,
        normalised_state(mlstm.recurrent),
        normalised_state(partial(mlstm.chunked, chunk_size=32)),
        None,
    ),
    # The loop solves every token by batched `cholesky` and `cholesky_solve`.
    Op(
        "mesa, 10 steps",
        draw_mesa,
        two_states(mesa.recurrent),
        two_states(partial(mesa.chunked, solver=TEN_STEPS, chunk_size=32)),
        12.0,
    ),
]


def train_ms(run: Run, inputs: Tensors) -> float:
    """Milliseconds of one forward and backward pass."""
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    begin = time.perf_counter()
    loss = sum(y.sum() for y in run(leaves))
    torch.autograd.grad(loss, list(leaves.values()))
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"B={B} T={T} H={H} K=V={D}, forward + backward, {options.threads} threads, median of {options.repeats}")
    print(f"{'op':<26}{'loop [ms]':>10}{'chunked [ms]':>14}{'ratio':>8}{'asked':>8}")
    for op in OPS:
        inputs = op.draw()
        train_ms(op.chunked, inputs)
        times = [(train_ms(op.loop, inputs), train_ms(op.chunked, inputs)) for _ in range(options.repeats)]
        loop, chunked = (statistics.median(column) for column in zip(*times, strict=True))
        asked = "-" if op.at_least is None else f"{op.at_least:.0f}"
        print(f"{op.name:<26}{loop:>10.1f}{chunked:>14.1f}{loop / chunked:>8.1f}{asked:>8}")


if __name__ == "__main__":
    main()
