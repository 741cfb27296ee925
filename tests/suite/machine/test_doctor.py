from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
import torch

from models.backends import obstacle
from suite.machine import doctor, probes
from suite.machine.doctor import examine
from suite.machine.probes import PROBES, outcome


@pytest.mark.parametrize(
    ("code", "limit_s", "said"),
    [
        ("", 60.0, "works"),
        ("raise ValueError('off by 3')", 60.0, "fails: ValueError: off by 3"),
        ("import sys; sys.exit('RuntimeError: two\\n\\ntry another version')", 60.0, "fails: RuntimeError: two"),
        ("import os; os.abort()", 60.0, "fails: it ended with status -6"),
        ("import time; time.sleep(60)", 0.5, "fails: it did not end within 0.5 seconds"),
    ],
)
def test_what_became_of_a_process_is_one_line(code: str, limit_s: float, said: str) -> None:
    assert outcome([sys.executable, "-c", code], limit_s=limit_s, running=[]) == said


def test_an_interruption_leaves_no_probe_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ready = [], threading.Event()

    def interrupted(name: str, *, running: list) -> str:
        if name != next(iter(PROBES)):
            ready.wait(10)
            raise KeyboardInterrupt
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        running += started
        ready.set()
        return "works"

    monkeypatch.setattr(probes, "_verdict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probes.probe_all()
    assert started[0].wait(timeout=10) == -signal.SIGKILL


def test_without_a_device_nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = examine().splitlines()
    assert "backend torch: works" in said and "backend fla: it needs a CUDA device" in said
    assert said[-1] == "probes: no CUDA device: not probed"


def test_on_a_device_backends_and_probes_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "obstacle", lambda name, device: "it is blue" if (name, device) == ("fla", "cuda") else None)
    monkeypatch.setattr(probes, "obstacle", doctor.obstacle)
    monkeypatch.setattr(probes, "outcome", lambda command, limit_s, running: f"{command[-1]} within {limit_s:g}")
    said = examine().splitlines()
    assert "backend fla: it is blue" in said and "backend triton: works" in said
    assert said[-len(PROBES) :] == [
        f"probe of {probe.label}: {'it is blue' if name == 'fla' else f'{name} within {probe.limit_s:g}'}"
        for name, probe in PROBES.items()
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_what_there_is_to_work(name: str) -> None:
    backend = PROBES[name].backend
    reason = None if backend is None else obstacle(backend, "cuda")
    assert probes._verdict(name, running=[]) == (reason or "works")
