"""The losses of the first steps of tiny models, kept since they were first made, and the states of the code that give them.

    python -m tests.golden               compares: exit status 1 where a loss differs
    python -m tests.golden --declare     and where none does, writes down that today's states of the code equal the last ones
    python -m tests.golden --renew       keeps today's losses as the golden ones: numbers were changed on purpose

A processor with other vector units rounds otherwise, by up to 6e-5 in these losses. So all are computed in a process that is held
to those which every x86-64 of the last ten years has (FIXED).

After a change that must not change numbers: --declare, and commit suite/store/code_states.json with it. A state is only ever
declared for a model and a task whose own losses were compared; --renew begins a new list of equal states where they differ.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from conf.groups import options, whole
from suite.request.compose import compose_one
from suite.results import load_curves
from suite.running.requests import make_runs
from suite.store.code_state import TABLE, code_state

LOSSES = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 5e-6
"""A processor of another make is off by 3e-6 in Gated KalmaNet's losses even so, and by nothing in the others'."""
FIXED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""The instructions by which PyTorch, MKL and oneDNN compute, read when PyTorch is loaded."""
ONLY = "--losses"
MODELS = {f"{model} mqar": (model, "mqar") for model in whole("model")}
TASKS = {f"gla {task}": ("gla", task) for task in options("task") if task not in ("mqar", "efficiency")}
CASES = MODELS | TASKS
"""Every model of conf/ on one task, and one model on every task that trains: together they pass all code of a run."""

SETTINGS = ["train.steps=4", "train.warmup_steps=2", "train.batch_size=4", "size.d_model=32", "size.num_blocks=2", "seed=0"]
SETTINGS += ["compute.threads=1", "compute.device=cpu", "compute.log_seconds=0", "backend=torch", "eval=none"]


def losses(cases: Sequence[str]) -> dict[str, list[float]]:
    """The mean losses of `cases` after each step, in nats, from a process of their own that computes by FIXED."""
    command = [sys.executable, "-m", "tests.golden", ONLY, *cases]
    done = subprocess.run(command, env={**os.environ, **FIXED}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _losses(case: str) -> list[float]:
    model, task = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        request = [f"model={model}", f"task={task}", f"paths.results={folder}/results", f"paths.cache={folder}", *SETTINGS]
        if task == "language":
            text = Path(folder, "text.txt")
            # Words of a counter: the same on every machine and Python.
            lines = (f"{i * i % 97} is {i % 89} and" if i % 50 else "<|endoftext|>" for i in range(2000))
            text.write_text("\n".join(lines))
            request += ["data=text", f"data.path={text}", "task.seq_len=32"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            _, _, status = make_runs(request)
        if status != 0:
            raise RuntimeError(printed.getvalue())
        # A store's numbers are rounded to more digits than the tolerance has.
        curves: pd.DataFrame = load_curves(f"{folder}/results")
    return [float(loss) for loss in curves["loss"]]


def differences(found: dict[str, list[float]], golden: dict[str, list[float]]) -> list[str]:
    """The cases whose losses are not the golden ones."""

    def same(values: list[float], kept: list[float]) -> bool:
        return len(values) == len(kept) and all(abs(a - b) <= TOLERANCE for a, b in zip(values, kept, strict=True))

    return [case for case, values in found.items() if not same(values, golden.get(case, []))]


def states() -> dict[str, str]:
    """Per model and task of conf/ what the CPU's code is in now: the first 6 digits of its state."""
    found = {}
    for model in whole("model"):
        for task in (task for _, task in CASES.values()):
            config = compose_one([f"model={model}", f"task={task}", "backend=torch"]).config
            found[f"{model} {task}"] = code_state(config)[:6]
    return found


def declared(table: dict[str, list[list[str]]], now: dict[str, str], differing: set[str]) -> dict[str, list[list[str]]]:
    """The table with today's states: each equals the one before, unless the losses of its model or of its task differ.

    Then it begins a new list, so that later states are compared with it.
    """
    table = {name: [list(group) for group in groups] for name, groups in table.items()}
    for name, state in now.items():
        groups, (model, task) = table.setdefault(name, []), name.split(" ")
        if state in (groups[-1] if groups else ()):
            continue
        if not groups or {f"{model} mqar", f"gla {task}"} & differing:
            groups.append([])
        groups[-1].append(state)
    return table


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    if arguments[:1] == [ONLY]:
        print(json.dumps({case: _losses(case) for case in arguments[1:]}))
        return 0
    if not set(arguments) <= {"--declare", "--renew"}:
        print(__doc__)
        return 2
    golden = json.loads(LOSSES.read_text()) if LOSSES.exists() else {}
    found = losses(list(CASES))
    differing = differences(found, golden)
    print("\n".join(f"{case}: {found[case]} is not {golden.get(case)}" for case in differing) or "all losses are the golden ones")
    if differing and "--renew" not in arguments:
        return 1
    if arguments:
        if differing:
            kept = golden | {case: found[case] for case in differing}
            LOSSES.write_text(json.dumps(kept).replace("], ", "],\n ") + "\n")
        table = declared(json.loads(TABLE.read_text()), states(), set(differing))
        TABLE.write_text(json.dumps(table, indent=None).replace("]], ", "]],\n ") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
