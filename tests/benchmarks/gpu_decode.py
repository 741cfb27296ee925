"""How long a token takes to decode with a 433M model, beside the bytes that it has to move: tables in Markdown.

    python -m tests.benchmarks.gpu_decode [--out FILE.json] [--batches 1 16 64] [--prompts 512 2048] [--cases ...] [--dry-run]

Size 400m with a vocabulary of 50,304, weights in bfloat16, states in float32, random weights and prompts; every step is
compiled (--no-compile: is not) and captured as a CUDA graph, as in models/generation.py. The cases take turns in one
process and medians are compared. Counted are the bytes of the weights, read once, of an RNN's state, read and written,
and of the keys and values seen; the floor is their time at the bandwidth of a copy, measured here. Ratios are to Gated
DeltaNet. --dry-run does the same on a CPU with toy sizes, uncompiled, which says nothing of speed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from models.backbone.generation import captured, compile_step, draw, narrow
from models.backbone.language_model import LanguageModel
from models.backends import obstacle
from models.build import build_model
from models.mixer import State
from suite.request.compose import compose_one

FIXED = ("model.mixer.solver.tolerance=0.0",)
# Name: model, backend on a GPU, overrides.
CASES = {
    "gated_deltanet": ("gated_deltanet", "fla", ()),
    "mesanet 1e-4": ("mesanet", "triton", ("model.mixer.solver.tolerance=1e-4", "model.mixer.solver.max_steps=30")),
    "mesanet 5 steps": ("mesanet", "triton", (*FIXED, "model.mixer.solver.max_steps=5")),
    "mesanet 30 steps": ("mesanet", "triton", (*FIXED, "model.mixer.solver.max_steps=30")),
    "transformer": ("transformer", "torch", ()),
    "gated_deltanet by torch": ("gated_deltanet", "torch", ()),
}
REFERENCE = "gated_deltanet"
TOY = ("size.num_blocks=2", "size.d_model=64", "size.num_heads=2", "size.head_dim=32", "size.mlp_dim=128")
COPIED_BYTES = 2**31
# Tokens between two looks at the clock: replays follow each other, as in `generate`.
TOKENS_AT_ONCE = 10
# What can go wrong in one case while the others are worth measuring.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError)


@dataclass(frozen=True)
class Row:
    """One case at one batch and prompt: medians and spread (quartiles) over the repeats, or what failed."""

    case: str
    backend: str
    batch: int
    prompt: int
    gigabytes: float = float("nan")
    milliseconds: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    floor_milliseconds: float = float("nan")
    time_ratio: float = float("nan")
    bytes_ratio: float = float("nan")
    failure: str = ""


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written both counted."""
    source = torch.zeros((COPIED_BYTES if device.type == "cuda" else 2**24) // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(20)]
    return 2 * source.numel() * 4 / statistics.median(times[5:])


def build(case: str, options: argparse.Namespace, device: torch.device) -> tuple[LanguageModel, str]:
    """The model in bfloat16 and the backend that computes it."""
    name, backend, overrides = CASES[case]
    size = ("size=tiny", *TOY) if options.dry_run else ("size=400m",)
    config = compose_one([f"model={name}", *size, *overrides]).config
    backend = "torch" if options.dry_run else backend
    reason = obstacle(backend, device.type)
    if reason is not None:
        raise ValueError(f"backend {backend} can't run here: {reason}")
    with torch.device("meta"):
        model = build_model(config.model, config.size, vocab_size=options.vocab_size, backend=backend)
    model = model.to_empty(device=device)
    model.reset_parameters(0)
    narrow(model.eval(), torch.bfloat16)
    return model, backend


def moved_bytes(model: LanguageModel, state: list[State], prompt: int) -> int:
    """The bytes of one step after the prompt: weights read, what an RNN holds read and written, keys and values seen read."""
    moved = sum(p.numel() * p.element_size() for p in model.parameters())
    for block in state:
        if "cache" in block:
            cache = block["cache"]
            moved += cache.numel() // cache.shape[3] * (prompt + 1) * cache.element_size()
        else:
            moved += 2 * sum(x.numel() * x.element_size() for x in block.values())
    return moved


@torch.no_grad()
def prepared(model: LanguageModel, batch: int, prompt: int, options: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """A greedy step after a random prompt, as a graph where there is a GPU, and the bytes that it moves."""
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(0)
    tokens = torch.randint(options.vocab_size, (batch, prompt), generator=generator, device=device)
    features, state = model.features(tokens)
    # One token is for the warm-up of the graph.
    state = model.reserve(state, (options.repeats + 1) * TOKENS_AT_ONCE + 1)
    token = model.head(features[:, -1]).argmax(-1)
    del features

    @torch.no_grad()
    def advance() -> None:
        token.copy_(draw(model.step_(token, state), temperature=0.0, top_k=None, generator=generator))

    moved = moved_bytes(model, state, prompt)
    if device.type != "cuda":
        return advance, moved
    return captured(advance, [token, *(x for block in state for x in block.values())], generator), moved


def measure(batch: int, prompt: int, options: argparse.Namespace, device: torch.device, bandwidth: float) -> list[Row]:
    """All cases at one batch and prompt, in turn."""
    # What is compiled is for these sizes alone, and torch keeps only so many.
    torch._dynamo.reset()
    steps, rows = {}, []
    for case in options.cases:
        begin = time.perf_counter()
        try:
            model, backend = build(case, options, device)
            if options.compile and not options.dry_run:
                compile_step(model)
            steps[case] = (*prepared(model, batch, prompt, options), backend)
        except FAILURES as error:
            rows.append(Row(case, CASES[case][1], batch, prompt, failure=f"{type(error).__name__}: {error}"[:300]))
        print(f"<!-- {case}, batch {batch}, prompt {prompt}: prepared in {time.perf_counter() - begin:.0f} s -->", flush=True)
    times: dict[str, list[float]] = {case: [] for case in steps}
    for i in range(options.repeats + 1):
        for case, (advance, _, _) in steps.items():
            seconds = seconds_of(lambda advance=advance: [advance() for _ in range(TOKENS_AT_ONCE)], device)
            if i > 0:
                times[case].append(1e3 * seconds / TOKENS_AT_ONCE)
    medians = {case: statistics.median(each) for case, each in times.items()}
    for case, (_, moved, backend) in steps.items():
        low, _, high = statistics.quantiles(times[case], n=4)
        both = (float("nan"), float("nan"))
        if REFERENCE in steps:
            both = (medians[case] / medians[REFERENCE], moved / steps[REFERENCE][1])
        floor = 1e3 * moved / bandwidth
        rows.append(Row(case, backend, batch, prompt, moved / 1e9, medians[case], low, high, floor, *both))
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| case | backend | batch | prompt | GB a token | ms a token (quartiles) | floor ms | time / floor "
        "| time ratio | bytes ratio | time ratio / bytes ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r.failure:
            lines.append(f"| {r.case} | {r.backend} | {r.batch} | {r.prompt} | {r.failure.splitlines()[0]} | | | | | | |")
            continue
        lines.append(
            f"| {r.case} | {r.backend} | {r.batch} | {r.prompt} | {r.gigabytes:.3f} | {r.milliseconds:.3f} "
            f"({r.low:.3f} to {r.high:.3f}) | {r.floor_milliseconds:.3f} | {r.milliseconds / r.floor_milliseconds:.2f} "
            f"| {r.time_ratio:.2f} | {r.bytes_ratio:.2f} | {r.time_ratio / r.bytes_ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--vocab-size", type=int, default=50_304)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.dry_run:
        options.batches, options.prompts, options.repeats, options.vocab_size = [1, 2], [16], 2, 256
    device = torch.device("cpu" if options.dry_run else "cuda")
    bandwidth = copy_bandwidth(device)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}, ", end="")
    print(f"copy {bandwidth / 1e12:.2f} TB/s, {'compiled' if options.compile and not options.dry_run else 'not compiled'}\n")
    rows: list[Row] = []
    for batch in options.batches:
        for prompt in options.prompts:
            rows += measure(batch, prompt, options, device, bandwidth)
            gc.collect()
            if options.out is not None:
                whole = {"copy_bytes_per_second": bandwidth, "rows": [asdict(row) for row in rows]}
                options.out.write_text(json.dumps(whole, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
