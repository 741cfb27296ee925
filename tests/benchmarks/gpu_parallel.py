"""One run on one GPU and on several, through the command line: losses, tokens a second, memory and checkpoints.

    python -m tests.benchmarks.gpu_parallel [--gpus 2] [--models mesanet gated_deltanet transformer] [--steps 50] [--dry-run]

The models of size 400m (382 million parameters, with bytes as tokens) are trained on made-up text: batches of
16 x 2,048, bfloat16, compiled, 8 sequences at a time on every GPU. Three arms a model: a plain command, then torchrun with
compute=ddp and with compute=fsdp. A row of JSON is printed as soon as an arm is done:

    loss_difference   the largest relative difference of a step's loss from the plain command's; to be below 1e-3
    tokens_per_second over the last half of the steps, without the one after a checkpoint; ratio: to the plain command's
    memory_gib        the most that any GPU held, as nvidia-smi sees it (the allocator's cache included)
    stall_seconds     what the checkpoint after two thirds of the steps held the training up
    checkpoint_gib    its size on the disk

Kernels and graphs are compiled in the first arm of a model, which takes a minute or two; the other arms find many of them again.
--dry-run: tiny models in gloo processes on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("single", "ddp", "fsdp")
# As many losses are averaged in a line of the log.
LOGGED_OVER = 20
WORDS = 4096
FULL = ("size=400m", "task.seq_len=2048", "train.batch_size=16", "train.autocast=bfloat16", "compute.micro_batch=8")
TOY = ("size=tiny", "task.seq_len=64", "train.batch_size=4", "compute.device=cpu", "compute.micro_batch=2")


def made_up_text(path: Path, characters: int) -> None:
    """Words in random order, in short documents, so that a loss has something to fall by."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(WORDS)]
    lines, length = [], 0
    while length < characters:
        lines += [" ".join(draw.choices(words, k=200)), "<|endoftext|>"]
        length += len(lines[-2]) + len(lines[-1]) + 2
    path.write_text("\n".join(lines) + "\n")


def command(model: str, arm: str, options: argparse.Namespace, folder: Path) -> list[str]:
    request = [
        f"model={model}",
        "task=language",
        "data=text",
        f"data.path={folder / 'text.txt'}",
        *(TOY if options.dry_run else FULL),
        "task.max_validation_examples=16",
        f"train.steps={options.steps}",
        "train.warmup_steps=5",
        "train.lr=1e-3",
        f"compute={'gpu' if arm == 'single' else arm}",
        f"compute.compile={str(not options.dry_run and not options.eager).lower()}",
        f"compute.activation_checkpointing={options.activation_checkpointing}",
        "compute.log_seconds=0",
        "compute.checkpoint_seconds=1000000",
        f"compute.keep_every={saved_at(options.steps)}",
        "eval=none",
        f"paths.results={folder / arm}",
        f"paths.cache={folder / 'cache'}",
    ]
    if arm == "single":
        return [sys.executable, "-m", "suite", "run", *request]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={options.gpus}", "-m", "suite", "run", *request]


def saved_at(steps: int) -> int:
    return 2 * steps // 3


def losses_of(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The loss of every step, from means over the last LOGGED_OVER of them."""
    found: list[float] = []
    for n, line in enumerate(lines, 1):
        count = min(n, LOGGED_OVER)
        found.append(line["loss"] * count - sum(found[-(count - 1) :] if count > 1 else []))
    return found


@contextlib.contextmanager
def most_memory() -> Iterator[list[float]]:
    """The most memory in GiB that any GPU holds while the block runs, in a list of one; none where nvidia-smi is not there."""
    found, ended = list[float](), threading.Event()
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

    def watch() -> None:
        while not ended.wait(0.5):
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
            found[:] = [max([*found, *(float(each) / 1024 for each in said)])]

    watcher = threading.Thread(target=watch, daemon=True)
    if shutil.which(query[0]):
        watcher.start()
    try:
        yield found
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()


def called(words: Sequence[str], seconds: float) -> str | None:
    """Runs a command with all its processes; what it said at its end where it failed or took too long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"it took more than {seconds:g} s: {process.communicate()[1].strip()[-1000:]}"
    return said.strip()[-2000:] if process.returncode else None


def measured(model: str, arm: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[float]]:
    """A row, and the loss of every step."""
    with most_memory() as memory:
        failed = called(command(model, arm, options, folder), options.seconds)
    if failed is not None:
        return {"failed": failed}, []
    (run,) = (folder / arm / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    took = {line["step"]: line["seconds"] - before["seconds"] for before, line in zip(lines[:-1], lines[1:], strict=True)}
    behind = saved_at(options.steps) + 1
    steady = [seconds for step, seconds in took.items() if step > options.steps // 2 and step not in (behind, options.steps)]
    saved = sum(path.stat().st_size for path in (run / "checkpoint" / "kept").rglob("*") if path.is_file())
    row = {
        "tokens_per_second": lines[0]["tokens"] / statistics.median(steady),
        "memory_gib": max(memory, default=None),
        "stall_seconds": took[behind] - statistics.median(steady),
        "checkpoint_gib": saved / 2**30,
        "first_step_seconds": lines[0]["seconds"],
        "last_loss": losses_of(lines)[-1],
    }
    return row, losses_of(lines)


def rows(model: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    single: tuple[float, list[float]] | None = None
    for arm in options.arms:
        shutil.rmtree(folder / arm, ignore_errors=True)
        row, losses = measured(model, arm, options, folder)
        if arm == "single" and losses:
            single = row["tokens_per_second"], losses
        elif single is not None and losses:
            row["ratio"] = row["tokens_per_second"] / single[0]
            row["loss_difference"] = max(abs(a - b) / abs(a) for a, b in zip(single[1], losses, strict=True))
        yield {"model": model, "arm": arm, "gpus": 1 if arm == "single" else options.gpus, **row}
        # The weights of three arms would fill a small disk.
        shutil.rmtree(folder / arm, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["mesanet", "gated_deltanet", "transformer"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=280.0, help="the longest that an arm may take")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--activation-checkpointing", choices=("none", "blocks"), default="none")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_text(folder / "text.txt", 200_000 if options.dry_run else 8_000_000)
        for model in options.models:
            for row in rows(model, options, folder):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
