"""Every architecture trained by every backend that computes it here: the same seed must end at the same loss.

    python -m tests.benchmarks.gpu_backends [--models mesanet gla ...] [--jobs 8] [--steps 1000] [--results FOLDER]

2 blocks, d_model 128, 2 heads of 64, T = 256, batches of 16, the documentation of the Python standard library as text.
Each run is one of the suite's own, so that a stopped sweep goes on where it was. Printed is the validation NLL of each
backend less that of torch, which is to be within 0.01 nats; exit status 1 where one is not, or where a run failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf

from models.backends import obstacle
from models.build import computing_backends
from suite.request import compose_config, options
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


def backends_here(model: str, device: str) -> list[str]:
    """What computes a model on this machine, torch first."""
    config = OmegaConf.to_container(compose_config([f"model={model}"]), resolve=True)
    able = [name for name in computing_backends(config["model"]) if obstacle(name, device) is None]
    return sorted(able, key=lambda name: name != "torch")


def train(model: str, backends: Sequence[str], extra: Sequence[str]) -> str:
    """Trains a model with each backend, one run after the other; returns what a failing command said."""
    command = [sys.executable, "-m", "suite", "run", f"model={model}", f"backend={','.join(backends)}", *SETTINGS, *extra]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{model}: {(done.stderr or done.stdout)[-1500:]}"


def table(results: Path) -> pd.DataFrame:
    """Validation NLL, a row a model and a column a backend."""
    rows = load_results(results)
    whole = rows[(rows["metric"] == "nll") & (rows["split"] == "validation") & (rows["slice"] == "")]
    return whole.pivot_table(index="model", columns="backend", values="value")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=options("model"), choices=options("model"))
    parser.add_argument("--jobs", type=int, default=8, help="models trained at the same time")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--autocast", default="bfloat16", choices=("none", "bfloat16"))
    parser.add_argument("--results", type=Path, default=Path("results/backends"))
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A folder for each protocol: losses of two are not to be compared.
    results = chosen.results / f"{chosen.steps}_steps_{chosen.autocast}"
    extra = (
        f"train.steps={chosen.steps}",
        f"train.warmup_steps={chosen.steps // 20}",
        f"train.autocast={chosen.autocast}",
        f"paths.results={results}",
    )
    # The slowest first, so that none is left over at the end.
    asked = sorted(((model, backends_here(model, device)) for model in chosen.models), key=lambda pair: -len(pair[1]))
    with ThreadPoolExecutor(chosen.jobs) as pool:
        errors = [error for error in pool.map(lambda pair: train(*pair, extra), asked) if error]
    print("\n".join(errors))
    nll = table(results)
    others = nll.drop(columns="torch").sub(nll["torch"], axis=0)
    print(pd.concat([nll[["torch"]], others.add_suffix(" less torch")], axis=1).round(4).to_string())
    missing = [(model, name) for model, names in asked for name in names if name not in nll or pd.isna(nll[name].get(model))]
    print("".join(f"not there: {model} by {name}\n" for model, name in missing), end="")
    return int(bool(errors or missing) or bool((others.abs() > PERMITTED).any(axis=None)))


if __name__ == "__main__":
    sys.exit(main())
