"""One run on one GPU and on several, through the command line: losses, tokens a second, memory and checkpoints.

    python -m tests.benchmarks.gpu_parallel [--gpus 2] [--models mesanet gated_deltanet transformer] [--steps 50] [--dry-run]
    python -m tests.benchmarks.gpu_parallel --killed [--gpus 2] [--dry-run]

The models of size 400m (433 million parameters; --size) are trained on made-up ids of GPT-2's vocabulary: batches of 16 x 2,048
(--batch-size), bfloat16 (--autocast), compiled, 8 sequences at a time on every GPU (--micro-batch), the rate rising to 2.5e-5
(--lr) as it does over the first 50 of the 2,000 steps in which the paper's recipes go to 1e-3. First the plain command of every
model, and that of the first one once more, side by side, each on a GPU of its own; then, one after another, torchrun with
compute=ddp and with compute=fsdp on all GPUs. A row of JSON is printed as soon as an arm is done:

    loss_difference   the largest relative difference of a step's loss from the plain command's; to be below 1e-3, and no
                      larger than that of the command made again, whose sums of gradients have no order either
    tokens_per_second over the last half of the steps, without the one after a checkpoint; ratio: to the plain command's
    mfu               of these steps
    memory_gib        the most that one GPU held, as nvidia-smi sees it (the allocator's cache included)
    stall_seconds     what the checkpoint after two thirds of the steps held the training up; a thread writes it meanwhile
    checkpoint_gib    its size on the disk

Kernels and graphs are compiled in the first arm of a model, which takes a minute or two; the other arms find many of them again.
--killed: a rank of a run of size 20m is killed by SIGKILL behind its first checkpoint; the run goes on on as many GPUs and, from
a copy of the store, on one, and their last losses are compared with those of a run that nobody killed.
--dry-run: tiny models in gloo processes on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from suite.results import Reader

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("ddp", "fsdp")
# As many losses are averaged in a line of the log.
LOGGED_OVER = 20
VOCABULARY = 50257
# Characters of what a command that failed said last.
SHOWN = 3000
TOY = ("size=tiny", "task.seq_len=64", "train.batch_size=4", "compute.device=cpu", "compute.micro_batch=2")
KILLED = ("size=20m", "task.seq_len=2048", "train.batch_size=16", "train.autocast=bfloat16", "compute.micro_batch=8")


def full(options: argparse.Namespace) -> list[str]:
    computed = [f"train.batch_size={options.batch_size}", f"compute.micro_batch={options.micro_batch}"]
    return [f"size={options.size}", "task.seq_len=2048", f"train.autocast={options.autocast}", *computed]


def made_up_ids(path: Path, count: int) -> None:
    """Ids as frequent as words are, in documents of 500, so that a loss has something to fall by."""
    ids = np.random.default_rng(0).zipf(1.2, size=count) % (VOCABULARY - 1)
    ids[::500] = VOCABULARY - 1
    np.save(path, ids.astype(np.uint16))


def command(model: str, arm: str, options: argparse.Namespace, folder: Path, *, gpus: int, more: Sequence[str]) -> list[str]:
    """arm: the name of its store. gpus: one is a plain command."""
    request = [
        f"model={model}",
        "task=language",
        "data=npy",
        f"data.path={folder / 'ids.npy'}",
        f"data.vocab_size={VOCABULARY}",
        f"data.bos={VOCABULARY - 1}",
        "task.max_validation_examples=16",
        f"train.steps={options.steps}",
        f"train.warmup_steps={options.steps}",
        f"train.lr={options.lr}",
        "compute.log_seconds=0",
        "eval=none",
        f"paths.results={folder / arm}",
        f"paths.cache={folder / 'cache'}",
        *more,
    ]
    if gpus == 1:
        return [sys.executable, "-m", "suite", "run", *request]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={gpus}", "-m", "suite", "run", *request]


def timed(model: str, arm: str, options: argparse.Namespace, folder: Path, store: str) -> list[str]:
    more = [
        *(TOY if options.dry_run else full(options)),
        f"compute={'gpu' if arm == 'single' else arm}",
        f"compute.compile={str(not options.dry_run and not options.eager).lower()}",
        f"compute.activation_checkpointing={options.activation_checkpointing}",
        "compute.checkpoint_seconds=1000000",
        f"compute.keep_every={saved_at(options.steps)}",
    ]
    return command(model, store, options, folder, gpus=1 if arm == "single" else options.gpus, more=more)


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
def most_memory(gpu: int | None) -> Iterator[list[float]]:
    """The most memory in GiB that a GPU holds while the block runs, in a list of one; none where nvidia-smi is not there.

    gpu: which one; None: whichever holds the most.
    """
    found, ended = list[float](), threading.Event()
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", *([] if gpu is None else [f"--id={gpu}"])]

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


@contextlib.contextmanager
def started(words: Sequence[str], gpu: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command whose processes are a group of their own, and which hears of no other GPU than this one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        yield process


def ended(process: subprocess.Popen[str], seconds: float) -> str | None:
    """What a command said at its end where it failed or took too long."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"it took more than {seconds:g} s: {process.communicate()[1].strip()}"
    return said.strip() or f"exit status {process.returncode}" if process.returncode else None


