"""What `quickly_tuned` does to a kernel that Triton tunes, without a GPU: on a stand-in, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

TUNED = """
import json

import torch
import triton
import triton.language as tl
import triton.testing
from triton.runtime.autotuner import Autotuner

from tests.models.backends.hopper_stand_in import stand_in

stand_in()

from tests.benchmarks.quick_tuning import quickly_tuned

timed = []


def do_bench(call, warmup=25, rep=100, quantiles=None):
    call()
    timed.append((warmup, rep))
    return [float(-len(timed))] * 3


triton.testing.do_bench = do_bench


@triton.autotune([triton.Config({"BLOCK": block}) for block in (64, 128, 256)], key=["n"], cache_results=True)
@triton.jit
def kernel(x, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, 1.0, mask=at < n)


before = Autotuner._bench, Autotuner.check_disk_cache
with quickly_tuned():
    kernel[(1,)](torch.zeros(128), 100)
after = Autotuner._bench, Autotuner.check_disk_cache
print(json.dumps([timed, kernel.best_config.kwargs, before == after]))
"""


def test_every_configuration_is_timed_for_a_moment_and_nothing_is_kept(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    # Triton reads a kernel's text from a file.
    (tmp_path / "tuned.py").write_text(TUNED)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, str(tmp_path / "tuned.py")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[[[2, 10], [2, 10], [2, 10]], {"BLOCK": 256}, true]'
    # All three are compiled, and no choice lies beside them.
    assert len(list(tmp_path.rglob("kernel.cubin"))) == 3 and not list(tmp_path.rglob("*.autotune.json"))
