"""`launch` hands to a compiled kernel what Triton does, and every operator of ours launches on the device of its inputs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.library import CustomOpDef

from models.backends import launches
from models.backends import triton as ours

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]


def test_a_kernel_gets_what_triton_gives_it():
    command = [sys.executable, "-m", "tests.models.backends.launched_twice"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "the same calls" in done.stdout, done.stdout + done.stderr


FLA = pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="flash-linear-attention is not installed")


@pytest.mark.parametrize("whose", ["ours", pytest.param("fla", marks=[FLA, pytest.mark.slow])])
def test_a_tuned_kernel_is_launched_again_as_it_was(whose: str) -> None:
    command = [sys.executable, "-m", "tests.models.backends.relaunched", whose]
    environment = {name: value for name, value in os.environ.items() if name != launches.VARIABLE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "kinds are the same" in done.stdout, done.stdout + done.stderr


def test_what_is_launched_is_launched_on_the_device_of_the_first_input(monkeypatch):
    from models.backends.triton.launch import on_its_device

    current = []

    @contextlib.contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        current.append(x)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, y = torch.zeros(2), torch.zeros(3)
    assert on_its_device(lambda x, y, scale: (current[-1] is x, scale))(x, y, 2) == (True, 2) and not current


def test_every_operator_is_launched_so():
    """Else a model that `load_model` put on a second GPU would be computed by the first, which can't read its tensors."""
    names = [module.name for module in pkgutil.iter_modules(ours.__path__, f"{ours.__name__}.") if "hopper" not in module.name]
    found = {
        op._qualname: op for name in names for op in vars(importlib.import_module(name)).values() if isinstance(op, CustomOpDef)
    }
    assert len(found) >= 8
    sources = {name: inspect.getsource(op._init_fn) for name, op in found.items()}
    bare = [name for name, source in sources.items() if "on_its_device" not in source and "device_of" not in source]
    assert not bare
