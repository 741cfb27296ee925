"""What a command costs beside its training step on a GPU: tokens a second of `run`, and of a bare loop over the same step.

    python -m tests.benchmarks.gpu_overhead [--models transformer mesanet gated_deltanet] [--steps 120] [--first-step] [--dry-run]

Size 140m, batches of 32 x 2,048 ids of GPT-2's vocabulary, bfloat16, compiled, checkpoints and the log as compute=gpu has them.
A process of its own runs the command, with empty caches of compiled kernels, and then the loop, which takes the step of
the suite from a batch that stays where it is: no data, no log, no checkpoint. A row of JSON a model:

    ratio               tokens a second of the command, over the last half of its steps, by those of the loop; to be above 0.97
    first_step_seconds  from the start of the command to its first training step, with whatever has to be compiled

--first-step: this alone, for any model; the command is killed behind its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from suite.results import Reader
from tests.benchmarks.gpu_parallel import VOCABULARY, ended, logged, made_up_ids, started
from tests.benchmarks.gpu_training import BACKENDS, CUDA, Groups, Shape, suite_arm

FULL, TOY = Shape(14, 768, 6, 128, 2304, VOCABULARY, 32, 2048), Shape(2, 64, 2, 32, 96, VOCABULARY, 2, 64)
SECONDS = 400.0


def command(model: str, shape: Shape, steps: int, folder: Path) -> list[str]:
    sizes = ("num_blocks", "d_model", "num_heads", "head_dim", "mlp_dim")
    return [
        *(sys.executable, "-m", "suite", "run", f"model={model}", "task=language", "size=140m"),
        *(f"size.{key}={getattr(shape, key)}" for key in sizes),
        *("data=npy", f"data.path={folder / 'ids.npy'}", f"data.vocab_size={VOCABULARY}", f"data.bos={VOCABULARY - 1}"),
        *(f"task.seq_len={shape.seq_len}", "task.max_validation_examples=32", "eval=none"),
        *(f"train.batch_size={shape.batch_size}", f"train.steps={steps}", "train.lr=1e-3", "train.autocast=bfloat16"),
        *("compute=gpu", f"compute.compile={str(CUDA).lower()}"),
        *(f"paths.results={folder / 'results'}", f"paths.cache={folder / 'cache'}"),
    ]


def has_stepped(store: Path) -> bool:
    return any(path.stat().st_size for path in store.glob("runs/*/metrics.jsonl"))


def measured(model: str, *, dry: bool, steps: int, first_step: bool) -> dict[str, Any]:
    """A row, from a process that has compiled nothing yet."""
    shape = TOY if dry else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_ids(folder / "ids.npy", 200_000 if dry else 10_000_000)
        os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        store, began = folder / "results", time.monotonic()
        with started(command(model, shape, steps, folder)) as process:
            while process.poll() is None and time.monotonic() - began < SECONDS and not has_stepped(store):
                time.sleep(0.05)
            first_step_seconds = time.monotonic() - began
            if first_step and has_stepped(store):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                return {"model": model, "first_step_seconds": first_step_seconds}
            failed = ended(process, SECONDS)
        if failed is not None:
            return {"model": model, "failed": failed[-2000:]}
        lines = logged(store)
        early = next(line for line in lines if line["step"] >= steps // 2)
        # The last line may stand behind a step that a checkpoint follows.
        by_run = (lines[-1]["tokens"] - early["tokens"]) / (lines[-1]["seconds"] - early["seconds"])
        results = Reader(store).results().set_index("metric")["value"]
        row = {"model": model, "by_run": by_run, "mfu": results.get("mfu"), "overhead": results.get("overhead")}
        row["first_step_seconds"] = first_step_seconds
        compute = {"compile": CUDA, "cuda_graph": "auto", "activation_checkpointing": "none"}
        loop = suite_arm(
            model,
            BACKENDS[model] if CUDA else "torch",
            shape,
            Groups(3, 5, 3) if dry else Groups(5, 10, 5),
            compute=compute,
            arm="loop",
        )
    return row | {"by_loop": loop["tokens_per_second"], "ratio": by_run / loop["tokens_per_second"], "gib": loop["peak_gib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["transformer", "mesanet", "gated_deltanet"])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--first-step", action="store_true")
    parser.add_argument("--measure", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, dry=options.dry_run, steps=options.steps, first_step=options.first_step)))
        return
    for model in options.models:
        words = ["--measure", model, "--steps", str(options.steps)]
        words += [flag for flag, given in (("--first-step", options.first_step), ("--dry-run", options.dry_run)) if given]
        done = subprocess.run([sys.executable, "-m", "tests.benchmarks.gpu_overhead", *words], capture_output=True, text=True)
        print(done.stdout.strip() or json.dumps({"model": model, "failed": done.stderr[-2000:]}), flush=True)


if __name__ == "__main__":
    main()
