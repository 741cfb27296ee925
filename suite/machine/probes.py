"""What a CUDA machine is found to do, by doing it: python -m suite.machine.probes NAME tries one thing, or fails.

`probe_all` runs each in a process of its own, so that one which crashes or hangs says nothing of the others.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import obstacle
from models.ops import decayed_linear_attention, rglru, ssd

ROOT = Path(__file__).resolve().parents[2]
Form = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Probe:
    """label: what it tries. try_it: raises where that fails. limit_s: seconds after which it counts as hanging.

    backend: the one it needs, if any.
    """

    label: str
    try_it: Callable[[], None]
    limit_s: float
    backend: str | None = None


def probe_all() -> dict[str, str]:
    """Tries all at once: what each tries, and "works" or why not in one line."""
    running: list[subprocess.Popen] = []
    pool = ThreadPoolExecutor(len(PROBES))
    try:
        verdicts = pool.map(partial(_verdict, running=running), PROBES)
        return dict(zip((probe.label for probe in PROBES.values()), verdicts, strict=True))
    finally:
        # However this ends, nothing is left that holds the device.
        for process in running:
            process.kill()
        pool.shutdown(cancel_futures=True)


def _verdict(name: str, *, running: list[subprocess.Popen]) -> str:
    backend = PROBES[name].backend
    reason = None if backend is None else obstacle(backend, "cuda")
    return reason or outcome([sys.executable, "-m", "suite.machine.probes", name], limit_s=PROBES[name].limit_s, running=running)


def outcome(command: Sequence[str], *, limit_s: float, running: list[subprocess.Popen]) -> str:
    """What became of a process: "works", or the error that it ended with, or that it did not end within limit_s seconds.

    running: to which it is added, for whoever has to end it before that.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        running.append(process)
        try:
            _, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"fails: it did not end within {limit_s:g} seconds"
    if process.returncode == 0:
        return "works"
    # Behind its name and message an error may go on with advice.
    errors = [line for line in said.splitlines() if re.match(r"[A-Za-z_][\w.]*: ", line)]
    return f"fails: {errors[-1] if errors else f'it ended with status {process.returncode}'}"


def scan_in_triton() -> None:
    """A kernel of our own, forward and backward, beside this torch."""
    from models.backends.triton.rglru import scan

    inputs = {"log_decay": -torch.rand(2, 33, 8), "u": torch.randn(2, 33, 8), "state": torch.randn(2, 8)}
    _assert_same_gradients(scan, rglru.recurrent, inputs, tolerance=1e-4)


def torch_compile() -> None:
    """A function and its gradient, as one."""

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.silu(x) * x.sum(-1, keepdim=True), x.tanh()

    _assert_same_gradients(torch.compile(f, fullgraph=True), f, {"x": torch.randn(64, 64)}, tolerance=1e-4)


def cuda_graph() -> None:
    """What was captured is done again, on new numbers."""
    x, weight = torch.zeros(8, 8, device="cuda"), torch.randn(8, 8, device="cuda")
    stream = torch.cuda.Stream()
    # The first product of a process sets up its library, which a capture forbids.
    with torch.cuda.stream(stream):
        torch.mm(x, weight)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.mm(x, weight)
    x.copy_(torch.eye(8))
    graph.replay()
    torch.testing.assert_close(y, weight, rtol=1e-2, atol=1e-2)


def gated_backward_of_fla() -> None:
    """Gradients through decays, which some versions of Triton get wrong on some GPUs."""
    from models.backends import fla

    inputs = _heads(log_decay=-torch.rand(1, 128, 2), beta=torch.rand(1, 128, 2))
    form = decayed_linear_attention.recurrent
    _assert_same_gradients(fla.decayed_linear_attention, form, inputs, tolerance=2e-2)


def ssd_of_mamba_ssm() -> None:
    """The kernels of Mamba2, forward and backward."""
    from models.backends import mamba_ssm

    inputs = _heads(dt=torch.rand(1, 128, 2), A=-torch.rand(2))
    forms = [lambda form=form, **inputs: form(**inputs, starts=None) for form in (mamba_ssm.ssd, ssd.recurrent)]
    _assert_same_gradients(*forms, inputs, tolerance=2e-2)


def _heads(**gates: Tensor) -> dict[str, Tensor]:
    """Two heads of 64, in bfloat16 as in training, with these gates."""
    sequences = {name: torch.randn(1, 128, 2, 64).bfloat16() for name in ("q", "k", "v")}
    return {**sequences, **gates, "state": torch.randn(1, 2, 64, 64)}


def _assert_same_gradients(form: Form, reference: Form, inputs: dict[str, Tensor], *, tolerance: float) -> None:
    """A form on the GPU and its reference there in float64 agree in outputs and gradients, in norm."""
    results = []
    for run, dtype in ((form, None), (reference, torch.float64)):
        leaves = {name: x.to("cuda", dtype).requires_grad_() for name, x in inputs.items()}
        outputs = run(**leaves)
        gradients = torch.autograd.grad(sum(y.float().square().sum() for y in outputs), list(leaves.values()))
        results.append([*outputs, *gradients])
    for actual, expected in zip(*results, strict=True):
        error = ((actual.double() - expected).norm() / expected.norm()).item()
        # A result that is not a number is no error below the tolerance either.
        if not error <= tolerance:
            raise ArithmeticError(f"its results are off by {error:.1e} in norm, permitted is {tolerance:.0e}")


# The first use of a foreign kernel tries dozens of launches, each of which is compiled.
PROBES = {
    "triton": Probe("a Triton kernel", scan_in_triton, 120.0, "triton"),
    "compile": Probe("torch.compile", torch_compile, 180.0),
    "cuda_graph": Probe("a CUDA graph", cuda_graph, 60.0),
    "fla": Probe("the gated backward of fla", gated_backward_of_fla, 400.0, "fla"),
    "mamba_ssm": Probe("the state space duality of mamba-ssm", ssd_of_mamba_ssm, 400.0, "mamba_ssm"),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    PROBES[sys.argv[1]].try_it()
