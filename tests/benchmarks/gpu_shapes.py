"""How fast the Mesa op is away from its favourite shape, beside fla's kernels and attention, and how far from what a GPU permits.

    python -m tests.benchmarks.gpu_shapes [--shapes A B ...] [--ops mesa fla_mesa ...] [--table] [--out FILE] [--dry-run]

SHAPES, in bfloat16: unit queries and keys, gates about a logit of 4, beta uniform in (0, 1), Lambda 0.25. Forward, and forward
and backward: medians of `triton.testing.do_bench`, and the most memory that both passes hold beyond their inputs. Every shape has
a process, after every op has been compiled in one of its own, all side by side. fla's Mesa comes first and has the launches that
fla tunes, in the shape's process as `quickly_tuned` says, or with --table those of the suite's table, which is fair to fla where
`python -m suite tune ops=mesa` measured them; our adapters, and the calls of fla's that they adapt, have the table's anyway.
Then the results, in Markdown:

    times fla     fla's Mesa of 30 steps by the op, both passes
    bare call     our adapter's both passes by those of the call of fla's that it adapts
    of roofline   the least time that both passes of Mesa could take, by what they take: the longer one of reading inputs and
                  writing outputs and gradients once (BYTES_A_SECOND, a copy on an H200), and of the products of a chunk with one
                  product with H + Lambda a solve (FLOPS_A_SECOND, large matrix products on an H200)

--dry-run: toy sizes on a CPU, by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.backends.fla_launches import as_fla_launches, pin
from tests.benchmarks.gpu_ops import (
    KEYS,
    LIMIT_SECONDS,
    Run,
    Shape,
    Tensors,
    both_passes,
    draw,
    fla_mesa,
    fla_op,
    leaves,
    machine,
    median_ms,
    softmax,
    torch_mesa,
    triton_mesa,
)
from tests.benchmarks.quick_tuning import quickly_tuned

SHAPES = {
    "A": Shape(16, 2048, 8, 128),
    "B": Shape(8, 3000, 16, 64),
    "C": Shape(64, 512, 16, 64),
    "D": Shape(1, 65536, 8, 128),
    "E": Shape(4, 8192, 8, 128),
}
TOY = {"A": Shape(2, 96, 2, 16)}
CHUNK = 64
BYTES_A_SECOND, FLOPS_A_SECOND = 4.3e12, 7.9e14


def bare(name: str, *gates: str) -> Run:
    """A call of fla's as its layers make it, from no state."""

    def run(x: Tensors) -> Tensor:
        from fla import ops

        pin()
        return getattr(ops, name)(x["q"], x["k"], x["v"], *(x[gate] for gate in gates), scale=1.0)[0]

    return run


class Op(NamedTuple):
    """adapts: the op whose kernels ours calls."""

    run: Run
    adapts: str | None


OPS = {
    # before a table of launches is handed to fla
    "fla_mesa": Op(fla_mesa(30), None),
    "mesa": Op(triton_mesa(30, 1e-4), None),
    "delta_rule": Op(fla_op("delta_rule", "beta"), adapts="fla_delta_rule"),
    "fla_delta_rule": Op(bare("chunk_gated_delta_rule", "log_decay", "beta"), None),
    "decayed_linear_attention": Op(fla_op("decayed_linear_attention", "beta"), adapts="fla_simple_gla"),
    "fla_simple_gla": Op(bare("chunk_simple_gla", "log_decay"), None),
    "attention": Op(softmax, None),
}
TOY_OPS = {"mesa": Op(torch_mesa(30, 1e-4), None), "attention": Op(softmax, None)}
MESA, PEER = "mesa", "fla_mesa"
MODULE = (sys.executable, "-m", "tests.benchmarks.gpu_shapes")


class Row(NamedTuple):
    """Milliseconds of the forward pass and of both, and GiB."""

    shape: str
    op: str
    forward_ms: float
    both_ms: float
    peak_gib: float | None


def inputs_of(shape: Shape, device: torch.device) -> Tensors:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    drawn = draw(shape, KEYS[0], device=device, dtype=dtype)
    uniform = torch.rand(drawn["beta"].shape, generator=torch.Generator().manual_seed(1))
    return leaves({name: drawn[name] for name in ("q", "k", "v", "log_decay", "regularizer")} | {"beta": uniform.to(device)})


