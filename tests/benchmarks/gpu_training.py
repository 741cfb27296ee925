"""Training speed of the suite's own step on a GPU beside what others reach, the arms of a comparison in one process.

    python -m tests.benchmarks.gpu_training [--cases mesanet gated_deltanet transformer mqar] [--table] [--out FILE] [--dry-run]

mesanet, gated_deltanet: 24 blocks, d_model 1024, MLP 2816, vocabulary 32,000, batches of 16 x 2,048 and heads of 128, 8 of
them or 6, against the models of flash-linear-attention of that shape. Those have a head beside their embedding, ours one
matrix for both: 32.8 million parameters fewer at the same products a token. --mlp-dim 3264 makes up for it. fla's Gated
DeltaNet comes with an output gate, which ours does not have, so it is measured without it, too. fla's kernels that
ours calls, too, have the launches of the suite's table by then, and with --table so have all that the table knows, which is
fair to fla where `python -m suite tune` measured them; all others are tuned in fla's warm-up, as `quickly_tuned` says.
transformer: 433 million parameters (28 blocks, MLP 3072, vocabulary 50,304) against plain PyTorch, compiled as a whole.
mqar: steps a second of 2 blocks, d_model 64, MLP 128, vocabulary 8,192, batches of 256 x 64 with 8 pairs; eager, compiled and
captured, from one batch and from the task's own: 100,000
examples, drawn before the clock starts, and compiled and captured from examples without end, drawn as they are read.

All under bfloat16 autocast with float32 weights, with clipping and fused AdamW. A number is the median over groups of steps
after a warm-up; each group begins and ends with nothing under way. A case runs in a process of its own: one that fails is
reported, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Rotation, rotate, rotation
from models.backends.fla_launches import as_fla_launches, pin
from models.build import build_model
from suite.compute.acceleration import accelerate, training_step
from suite.compute.optimization import build_optimizer, learning_rate, set_learning_rate
from suite.compute.parallel import alone
from suite.compute.scoring import TrainingInputs
from suite.compute.settings import Compute
from suite.compute.step import Step
from suite.plan import plan, task_of
from suite.request.compose import compose_one
from suite.running.batches import Parts, batches
from suite.running.health import Readings
from suite.saved import new_model
from tests.benchmarks.quick_tuning import quickly_tuned

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
Row = dict[str, Any]


class Shape(NamedTuple):
    """The sizes of a language model and its batches."""

    num_blocks: int
    d_model: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    batch_size: int
    seq_len: int


FLA_SHAPE = Shape(24, 1024, 8, 128, 2816, 32_000, 16, 2048)
SHAPES = {
    "mesanet": FLA_SHAPE,
    "gated_deltanet": FLA_SHAPE._replace(num_heads=6),
    "transformer": Shape(28, 1024, 8, 128, 3072, 50_304, 16, 2048),
}
TOY = Shape(2, 64, 2, 32, 96, 97, 2, 64)
BACKENDS = {"mesanet": "triton", "gated_deltanet": "fla", "transformer": "torch"}


class Groups(NamedTuple):
    """How often is measured: `groups` times `steps` steps, after `warm_up` of them."""

    warm_up: int
    steps: int
    groups: int


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(take: Callable[[], object], groups: Groups) -> Row:
    """Seconds of the warm-up, which compiles; the median milliseconds a step and their range; peak memory."""
    began = time.perf_counter()
    for _ in range(groups.warm_up):
        take()
    wait()
    warm_up_seconds = time.perf_counter() - began
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = []
    for _ in range(groups.groups):
        began = time.perf_counter()
        for _ in range(groups.steps):
            take()
        wait()
        milliseconds.append(1e3 * (time.perf_counter() - began) / groups.steps)
    return {
        "ms": statistics.median(milliseconds),
        "ms_least": min(milliseconds),
        "ms_most": max(milliseconds),
        "warm_up_seconds": warm_up_seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if CUDA else None,
    }


def language_row(arm: str, parameters: int, shape: Shape, measured: Row) -> Row:
    tokens_per_second = 1e3 * shape.batch_size * shape.seq_len / measured["ms"]
    return {"arm": arm, "parameters": parameters, "tokens_per_second": tokens_per_second, **measured}


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def random_tokens(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocab_size, (shape.batch_size, shape.seq_len + 1), generator=generator)


def suite_arm(name: str, backend: str, shape: Shape, groups: Groups, *, compute: Row, arm: str) -> Row:
    """The suite's own model and step."""
    sizes = ("num_blocks", "d_model", "num_heads", "head_dim", "mlp_dim")
    overrides = [f"model={name}", "size=400m", "train.autocast=bfloat16", *(f"size.{key}={getattr(shape, key)}" for key in sizes)]
    composed = compose_one(overrides)
    config, computed = composed.config, composed.compute.replace(compute)
    with torch.device("meta"):
        model = build_model(config.model, config.size, vocab_size=shape.vocab_size, backend=backend)
    model.to_empty(device=DEVICE)
    model.reset_parameters(0)
    optimizer = build_optimizer(model, config.train)
    accelerate(model, computed)
    step = training_step(model, optimizer, config.train, computed, flops=float("inf"))
    tokens = random_tokens(shape)
    inputs = TrainingInputs(tokens[:, :-1].contiguous(), tokens[:, 1:].flatten(), None, None)
    if CUDA:
        inputs = inputs.map(Tensor.pin_memory)
    return language_row(arm, count_parameters(model), shape, timed(partial(step, inputs), groups))