def logged(store: Path) -> list[dict[str, Any]]:
    (run,) = (store / "runs").iterdir()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


Measured = tuple[dict[str, Any], list[float]]


def measured(
    model: str, arm: str, options: argparse.Namespace, folder: Path, *, gpu: int | None = None, again: bool = False
) -> Measured:
    """A row, and the loss of every step."""
    store = f"{model}-{arm}{'-again' if again else ''}"
    with most_memory(gpu) as memory, started(timed(model, arm, options, folder, store), gpu) as process:
        failed = ended(process, options.seconds)
    about = {"model": model, "arm": arm, "gpus": 1 if arm == "single" else options.gpus}
    if failed is not None:
        return {**about, "failed": failed[-SHOWN:]}, []
    lines = logged(folder / store)
    took = {line["step"]: line["seconds"] - before["seconds"] for before, line in zip(lines[:-1], lines[1:], strict=True)}
    behind = saved_at(options.steps) + 1
    steady = [seconds for step, seconds in took.items() if step > options.steps // 2 and step not in (behind, options.steps)]
    kept = folder.glob(f"{store}/runs/*/checkpoint/kept/**/*")
    reader = Reader(folder / store)
    results = reader.results().set_index("metric")["value"]
    speed = lines[0]["tokens"] / statistics.median(steady)
    # The run's own is that of all its steps.
    mfu = results["mfu"] * speed / results["tokens_per_second"] if "mfu" in results else None
    row = {
        "parameters": int(reader.runs()["parameters"].iloc[0]),
        "tokens_per_second": speed,
        "mfu": mfu,
        "memory_gib": max(memory, default=None),
        "stall_seconds": took[behind] - statistics.median(steady),
        "checkpoint_gib": sum(path.stat().st_size for path in kept if path.is_file()) / 2**30,
        "first_step_seconds": lines[0]["seconds"],
        "last_loss": losses_of(lines)[-1],
    }
    # The weights of three arms would fill a small disk.
    shutil.rmtree(folder / store)
    return about | row, losses_of(lines)


def plain(options: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """The plain commands of all models, and of the first once more, each on a GPU of its own."""
    free = list(range(options.gpus))

    def on_a_gpu(model: str, again: bool) -> Measured:
        gpu = free.pop()
        try:
            return measured(model, "single", options, folder, gpu=gpu, again=again)
        finally:
            free.append(gpu)

    controls = options.models[: not options.no_control]
    with ThreadPoolExecutor(options.gpus) as pool:
        yield from pool.map(on_a_gpu, [*options.models, *controls], [*[False] * len(options.models), *[True] * len(controls)])


def beside(found: Measured, single: Measured) -> dict[str, Any]:
    """A row with what it is compared with."""
    (row, losses), (plain_row, expected) = found, single
    if not losses or not expected:
        return row
    differences = [abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True)]
    ratio = row["tokens_per_second"] / plain_row["tokens_per_second"]
    return row | {"ratio": ratio, "loss_difference": max(differences), "median_difference": statistics.median(differences)}


def rows(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    singles: dict[str, Measured] = {}
    for found in plain(options, folder):
        model = found[0]["model"]
        yield beside(found, singles[model]) | {"arm": "single, again"} if model in singles else found[0]
        singles.setdefault(model, found)
    for model in options.models:
        for arm in options.arms:
            yield beside(measured(model, arm, options, folder), singles[model])


def of_process(pid: int, name: str) -> bytes:
    """A file that says something of a process; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def processes(parent: int) -> Iterator[int]:
    """Those below a process. Not every kernel lists a process's children."""
    for path in Path("/proc").glob("[0-9]*"):
        pid, about = int(path.name), of_process(int(path.name), "stat").rpartition(b")")[2].split()
        if about and int(about[1]) == parent:
            yield pid
            yield from processes(pid)


def rank_process(parent: int, rank: int) -> int:
    """The process of a rank that torchrun started."""
    wanted = f"RANK={rank}".encode()
    return next(pid for pid in processes(parent) if wanted in of_process(pid, "environ").split(b"\0"))


def killed(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row an arm: how the command whose rank was killed ended, and the last losses of those that went on."""
    sizes, model = TOY if options.dry_run else KILLED, options.models[0]
    for arm in options.arms:

        def words(store: str, gpus: int, arm: str = arm) -> list[str]:
            more = [*sizes, f"compute={'gpu' if gpus == 1 else arm}", "compute.compile=false", "compute.checkpoint_seconds=1"]
            return command(model, f"{arm}-{store}", options, folder, gpus=gpus, more=more)

        def goes_on(store: str, gpus: int, arm: str = arm) -> str | float:
            with started(words(store, gpus)) as process:
                failed = ended(process, options.seconds)
            return failed[-SHOWN:] if failed else losses_of(logged(folder / f"{arm}-{store}"))[-1]

        whole, store = goes_on("whole", options.gpus), folder / f"{arm}-killed"
        with started(words("killed", options.gpus)) as process:
            while not any(store.glob("runs/*/checkpoint/step-?????????")) and process.poll() is None:
                time.sleep(0.05)
            os.kill(rank_process(process.pid, options.gpus - 1), signal.SIGKILL)
            began = time.monotonic()
            said = ended(process, options.seconds) or "it ended as if nothing had happened"
        told = [line for line in said.splitlines() if "rank" in line and "was ended from outside" in line]
        took, reached = time.monotonic() - began, len(logged(store))
        shutil.copytree(store, folder / f"{arm}-fewer")
        yield {
            "model": model,
            "arm": arm,
            "said": told or said[-SHOWN:],
            "seconds_to_the_end": took,
            "steps_before": reached,
            "last_loss": whole,
            "goes_on": goes_on("killed", options.gpus),
            "goes_on_on_one": goes_on("fewer", 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["mesanet", "gated_deltanet", "transformer"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", default="400m")
    parser.add_argument("--autocast", choices=("none", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2.5e-5)
    parser.add_argument("--seconds", type=float, default=280.0, help="the longest that an arm may take")
    parser.add_argument("--no-control", action="store_true", help="the plain command of the first model is made once")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--activation-checkpointing", choices=("none", "blocks"), default="none")
    parser.add_argument("--killed", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_ids(folder / "ids.npy", 100_000 if options.dry_run else 8_000_000)
        for row in (killed if options.killed else rows)(options, folder):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
