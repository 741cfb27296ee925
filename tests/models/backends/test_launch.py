"""`launch` hands to a compiled kernel what Triton does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]


def test_a_kernel_gets_what_triton_gives_it():
    command = [sys.executable, "-m", "tests.models.backends.launched_twice"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "the same calls" in done.stdout, done.stdout + done.stderr
