"""Where and with what a run was computed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from models.installed import version

PACKAGES = (
    "linear-rnn-suite",
    "torch",
    "numpy",
    "hydra-core",
    "pandas",
    "matplotlib",
    "lm-eval",
    "tokenizers",
    "safetensors",
    "triton",
    "flash-linear-attention",
    "mamba-ssm",
    "transformers",
)


def package_versions() -> dict[str, str | None]:
    """The installed version of every package that the suite can use; None where it is missing."""
    return {name: version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """The commit of this checkout, with "+" where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    # An installed package may lie within a checkout of something else.
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Python, packages, machine, commit and command line."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "host": platform.node(),
        "packages": package_versions(),
        "git_commit": git_commit(),
        "command": sys.argv,
    }
