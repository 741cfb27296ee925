"""Every architecture trained by every backend that computes it here: the same seed must end at the same loss.

    python -m tests.benchmarks.gpu_backends [--models mesanet ...] [--seeds 0 1 2] [--jobs 8] [--steps 1000] [--results FOLDER]

2 blocks, d_model 128, 2 heads of 64, T = 256, batches of 16, the documentation of the Python standard library as text.
Each run is one of the suite's own, so that a stopped sweep goes on where it was. Printed is, for every seed, the
validation NLL of each backend less that of torch, which is to be within 0.01 nats; exit status 1 where one is not, or
where a run failed.

What rounding alone does to a run of so many steps stands beside it: torch again, in chunks half as long, which is the same
function summed in another order. A backend that is off by no more than that is not shown to compute anything else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from conf.groups import options
from conf.settings import RequestError
from models.backends import BACKENDS, settle
from models.build import Model, computing_backends
from suite.request.compose import compose_one
from suite.results import load_results

PERMITTED = 0.01
SETTINGS = (
    "task=language",
    "data=stdlib",
    "size=small",
    "size.num_blocks=2",
    "size.d_model=128",
    "size.num_heads=2",
    "size.head_dim=64",
    "task.seq_len=256",
    "train.batch_size=16",
    "train.lr=4e-3",
    "eval=none",
    "compute.jobs=1",
)
REGROUPED = "torch, half chunks"
FAILURE_CHARACTERS = 1500


class Job(NamedTuple):
    """A model trained at a seed by each of these backends, one after the other. `kind` is the folder of its results."""

    model: str
    seed: int
    backends: tuple[str, ...]
    kind: str
    overrides: tuple[str, ...] = ()


def computes(backend: str, model: Model, device: str) -> bool:
    try:
        return bool(settle(backend, computing_backends(model), device))
    except RequestError:
        return False


def jobs(models: Sequence[str], seeds: Sequence[int], device: str) -> list[Job]:
    """Seed by seed, so that what is stopped early has whole seeds, and within one the longest first."""
    found = []
    for seed in seeds:
        of_seed = []
        for model in models:
            config = compose_one([f"model={model}"]).config.model
            able = tuple(name for name in BACKENDS if computes(name, config, device))
            of_seed.append(Job(model, seed, able, "backends"))
            mixer = dict(zip(config.pattern, config.mixers, strict=True)).get("mixer")
            chunk_size = getattr(mixer, "chunk_size", None)
            if len(able) > 1 and chunk_size is not None:
                of_seed.append(Job(model, seed, ("torch",), "regrouped", (f"model.mixer.chunk_size={chunk_size // 2}",)))
        found += sorted(of_seed, key=lambda job: -len(job.backends))
    return found


def train(job: Job, extra: Sequence[str], results: Path) -> str:
    """Trains what a job names; returns what a failing command said."""
    request = [f"model={job.model}", f"seed={job.seed}", f"backend={','.join(job.backends)}", *SETTINGS, *job.overrides, *extra]
    command = [sys.executable, "-m", "suite", "run", *request, f"paths.results={results / job.kind}"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stderr or done.stdout)[-FAILURE_CHARACTERS:]
    return "" if done.returncode == 0 else f"{job.model}, seed {job.seed}: {said}"


def losses(results: Path) -> pd.DataFrame:
    """Validation NLL, a row a model and seed and a column a backend; of the runs that were finished."""
    said = {"backends": {}, "regrouped": {"backend": REGROUPED}}
    parts = [load_results(results / kind).assign(**facts) for kind, facts in said.items() if (results / kind).exists()]
    rows = pd.concat(parts) if parts else pd.DataFrame()
    if rows.empty:
        return rows
    whole = rows[(rows["metric"] == "nll") & (rows["split"] == "validation") & (rows["slice"] == "")]
    return whole.pivot_table(index=["model", "seed"], columns="backend", values="value")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=options("model"), choices=options("model"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=8, help="models trained at the same time")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--autocast", default="bfloat16", choices=("none", "bfloat16"))
    parser.add_argument("--results", type=Path, default=Path("results/backends"))
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A folder for each protocol: losses of two are not to be compared.
    results = chosen.results / f"{chosen.steps}_steps_{chosen.autocast}"
    training = {"steps": chosen.steps, "warmup_steps": chosen.steps // 20, "autocast": chosen.autocast}
    extra = [f"train.{name}={value}" for name, value in training.items()]
    asked = jobs(chosen.models, chosen.seeds, device)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        errors = [error for error in pool.map(lambda job: train(job, extra, results), asked) if error]
    print("\n".join(errors))
    nll = losses(results)
    if "torch" not in nll:
        print("no run by torch was finished")
        return 1
    others = nll.drop(columns="torch").sub(nll["torch"], axis=0)
    print(pd.concat([nll[["torch"]], others.add_suffix(" less torch")], axis=1).round(4).to_string(na_rep=""))
    print(f"\nmean over seeds\n{others.groupby('model').mean().round(4).to_string(na_rep='')}")
    missing = [
        (job.model, job.seed, name)
        for job in asked
        for name in (job.backends if job.kind == "backends" else (REGROUPED,))
        if name not in nll or pd.isna(nll[name].get((job.model, job.seed)))
    ]
    print("".join(f"not there: {model}, seed {seed}, by {name}\n" for model, seed, name in missing), end="")
    off = others.drop(columns=REGROUPED, errors="ignore").abs() > PERMITTED
    return int(bool(errors or missing) or bool(off.any(axis=None)))


if __name__ == "__main__":
    sys.exit(main())
