"""How many times faster the chunked form of every op trains than an honest loop over time: a table in Markdown.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.ops_speed [--threads 1 2] [--seconds 15] [--ops NAME ...]

A cell is the ratio forward and backward, and forward alone in brackets. Both forms take turns in one process for that many
seconds and the least time of each counts, since everything else that the machine does only adds to it: that of the processor
with one thread, that of the clock with more. Threads that wait for others are to sleep: where they spin, and other processes want
the cores, a barrier takes as long as the other's turn.

Gradients that arrive are random numbers: that of a sum is one number, held once, which products of many matrices take one by
one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import (
    decayed_linear_attention,
    delta_rule,
    diagonal_plus_low_rank,
    generalized_delta_rule,
    gla,
    log_linear_delta_rule,
    mesa,
    mlstm,
    momentum_delta_rule,
    path_attention,
    rglru,
    ssd,
)
from models.ops.solvers import Chebyshev, Cholesky, ConjugateGradients, PreconditionedConjugateGradients, Solver


class Shape(NamedTuple):
    """B sequences of T tokens, H heads of D key and value dims."""

    B: int
    T: int
    H: int
    D: int

    def __str__(self) -> str:
        return f"{self.B} x {self.T} x {self.H} x {self.D}"


SHAPES = Shape(4, 1024, 4, 64), Shape(8, 256, 4, 32), Shape(1, 2048, 4, 16)

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], list[Tensor]]


class Forms(NamedTuple):
    """The drawn inputs, and both forms, which map them to [o, *state]."""

    inputs: Tensors
    loop: Run
    chunked: Run


class Draw:
    """Inputs of a shape, as layers make them: keys of unit length, gates that forget a few per cent a token."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self._generator = shape, torch.Generator().manual_seed(0)

    def normal(self, *last: int, steps: int = 1) -> Tensor:
        B, T, H, _ = self.shape
        return torch.randn(B, steps * T, H, *last, generator=self._generator)

    def key(self, steps: int = 1) -> Tensor:
        return F.normalize(self.normal(self.shape.D, steps=steps), dim=-1)

    def value(self, steps: int = 1) -> Tensor:
        return self.normal(self.shape.D, steps=steps)

    def log_decay(self, *last: int) -> Tensor:
        return F.logsigmoid(self.normal(*last) + 4.0)

    def gate(self, *last: int, steps: int = 1) -> Tensor:
        return self.normal(*last, steps=steps).sigmoid()

    def state(self, *sizes: int) -> Tensor:
        return torch.zeros(self.shape.B, self.shape.H, *(sizes or (self.shape.D, self.shape.D)))

    def gated(self) -> Tensors:
        return {"q": self.key(), "k": self.key(), "v": self.value(), "log_decay": self.log_decay(), "beta": self.gate()}


def forms(module: Any, chunk_size: int, inputs: Tensors, **rest: Any) -> Forms:
    """Both forms of an op that takes its inputs by name; what is in `rest` has no gradient."""

    def run(form: Callable[..., Any], given: Tensors) -> list[Tensor]:
        o, state = form(**given, **rest)
        # A state of several tensors; what has no gradient, such as mLSTM's m, is left out.
        parts = [state] if isinstance(state, Tensor) else [x for x in state if x is not None and (x.requires_grad or x.ndim > 3)]
        return [o, *parts]

    return Forms(inputs, partial(run, module.recurrent), partial(run, partial(module.chunked, chunk_size=chunk_size)))


def linear(draw: Draw) -> Forms:
    return forms(decayed_linear_attention, 32, draw.gated(), state=draw.state())


def mamba2(draw: Draw) -> Forms:
    shared = {name: draw.key()[:, :, :1].clone() for name in ("q", "k")}
    gates = {"dt": F.softplus(draw.normal() - 3.0), "A": -torch.rand(draw.shape.H)}
    return forms(ssd, 32, {**shared, "v": draw.value(), **gates}, starts=None, state=draw.state())


def mlstm_cell(draw: Draw) -> Forms:
    inputs = {**draw.gated(), "log_beta": draw.normal()}
    del inputs["beta"]
    state = mlstm.MLSTMState(draw.state(), draw.state(draw.shape.D), draw.state(1).squeeze(-1))
    return forms(mlstm, 32, inputs, state=state)


def gated_linear(draw: Draw) -> Forms:
    inputs = {"q": draw.key(), "k": draw.key(), "v": draw.value(), "log_decay": draw.log_decay(draw.shape.D)}
    return forms(gla, 16, inputs, state=draw.state())


def gated_delta(draw: Draw) -> Forms:
    return forms(delta_rule, 32, draw.gated(), state=draw.state())


