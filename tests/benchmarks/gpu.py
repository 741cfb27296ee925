"""Everything that is asked of one GPU, measured by one command, and a table of it beside the bars.

    python -m tests.benchmarks.gpu --out FOLDER [--parts ops training decode ...] [--text FOLDER] [--dry-run]

Each part is a command of its own under a time limit and leaves its output and its numbers in FOLDER as it goes, so that
a part that fails or takes too long costs no other. First use of a kernel compiles and tunes it: allow 10 minutes, or keep
Triton's and Inductor's caches from an earlier call. --text: a folder with train.txt.xz, valid.txt.xz and tokenizer.json,
for the validation loss on real text. --table prints the table of a FOLDER that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

Numbers = Any

# Seconds, most of which are compiling. In the order of how much depends on them.
PARTS = {"ops": 240, "training": 600, "decode": 300, "text": 400, "backends": 600, "windows": 300}


def op_ratio(ops: Numbers) -> float:
    speed = ops["speed"]
    return speed["Mesa, fla, 30 steps"]["ms"][1] / speed["Mesa, ours, eps 1e-4"]["ms"][1]


def op_error(ops: Numbers) -> float:
    return max(row["errors"]["Mesa, ours, eps 1e-4"][0] for row in ops["accuracy"])


def arms(training: Numbers, case: str) -> dict[str, Numbers]:
    return {row["arm"]: row for row in training if row["case"] == case and "arm" in row}


def speed_ratio(case: str, ours: str, theirs: str) -> Callable[[Numbers], float]:
    """Tokens a second of one arm over another's of the same process."""

    def ratio(training: Numbers) -> float:
        found = arms(training, case)
        return found[ours]["tokens_per_second"] / found[theirs]["tokens_per_second"]

    return ratio


def recall_steps(training: Numbers) -> float:
    return max(row["steps_per_second"] for arm, row in arms(training, "mqar").items() if "data" in arm)


def decode_ratio(decode: Numbers) -> float:
    (row,) = [r for r in decode["rows"] if (r["case"], r["batch"]) == ("mesanet 1e-4", 64) and r["prompt"] == 512]
    return row["time_ratio"] / row["bytes_ratio"]


def text_loss(text: Numbers) -> float:
    return next(row["validation_nll"] for row in text if row["model"] == "mesanet")


class Bar(NamedTuple):
    """What is asked: `measure` reads it from the numbers of a part; more is better, or less."""

    name: str
    part: str
    measure: Callable[[Numbers], float]
    bar: float
    dream: float
    more: bool


BARS = (
    Bar("Mesa op, forward + backward: times faster than fla's 30 steps", "ops", op_ratio, 4.0, 8.0, True),
    Bar("its error against an exact solve, worst kind of keys", "ops", op_error, 1e-2, 4e-3, False),
    Bar("MesaNet, training: times fla's", "training", speed_ratio("mesanet", "suite, triton, compiled", "fla"), 2.0, 2.5, True),
    Bar(
        "transformer of 433M, training: times plain PyTorch, compiled",
        "training",
        speed_ratio("transformer", "suite, torch, compiled", "plain PyTorch, compiled"),
        1.0,
        1.1,
        True,
    ),
    Bar(
        "Gated DeltaNet, training: times fla's",
        "training",
        speed_ratio("gated_deltanet", "suite, fla, compiled", "fla"),
        1.3,
        1.5,
        True,
    ),
    Bar("MQAR, steps a second with the task's data", "training", recall_steps, 2500.0, 5000.0, True),
    Bar(
        "decoding at batch 64: Mesa's time over Gated DeltaNet's, over the same of bytes", "decode", decode_ratio, 1.3, 1.1, False
    ),
    Bar("MesaNet on text, validation NLL", "text", text_loss, 5.08, 5.077, False),
)


def command(part: str, options: argparse.Namespace) -> list[str]:
    """What measures a part and leaves its numbers in FOLDER/part.json."""
    module = [sys.executable, "-m", f"tests.benchmarks.gpu_{part}"]
    dry = ["--dry-run"] * options.dry_run
    if part == "backends":
        return [*module, "--results", str(options.out / "runs"), *(["--models", "gla", "--steps", "20"] if dry else [])]
    if part == "windows":
        return [*module, *dry]
    if part == "text":
        places = {"--train": "train.txt.xz", "--valid": "valid.txt.xz", "--tokenizer": "tokenizer.json"}
        read = [] if dry else [part for key, name in places.items() for part in (key, str(options.text / name))]
        module += ["--models", "mesanet:torch"] if dry else ["--compile", *read]
    return [*module, *dry, "--out", str(file(part, options.out))]


def run(command: Sequence[str], seconds: int, log: IO[str]) -> str:
    """Runs a part, and ends all of its processes when it is over, out of time or interrupted; says how it ended."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return f"status {process.wait(timeout=seconds)}"
    except subprocess.TimeoutExpired:
        return f"out of its {seconds} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def file(part: str, folder: Path) -> Path:
    return folder / f"{part}.{'jsonl' if part == 'text' else 'json'}"


def read(part: str, folder: Path) -> Numbers:
    content = file(part, folder).read_text()
    return [json.loads(line) for line in content.splitlines()] if part == "text" else json.loads(content)


def value(bar: Bar, folder: Path) -> float:
    """NaN where it has not been measured."""
    try:
        return bar.measure(read(bar.part, folder))
    except (OSError, KeyError, ValueError, IndexError, StopIteration):
        return math.nan


def table(folder: Path) -> str:
    lines = ["| what | measured | bar | dream |", "| --- | ---: | ---: | ---: |"]
    for bar in BARS:
        found = value(bar, folder)
        reached = found >= bar.bar if bar.more else found <= bar.bar
        shown = "not measured" if math.isnan(found) else f"{found:.4g}" if reached else f"{found:.4g} (missed)"
        lines.append(f"| {bar.name} | {shown} | {'≥' if bar.more else '≤'} {bar.bar:g} | {bar.dream:g} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on any device")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in [] if options.table else options.parts:
        if part == "text" and options.text is None and not options.dry_run:
            continue
        began = time.monotonic()
        with (options.out / f"{part}.log").open("w") as log:
            ended = run(command(part, options), PARTS[part], log)
        print(f"{part}: {ended} after {time.monotonic() - began:.0f} s", flush=True)
    print(table(options.out))


if __name__ == "__main__":
    main()
