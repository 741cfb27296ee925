"""Who may import whom (read from the import statements; nothing is run)."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("conf", "models", "tasks", "suite", "reports")
FOREIGN = {
    "conf": {"models", "tasks", "suite", "reports", "torch"},
    "models": {"tasks", "suite", "reports"},
    "tasks": {"models", "suite", "reports"},
    "suite": set(),
    "reports": {"models", "tasks", "torch", "suite"},
}
ALLOWED_TO_REPORTS = {"suite.results", "suite.metrics", "suite.naming", "suite.scores"}
ONE_PLACE = {"fla": "models/backends/fla", "mamba_ssm": "models/backends/mamba_ssm.py"}
ONE_PLACE |= {"lm_eval": ("suite/evaluation/lm_eval", "tasks/paper/prefixes.py")}
ONE_PLACE |= {name: "suite/running/sinks.py" for name in ("tensorboard", "wandb", "trackio")}
ONE_PLACE |= {"submitit": "suite/running/slurm.py", "transformers": "models/hf/"}
ONE_PLACE |= {"datasets": ("tasks/offline/data.py", "suite/evaluation/lm_eval", "tasks/language/hub.py")}
ONE_PLACE |= {"huggingface_hub": ("tasks/language/hub.py", "models/hf/"), "pyarrow": "tasks/language/tables.py"}
# The rooms of a package from the ground up, those of one floor in one line: folders, and files at the top. An arrow goes
# down or stays in its room. What is not listed stands on the last floor and may import all others.
FLOORS = {
    "conf": ["paths kinds", "settings", "extensions", "declared groups"],
    "models": ["initialization installed", "ops", "backends", "components", "mixer", "linear_rnn"],
    "tasks": ["files progress tokenizer", "task", "positions", "synthetic language"],
    "suite": [
        "canonical metrics",
        "stage naming scores",
        "machine",
        "compute",
        "request",
        "store",
        "results evaluation beginning",
        "plan",
        "saved",
        "running generate",
        "help",
    ],
    "reports": ["kit", "pages"],
}
# The mixers of models/ share a floor but for what is built from them.
ABOVE_MIXERS = ["backbone", "mesa", "hf", "build"]


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, lazily or not, and of what it takes from a package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names if "." not in node.module)}
    return names


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def foreign(path: Path) -> Iterator[str]:
    """What a file imports that its package may not, in words."""
    place = path.relative_to(ROOT)
    for name in imported(path):
        top = name.split(".")[0]
        if top in FOREIGN[place.parts[0]] and not (place.parts[0] == "reports" and name in ALLOWED_TO_REPORTS | {"suite"}):
            yield f"{place} imports {name}"
        if top in ONE_PLACE and not str(place).startswith(ONE_PLACE[top]):
            yield f"{place} imports {top}, which belongs in {ONE_PLACE[top]}"


# All files in one test: a test of its own costs as much as reading ten of them.
def test_files_import_what_their_package_may():
    assert len(FILES) > 300 and not [said for path in FILES for said in foreign(path)]


def floor(package: str, room: str) -> int:
    floors = [line.split() for line in FLOORS[package]]
    if package == "models" and room in ABOVE_MIXERS:
        return len(floors) + 1 + ABOVE_MIXERS.index(room)
    return next((i for i, rooms in enumerate(floors) if room in rooms), len(floors))


def upward(path: Path) -> Iterator[str]:
    """The arrows from a file to a room above its own, in words."""
    package, *inner = path.relative_to(ROOT).with_suffix("").parts
    if inner == ["__init__"]:
        return
    for name in imported(path):
        parts = name.split(".")
        exists = len(parts) > 1 and ((ROOT / package / parts[1]).is_dir() or (ROOT / package / f"{parts[1]}.py").is_file())
        if parts[0] == package and exists and parts[1] != inner[0]:
            here, there = floor(package, inner[0]), floor(package, parts[1])
            lateral = here == there == len(FLOORS[package])
            if there >= here and not lateral:
                yield f"{path.relative_to(ROOT)} (floor {here}) imports {parts[1]} (floor {there})"


def test_arrows_between_rooms_go_down():
    assert not [said for path in FILES for said in upward(path)]


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_of_the_plan_is_there(package):
    for room in " ".join(FLOORS[package]).split():
        assert (ROOT / package / room).is_dir() or (ROOT / package / f"{room}.py").is_file(), f"{package} has no {room}"


READ_ALONE = (
    "suite.where",
    "suite.results",
    "suite.metrics",
    "suite.listing",
    "suite.reporting",
    "suite.cli",
    "reports.kit.index",
    "reports.kit.parts",
    "reports.kit.build",
)


def test_reading_results_needs_no_torch():
    """All in one process, which takes seconds: the modules after whose import torch is there are told, the first alone guilty."""
    code = f"import importlib, sys; print([m for m in {READ_ALONE} if importlib.import_module(m) and 'torch' in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_finding_tasks_imports_no_benchmarks():
    """lm-eval takes seconds to import, and a machine that only trains has none."""
    code = "import sys; sys.modules['lm_eval'] = None; from tasks.build import task_types; task_types()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
