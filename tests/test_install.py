"""The suite installed as others install it: from a wheel, away from its checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conf.groups import options

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("suite", "models", "tasks", "reports", "conf", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed to, inside a foreign checkout; nothing is downloaded."""
    place = tmp_path_factory.mktemp("install")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
        else:
            shutil.copy(source, place / "source" / name)
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", place, place / "source"], check=True, timeout=120)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", place / "site", wheel], check=True, timeout=120)
    subprocess.run(["git", "init", "--quiet", place], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", place, *identity, "commit", "--quiet", "--allow-empty", "-m", "foreign"], check=True)
    return place / "site"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lrs", "list", "models"], "\nmesanet  "),
        (["lrs", "--version"], "linear-rnn-suite 0.1.0, commit unknown"),
        (["suite", "check", "model=gla", "task=mqar"], "gla tiny mqar seed 0: 110,536 parameters"),
        # What it counts are files, which the test below compares.
        pytest.param(["lrs", "doctor"], f" models, {len(options('task'))} tasks", marks=pytest.mark.slow),
    ],
)
def test_what_is_installed_works_elsewhere(arguments, said, site, tmp_path):
    start = [site / "bin" / "lrs"] if arguments[0] == "lrs" else ["-m", "suite"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *start, *arguments[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("conf", "*.yaml"), ("models/backends/launches", "*.yaml"), ("tasks", "*.yaml"), *((name, "*.py") for name in SOURCES[:5])],
)
def test_every_module_every_file_of_the_configuration_and_every_table_of_launches_is_installed(folder, kind, site):
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob(kind) if "build" not in path.relative_to(folder).parts}

    assert files(site / folder) == files(ROOT / folder) != set()
