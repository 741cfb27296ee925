"""How long every solver of the Mesa layer takes to 1e-4, on keys and gates from easy to hard: a table in Markdown.

    python -m tests.benchmarks.solver_speed [--threads 2] [--repeats 5] [--chunk-size 32] [--dim 64]

Forward and backward in float32 at T=1024 and eight heads. Times are multiples of what conjugate gradients take; the
solvers take turns in one process, and medians are compared, so what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from models.ops import mesa
from models.ops.solvers import SOLVERS, Solver, SolverSettings, build_solver
from tests.models.ops.solvers.solver_cases import Case, draw_case

T, HEADS = 1024, 8
CASES = [
    Case(keys, gate_logit, "random")
    for keys, gate_logit in (
        ("random", 0.0),
        ("random", 2.0),
        ("random", 4.0),
        ("random", 6.0),
        ("low_rank", 6.0),
        ("repeated", 9.0),
        ("anisotropic", 9.0),
    )
]
SETTINGS = {"max_steps": 1000, "tolerance": 1e-4, "stop": "right_hand_side", "initial": "diagonal", "gradient": "implicit"}


def draw_heads(case: Case, dim: int) -> dict[str, Tensor]:
    """HEADS heads of the case in float32, no two of them alike."""
    heads = [draw_case(case, length=T, dim=dim, seed=seed) for seed in range(HEADS)]
    axis = {"regularizer": 0, "G": 1, "H": 1}
    return {name: torch.cat([head[name] for head in heads], dim=axis.get(name, 2)).float() for name in heads[0]}


def arguments(inputs: dict[str, Tensor], solver: Solver, chunk_size: int) -> dict:
    rest = {name: x for name, x in inputs.items() if name not in ("G", "H")}
    state = mesa.MesaState(inputs["G"], inputs["H"], None)
    return {**rest, "state": state, "solver": solver, "chunk_size": chunk_size, "sign": None}


def train_ms(inputs: dict[str, Tensor], solver: Solver, chunk_size: int) -> float:
    """Milliseconds of one forward and backward pass."""
    leaves = {name: x.requires_grad_() for name, x in inputs.items() if name not in ("G", "H")}
    begin = time.perf_counter()
    o, _ = mesa.chunked(**arguments({**inputs, **leaves}, solver, chunk_size))
    torch.autograd.grad(o.sum(), list(leaves.values()))
    return 1e3 * (time.perf_counter() - begin)


def row(case: Case, options: argparse.Namespace) -> list[str]:
    inputs = draw_heads(case, options.dim)
    solvers = [build_solver(SolverSettings.read({"name": name, **SETTINGS})) for name in SOLVERS]
    times = [[train_ms(inputs, solver, options.chunk_size) for solver in solvers] for _ in range(options.repeats + 1)]
    # The first round warms up.
    medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    traces = [mesa.trace(**arguments(inputs, solver, options.chunk_size), spectrum=False) for solver in solvers]
    steps = [f"{trace.steps.double().mean():.1f} / {trace.steps.max()}" for trace in traces]
    cells = [f"{ms / medians[0]:.2f} ({used})" for ms, used in zip(medians, steps, strict=True)]
    decay = inputs["log_decay"].unflatten(1, (-1, options.chunk_size)).sum(2).exp().mean()
    return [f"{case.keys}, logit {case.gate_logit:.0f}", f"{decay:.2g}", f"{medians[0]:.0f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"T={T}, {HEADS} heads, K=V={options.dim}, chunks of {options.chunk_size}, {options.threads} threads, to 1e-4;")
    print("in brackets the steps of a token, mean / most (0 for an exact solver).\n")
    header = ["keys and gates", "decay over a chunk", "cg [ms]", *SOLVERS]
    print(" | ".join(["", *header, ""]).strip())
    print("|".join(["", *["---"] * len(header), ""]))
    for case in CASES:
        print(" | ".join(["", *row(case, options), ""]).strip(), flush=True)


if __name__ == "__main__":
    main()
