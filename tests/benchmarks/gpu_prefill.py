"""How fast prompts are read by a 433M model, beside the forward pass of training: tables in Markdown.

    python -m tests.benchmarks.gpu_prefill [--batches 1 64] [--prompts 512 2048] [--cases ...] [--dry-run]

A prompt is read as `generate` reads one, weights in bfloat16, compiled and not, up to the logits of its last token. The forward
pass is that of `compute=gpu` and autocast to bfloat16: compiled blocks, without a loss, gradients or states. The three take turns
in one process, and medians are compared; 1.0 is asked of the ratio of the forward pass to the compiled prompt. --dry-run: toy
sizes on a CPU, by PyTorch, not compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone.generation import compile_prompts
from models.backbone.language_model import LanguageModel
from suite.compute.acceleration import accelerate
from suite.request.compose import compose_one
from tests.benchmarks.gpu_decode import CASES, build, seconds_of

NAMES = ("transformer", "gated_deltanet", "mesanet 1e-4")
REPEATS = 15


class Row(NamedTuple):
    """Medians in milliseconds."""

    case: str
    batch: int
    prompt: int
    compiled: float
    uncompiled: float
    forward: float


@torch.no_grad()
def read(model: LanguageModel, tokens: Tensor) -> None:
    features, _ = model.features(tokens)
    model.head(features[:, -1])


@torch.no_grad()
def pass_forward(model: LanguageModel, tokens: Tensor) -> None:
    with torch.autocast(tokens.device.type, torch.bfloat16):
        model.training_features(tokens, starts=None)


def forms(case: str, options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[Tensor], None]]:
    compiled, uncompiled, trained = (build(case, options, device)[0] for _ in range(3))
    trained.float()
    accelerate(trained, compose_one([f"compute.compile={str(not options.dry_run).lower()}"]).compute)
    if not options.dry_run:
        compile_prompts(compiled)
    return {
        "compiled": lambda tokens: read(compiled, tokens),
        "uncompiled": lambda tokens: read(uncompiled, tokens),
        "forward": lambda tokens: pass_forward(trained, tokens),
    }


def measured(case: str, batch: int, prompt: int, options: argparse.Namespace, device: torch.device) -> Row:
    begin = time.perf_counter()
    works = forms(case, options, device)
    tokens = torch.randint(options.vocab_size, (batch, prompt), generator=torch.Generator(device).manual_seed(0), device=device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(options.repeats + 2):
        for name, work in works.items():
            seconds = seconds_of(lambda work=work: work(tokens), device)
            # The first calls compile.
            if i == 1:
                print(f"<!-- {case}, {name}: ready after {time.perf_counter() - begin:.0f} s -->", flush=True)
            if i > 1:
                times[name].append(1e3 * seconds)
    return Row(case, batch, prompt, **{name: statistics.median(each) for name, each in times.items()})


def table(rows: list[Row]) -> str:
    header = ["case", "prompts", "tokens each", "compiled [ms]", "uncompiled [ms]", "training's forward pass [ms]", "ratio"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        times = [f"{each:.2f}" for each in (row.compiled, row.uncompiled, row.forward, row.forward / row.compiled)]
        lines.append([row.case, str(row.batch), f"{row.prompt:,}", *times])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--vocab-size", type=int, default=50_304)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.dry_run:
        options.batches, options.prompts, options.repeats, options.vocab_size = [1, 2], [16], 2, 256
    device = torch.device("cpu" if options.dry_run else "cuda")
    print(f"{'CPU' if options.dry_run else torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    rows: list[Row] = []
    for case in options.cases:
        for batch in options.batches:
            for prompt in options.prompts:
                rows.append(measured(case, batch, prompt, options, device))
                torch._dynamo.reset()
    print(table(rows))


if __name__ == "__main__":
    main()