def timed(name: str, op: Op, label: str, shape: Shape, device: torch.device) -> Row:
    inputs = inputs_of(shape, device)
    step = partial(both_passes, op.run, inputs, torch.randn_like(op.run(inputs)))
    step()
    peak = None
    if device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = (torch.cuda.max_memory_allocated() - held) / 2**30
    with torch.no_grad():
        forward = median_ms(lambda: op.run(inputs), device)
    return Row(label, name, forward, median_ms(step, device), peak)


def least_ms(shape: Shape) -> float:
    """Both passes of Mesa: q, k, v, o forward; q, k, v, o's gradient and those of q, k, v backward; products three times over."""
    B, T, H, D = shape
    tokens = B * T * H
    moved = tokens * D * 2 * (4 + 7)
    multiplied = 3 * tokens * 8 * D * (CHUNK + D)
    return 1e3 * max(moved / BYTES_A_SECOND, multiplied / FLOPS_A_SECOND)


def table(rows: Sequence[Row], ops: Mapping[str, Op], shapes: Mapping[str, Shape]) -> str:
    header = ["B, T, H, D", "op", "forward [ms]", "both passes [ms]", "peak [GiB]", "times fla", "bare call", "of roofline"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    both = {(row.shape, row.op): row.both_ms for row in rows}
    for row in rows:
        peer, adapted = both.get((row.shape, PEER)), both.get((row.shape, str(ops[row.op].adapts)))
        shown = {
            "times fla": f"{peer / row.both_ms:.2f}" if peer and row.op == MESA else "",
            "bare call": f"{row.both_ms / adapted:.2f}" if adapted else "",
            "of roofline": f"{least_ms(shapes[row.shape]) / row.both_ms:.2f}" if row.op == MESA else "",
        }
        place = ", ".join(f"{size:,}" for size in shapes[row.shape])
        peak = "" if row.peak_gib is None else f"{row.peak_gib:.2f}"
        lines.append([place, row.op, f"{row.forward_ms:.2f}", f"{row.both_ms:.2f}", peak, *shown.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@quickly_tuned()
def warm(name: str, shapes: Mapping[str, Shape]) -> None:
    """Both passes of an op at every shape, which leaves its kernels in the cache of files."""
    for shape in shapes.values():
        inputs = inputs_of(shape, torch.device("cuda"))
        both_passes(OPS[name].run, inputs, torch.ones_like(OPS[name].run(inputs)))
    torch.cuda.synchronize()


def compiled(names: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """Why an op can't be timed, of those that can't; all are tried side by side, with these words of the command."""
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = {name: subprocess.Popen([*MODULE, *words, "--warm", name], **pipes) for name in names}
    wrong = {}
    for name, process in started.items():
        try:
            _, said = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            wrong[name] = f"not ready after {LIMIT_SECONDS} s"
            continue
        if process.returncode:
            wrong[name] = (said.strip().splitlines() or [f"exit status {process.returncode}"])[-1][:160]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--table", action="store_true", help="fla's Mesa has the launches of the suite's table, too")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--warm", choices=OPS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = {label: SHAPES[label] for label in options.shapes}
    passed = ["--table"] * options.table
    if options.table and not options.dry_run and (options.warm or options.measure):
        pin()
    if options.warm:
        warm(options.warm, shapes)
        return
    ops = {name: op for name, op in OPS.items() if name in options.ops}
    device, toys = torch.device("cuda"), list[str]()
    if options.dry_run:
        device, toys, ops, shapes = torch.device("cpu"), ["--dry-run"], TOY_OPS, TOY
    if options.measure:
        with nullcontext() if options.dry_run else quickly_tuned():
            for label, shape in shapes.items():
                for name, op in ops.items():
                    with as_fla_launches() if name.startswith("fla_") else nullcontext():
                        row = timed(name, op, label, shape, device)
                    print(json.dumps(row._asdict()), flush=True)
        return
    wrong = {} if options.dry_run else compiled(list(ops), ["--shapes", *shapes, *passed])
    for name, why in wrong.items():
        print(f"{name} is left out: {why}", flush=True)
    rows: list[Row] = []
    for label in shapes:
        words = ["--shapes", label, "--measure", *toys, *passed, "--ops", *(name for name in ops if name not in wrong)]
        done = subprocess.run([*MODULE, *words], stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="", flush=True)
        rows += [Row(**json.loads(line)) for line in done.stdout.splitlines()]
        if options.out:
            options.out.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    print(f"\n{machine(device)}\n\n{table(rows, ops, shapes)}")


if __name__ == "__main__":
    main()