def generalized(draw: Draw, *, channels: bool, gates: tuple[int, ...], steps: int = 1) -> Forms:
    """gates: the last size of `erase` and `write`, where one gate and one key is handed over twice if there is one size."""
    inputs = {"q": draw.key(), "u": draw.value(steps), "log_decay": draw.log_decay(*([draw.shape.D] if channels else []))}
    inputs |= {"e": draw.key(steps), "erase": draw.gate(gates[0], steps=steps)}
    if len(gates) > 1:
        inputs |= {"a": draw.key(steps), "write": draw.gate(gates[1], steps=steps)}
    module = generalized_delta_rule

    def run(form: Callable[..., Any], given: Tensors) -> list[Tensor]:
        return [*form(**{"a": given["e"], "write": given["erase"], **given}, state=draw.state())]

    chunked = partial(module.chunked, chunk_size=32 // steps)
    return Forms(inputs, partial(run, module.recurrent), partial(run, chunked))


def rwkv7(draw: Draw) -> Forms:
    log_decay, key = -0.6065 * draw.gate(draw.shape.D), draw.key()
    inputs = {"q": draw.key(), "k": draw.key(), "v": draw.value(), "log_decay": log_decay}
    inputs |= {"e": key * log_decay.exp(), "a": key * draw.gate(1)}
    return forms(diagonal_plus_low_rank, 16, inputs, state=draw.state(), floor=-0.6065)


def log_linear(draw: Draw) -> Forms:
    levels = log_linear_delta_rule.num_levels(draw.shape.T)
    inputs = {**draw.gated(), "weights": F.softplus(draw.normal(levels))}
    state, positions = draw.state(levels, draw.shape.D, draw.shape.D), torch.arange(draw.shape.T).expand(draw.shape.B, -1)
    return forms(log_linear_delta_rule, 32, inputs, positions=positions, state=state)


def momentum(draw: Draw) -> Forms:
    inputs = {**draw.gated(), "p": draw.key(), "log_momentum": F.logsigmoid(draw.normal())}
    return forms(momentum_delta_rule, 32, inputs, state=momentum_delta_rule.MomentumState(draw.state(), draw.state()))


def path(draw: Draw) -> Forms:
    inputs = {"q": draw.key(), "k": draw.key(), "v": draw.value(), "w": draw.key(), "beta": 2.0 * draw.gate()}
    empty = draw.state(0, draw.shape.D)
    rest = {
        "log_forget": None,
        "span": torch.arange(draw.shape.T).unsqueeze(0),
        "cache": path_attention.Cache(empty, empty, None),
    }
    return forms(path_attention, 64, inputs, **rest)


def diagonal(draw: Draw) -> Forms:
    inputs = {"log_decay": draw.log_decay(draw.shape.D).flatten(2), "u": draw.value().flatten(2)}
    return forms(rglru, 16, inputs, state=draw.state(draw.shape.D).flatten(1))


def solved(draw: Draw, solver: Solver) -> Forms:
    """Mesa, whose loop solves every token by batched `cholesky` and `cholesky_solve`."""
    inputs = {**draw.gated(), "regularizer": torch.ones(draw.shape.H, draw.shape.D)}

    def run(form: Callable[..., Any], given: Tensors) -> list[Tensor]:
        o, state = form(mesa.Inputs(**given), state=mesa.MesaState(draw.state(), draw.state()))
        return [o, state.G, state.H]

    chunked = partial(mesa.chunked, solver=solver, chunk_size=32)
    return Forms(inputs, partial(run, mesa.recurrent), partial(run, chunked))


SETTINGS: dict[str, Any] = {"stop": "right_hand_side", "initial": "diagonal", "gradient": "implicit"}
TEN_STEPS = ConjugateGradients(max_steps=10, tolerance=0.0, **SETTINGS)
DIGITS: dict[str, Any] = {"max_steps": 1000, "tolerance": 1e-4, **SETTINGS}

OPS: dict[str, Callable[[Draw], Forms]] = {
    "decayed linear attention": linear,
    "mamba2": mamba2,
    "mlstm": mlstm_cell,
    "gla": gated_linear,
    "gated delta rule": gated_delta,
    "comba": partial(generalized, channels=False, gates=(1, 1)),
    "kda": partial(generalized, channels=True, gates=(1,)),
    "gdn2": lambda draw: generalized(draw, channels=True, gates=(draw.shape.D, draw.shape.D)),
    "deltaproduct": partial(generalized, channels=False, gates=(1,), steps=2),
    "rwkv7": rwkv7,
    "log-linear delta rule": log_linear,
    "momentum delta rule": momentum,
    "path attention": path,
    "rg-lru": diagonal,
    "mesa, 10 steps": partial(solved, solver=TEN_STEPS),
    "mesa, cg to 1e-4": partial(solved, solver=ConjugateGradients(**DIGITS)),
    "mesa, preconditioned cg to 1e-4": partial(solved, solver=PreconditionedConjugateGradients(**DIGITS)),
    "mesa, chebyshev to 1e-4": partial(solved, solver=Chebyshev(**DIGITS)),
    "mesa, cholesky": partial(solved, solver=Cholesky()),
}


def timed(run: Run, inputs: Tensors, *, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    begin = clock()
    outputs = run(leaves)
    middle = clock()
    arriving = [torch.randn_like(y) for y in outputs]
    resumed = clock()
    torch.autograd.grad(outputs, list(leaves.values()), arriving)
    return middle - begin, middle - begin + clock() - resumed


def ratios(op: Forms, *, threads: int, seconds: float) -> tuple[float, float]:
    """How many times the loop's time is that of chunks, forward, and forward and backward."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    timed(op.chunked, op.inputs, clock=clock)
    loop, chunked, end = [], [], time.perf_counter() + seconds
    while not loop or time.perf_counter() < end:
        loop.append(timed(op.loop, op.inputs, clock=clock))
        chunked += [timed(op.chunked, op.inputs, clock=clock) for _ in range(2)]
    (forward, both), (forward_chunked, both_chunked) = (map(min, zip(*times, strict=True)) for times in (loop, chunked))
    return forward / forward_chunked, both / both_chunked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    options = parser.parse_args()
    columns = [(shape, threads) for shape in SHAPES for threads in options.threads]
    print(" | ".join(["| B x T x H x D:", *(f"{shape}, {threads} thr." for shape, threads in columns)]), "|")
    print("| --- |" + " ---: |" * len(columns))
    for name in options.ops:
        print(f"| {name} |", end="", flush=True)
        for shape, threads in columns:
            forward, both = ratios(OPS[name](Draw(shape)), threads=threads, seconds=options.seconds)
            print(f" {both:.1f} ({forward:.1f}) |", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