def plain_step(model: nn.Module, cost: Callable[[], Tensor]) -> None:
    """What any training loop does."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = cost()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    model.optimizer.step()
    model.optimizer.zero_grad(set_to_none=True)


def fla_arm(name: str, shape: Shape, groups: Groups, *, arm: str, settings: Row) -> Row:
    """The model of flash-linear-attention, with these settings in place of its own."""
    from fla import models

    shared = {
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.num_blocks,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.seq_len,
        "num_heads": shape.num_heads,
        "head_dim": shape.head_dim,
        "use_cache": False,
        **settings,
    }
    if name == "mesanet":
        model = models.MesaNetForCausalLM(models.MesaNetConfig(**shared))
    else:
        model = models.GatedDeltaNetForCausalLM(models.GatedDeltaNetConfig(expand_v=1, **shared))
    model = model.to(DEVICE)
    model.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = random_tokens(shape)[:, :-1].to(DEVICE)
    with quickly_tuned():
        measured = timed(partial(plain_step, model, lambda: model(input_ids=tokens, labels=tokens).loss), groups)
    return language_row(arm, count_parameters(model), shape, measured)


class PlainBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.num_heads * shape.head_dim
        self.num_heads = shape.num_heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(shape.d_model), nn.RMSNorm(shape.d_model)
        self.query_key_value = nn.Linear(shape.d_model, 3 * width, bias=False)
        self.mixed = nn.Linear(width, shape.d_model, bias=False)
        self.gate, self.up = (nn.Linear(shape.d_model, shape.mlp_dim, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.mlp_dim, shape.d_model, bias=False)
        positions = torch.arange(shape.seq_len).unsqueeze(0)
        turn = rotation(positions, key_dim=shape.head_dim, base=10_000.0, dtype=torch.float32)
        self.register_buffer("cos", turn.cos)
        self.register_buffer("sin", turn.sin)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k = (rotate(y, Rotation(self.cos, self.sin)) for y in (q, k))
        o = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True)
        x = x + self.mixed(o.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PlainTransformer(nn.Module):
    """The loss of a transformer as one would write it, with all its logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.Sequential(*(PlainBlock(shape) for _ in range(shape.num_blocks)))
        self.norm = nn.RMSNorm(shape.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(self.norm(self.blocks(self.embedding(tokens))), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_arm(shape: Shape, groups: Groups) -> Row:
    model = PlainTransformer(shape).to(DEVICE)
    model.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    form = torch.compile(model) if CUDA else model
    tokens = random_tokens(shape).to(DEVICE)
    measured = timed(partial(plain_step, model, lambda: form(tokens[:, :-1], tokens[:, 1:])), groups)
    return language_row("plain PyTorch, compiled", count_parameters(model), shape, measured)


def language_case(name: str, options: argparse.Namespace) -> Iterator[Row]:
    shape, groups = (TOY, Groups(2, 1, 3)) if options.dry_run else (SHAPES[name], Groups(5, 3, 7))
    if options.mlp_dim is not None:
        shape = shape._replace(mlp_dim=options.mlp_dim)
    backend = options.backend or (BACKENDS[name] if CUDA else "torch")
    plain = {"compile": False, "cuda_graph": False, "activation_checkpointing": "none"}
    yield suite_arm(name, backend, shape, groups, compute=plain | {"compile": CUDA}, arm=f"suite, {backend}{', compiled' * CUDA}")
    if name == "transformer":
        yield plain_arm(shape, groups)
    elif CUDA:
        if options.table:
            pin()
        arms: dict[str, dict[str, Any]] = {"fla": {}}
        if name == "gated_deltanet":
            arms["fla, no output gate"] = {"use_gate": False}
        for arm, settings in arms.items():
            with as_fla_launches():
                row = fla_arm(name, shape, groups, arm=arm, settings=settings)
            yield row
    if not options.no_eager:
        yield suite_arm(name, backend, shape, groups, compute=plain, arm=f"suite, {backend}, eager")


def mqar_case(options: argparse.Namespace) -> Iterator[Row]:
    request = [
        "model=transformer",
        "task=mqar",
        "task.seq_len=64",
        "task.num_pairs=[8]",
        "task.vocab_size=8192",
        "task.num_train=100000",
    ]
    request += ["size.mlp_dim=128", "train.autocast=bfloat16", "train.batch_size=256", "eval=none", "train.steps=100000"]
    toy = ["task.vocab_size=64", "train.batch_size=8"] if options.dry_run else []
    request = [*(each for each in request if each.split("=")[0] not in {t.split("=")[0] for t in toy}), *toy]
    (run,) = plan(request)
    groups = Groups(5, 2, 3) if options.dry_run else Groups(20, 200, 5)
    for compiled in (False, True) if CUDA else (False,):
        for captured in (False, True) if CUDA else (False,):
            arm = " ".join(["compiled" if compiled else "eager", *(["captured"] if captured else [])])
            compute = run.compute.replace({"compile": compiled, "cuda_graph": captured})
            yield from mqar_arm(run, compute, groups, arm)
    (endless,) = plan([*(each for each in request if "num_train" not in each), "task.num_train=null", "task.draws=distinct"])
    yield from mqar_arm(endless, endless.compute.replace({"compile": CUDA, "cuda_graph": CUDA}), groups, "without end")


def mqar_arm(run: Any, compute: Compute, groups: Groups, arm: str) -> Iterator[Row]:
    """The step alone on one batch, then the loop of training with the task's own batches."""
    model = new_model(run, DEVICE)
    optimizer = build_optimizer(model, run.config.train)
    accelerate(model, compute)
    step = training_step(model, optimizer, run.config.train, compute, flops=0.0)
    with closing(batches(run, task_of(run.config), range(100_000), world=alone(DEVICE))) as made:
        measured = timed(partial(step, *next(made)), groups)
        yield {"arm": arm, "steps_per_second": 1e3 / measured["ms"], **measured}
        loop = training_loop(run, step, optimizer, made)
        measured = timed(partial(next, loop), groups._replace(steps=max(1, groups.steps // 2)))
        yield {"arm": f"{arm}, with the task's data", "steps_per_second": 1e3 / measured["ms"], **measured}


def training_loop(run: Any, step: Step, optimizer: torch.optim.Optimizer, made: Iterator[Parts]) -> Iterator[None]:
    readings = Readings(DEVICE)
    for number, (inputs,) in enumerate(made):
        set_learning_rate(optimizer, learning_rate(number, run.config.train))
        readings.add(number, step(inputs))
        for _ in readings.read():
            pass
        yield


def run_case(options: argparse.Namespace) -> None:
    """Prints a line of JSON for every arm as soon as it is measured."""
    rows = mqar_case(options) if options.case == "mqar" else language_case(options.case, options)
    for row in rows:
        print(json.dumps({"case": options.case, **row}), flush=True)


def show(row: Row, first: Row | None) -> str:
    unit = "steps_per_second" if "steps_per_second" in row else "tokens_per_second"
    ratio = "" if first is None else f"   the first arm has {first[unit] / row[unit]:.2f} times that"
    size = f"{row['parameters'] / 1e6:.1f}M " if "parameters" in row else ""
    peak = "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} GiB"
    spread = f"{row['ms']:.2f} ms [{row['ms_least']:.2f}, {row['ms_most']:.2f}]"
    return f"  {row['arm']:<40}{size}{row[unit]:>12,.0f} {unit.replace('_', ' ')}  {spread}{peak}{ratio}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [*SHAPES, "mqar"]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--case", choices=cases, help="measure this one in the present process and print JSON lines")
    parser.add_argument("--backend", help="of the suite's linear RNNs, in place of the fastest")
    parser.add_argument("--mlp-dim", type=int, help="of the suite's arms, in place of the case's")
    parser.add_argument("--table", action="store_true", help="fla's models have the launches of the suite's table")
    parser.add_argument("--no-eager", action="store_true", help="leave out our arms of language models that are not compiled")
    parser.add_argument("--out", type=Path, help="write all rows as JSON")
    parser.add_argument("--seconds", type=int, default=500, help="the longest that a case may take")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on any device")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    if options.case is not None:
        run_case(options)
        return
    rows: list[Row] = []
    print(torch.cuda.get_device_name() if CUDA else "CPU", f"torch {torch.__version__}")
    for case in options.cases:
        print(case, flush=True)
        for row in measured_case(case, given, options.seconds):
            rows.append(row)
            # After every row: what was measured is there whatever becomes of the next.
            if options.out is not None:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measured_case(case: str, given: Sequence[str], seconds: int) -> Iterator[Row]:
    """The rows of a case from a process of its own, printed as they come; what went wrong stands beside the others."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_training", *given, "--case", case]
    first = None
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stdout=PIPE, stderr=errors, text=True) as process:
        limit = threading.Timer(seconds, process.kill)
        limit.start()
        try:
            for line in process.stdout:
                if line.startswith('{"case"'):
                    row = json.loads(line)
                    print(show(row, first), flush=True)
                    first = first or row
                    yield row
            process.wait()
        finally:
            # However this ends, nothing is left that holds the GPU.
            limit.cancel()
            process.kill()
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read().strip()
            print(f"  failed with status {process.returncode}: {said.splitlines()[-1:]}", flush=True)
            yield {"case": case, "error": said[-3000:]}


if __name__ == "__main__":
    main()
