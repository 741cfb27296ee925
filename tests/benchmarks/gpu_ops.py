"""How fast every recurrence is on a GPU by every backend that is there, and how exact the Mesa layer is by each of them.

    python -m tests.benchmarks.gpu_ops [--out FILE] [--dry-run]

Forward, and forward and backward, in bfloat16 at B=16 T=2048 and B=2 T=16384, 8 heads of 128: medians of
`triton.testing.do_bench`, all in one process. Then the error of Mesa's read-outs against an exact solve in float64.
Every case first runs in a process of its own, all side by side: kernels are compiled and tuned there, and one that fails
is reported in its row instead of being timed. --dry-run: toy sizes on a CPU, by the backends that a CPU has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import obstacle
from models.ops import mesa
from models.ops.mesa import MesaState
from models.ops.mlstm import MLSTMState
from models.ops.solvers import ConjugateGradients

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensor]

CASES_AT_ONCE, LIMIT_SECONDS = 16, 420


class Shape(NamedTuple):
    """B batch, T time, H heads, D = K = V."""

    B: int
    T: int
    H: int
    D: int


SHAPES = (Shape(16, 2048, 8, 128), Shape(2, 16384, 8, 128))
ACCURACY = Shape(1, 1024, 4, 128)
TOY = (Shape(2, 64, 2, 16), Shape(1, 128, 2, 16))


class Keys(NamedTuple):
    """How the keys of an accuracy row are drawn, how many directions they have (0: any), and about which logit gates are."""

    name: str
    directions: int
    gate_logit: float


KEYS = (
    Keys("random", 0, 4.0),
    Keys("random", 0, 8.0),
    Keys("16 repeated directions", 16, 8.0),
    Keys("one repeated key", 1, 4.0),
    Keys("one repeated key", 1, 8.0),
)


def draw(shape: Shape, keys: Keys, *, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Inputs from an empty state: unit q and k, and v in dtype, gates and a regularizer of 0.25 in float32.

    channel_log_decay, u: what ops with a gate for every channel take, in float32.
    """
    generator = torch.Generator().manual_seed(0)
    normal, uniform = (partial(form, generator=generator) for form in (torch.randn, torch.rand))
    B, T, H, D = shape
    q, k = normal(B, T, H, D), normal(B, T, H, D)
    if keys.directions:
        k = k[:, : keys.directions][:, torch.randint(keys.directions, (T,), generator=generator)]
    if keys.directions > 1:
        q = k[:, torch.randperm(T, generator=generator)]
    q, k = (F.normalize(x, dim=-1).to(dtype) for x in (q, k))
    gates = {"log_decay": F.logsigmoid(normal(B, T, H) + keys.gate_logit), "beta": uniform(B, T, H).sigmoid()}
    channels = {"channel_log_decay": F.logsigmoid(normal(B, T, H, D) + keys.gate_logit), "u": normal(B, T, H * D)}
    drawn = {"q": q, "k": k, "v": normal(B, T, H, D).to(dtype), **gates, **channels, "regularizer": torch.full((H, D), 0.25)}
    return {name: x.to(device) for name, x in drawn.items()}


def state_like(v: Tensor) -> Tensor:
    """An empty G [B, H, V, K]."""
    return torch.zeros(v.shape[0], v.shape[2], v.shape[3], v.shape[3], device=v.device)


def gated(x: Tensors, *names: str) -> Tensors:
    return {name: x[name] for name in ("q", "k", "v", "log_decay", *names)}


def of_mesa(x: Tensors) -> Tensors:
    return gated(x, "beta", "regularizer")


def softmax(x: Tensors) -> Tensor:
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def fla_op(name: str, *gates: str) -> Run:
    def run(x: Tensors) -> Tensor:
        from models.backends import fla

        return getattr(fla, name)(**gated(x, *gates), state=state_like(x["v"]))[0]

    return run


def fla_mlstm(x: Tensors) -> Tensor:
    from models.backends import fla

    G = state_like(x["v"])
    state = MLSTMState(G, G[:, :, 0].clone(), G[:, :, 0, 0].clone())
    return fla.mlstm(**gated(x), log_beta=x["beta"].log(), state=state)[0]


def fla_gated_linear_attention(x: Tensors) -> Tensor:
    from models.backends import fla

    inputs = {"q": x["q"], "k": x["k"], "v": x["v"], "log_decay": x["channel_log_decay"]}
    return fla.gla(**inputs, state=state_like(x["v"]))[0]


def fla_mesa(steps: int) -> Run:
    """As fla's own layer calls it, from no state."""

    def run(x: Tensors) -> Tensor:
        from fla.ops.mesa_net import chunk_mesa_net

        return chunk_mesa_net(*of_mesa(x).values(), max_CG_iteration=steps)[0]

    return run


def triton_mesa(steps: int, tolerance: float) -> Run:
    def run(x: Tensors) -> Tensor:
        from models.backends.triton.mesa import mesa_chunked

        return mesa_chunked(**of_mesa(x), G=None, H=None, tolerance=tolerance, max_steps=steps, initial="diagonal").o

    return run


def torch_mesa(steps: int, tolerance: float) -> Run:
    solver = ConjugateGradients(
        max_steps=steps, tolerance=tolerance, stop="right_hand_side", initial="diagonal", gradient="implicit"
    )

    def run(x: Tensors) -> Tensor:
        G = state_like(x["v"])
        return mesa.chunked(mesa.Inputs(**of_mesa(x)), state=MesaState(G, G.clone(), None), solver=solver, chunk_size=32)[0]

    return run


def triton_rglru(x: Tensors) -> Tensor:
    from models.backends.triton.rglru import scan

    u = x["u"]
    return scan(log_decay=x["channel_log_decay"].flatten(2), u=u, state=torch.zeros_like(u[:, 0]))[0]


def mamba_ssm_ssd(x: Tensors) -> Tensor:
    from models.backends.mamba_ssm import ssd

    # One group of queries and keys for all heads; A = -1, so that dt is both gates.
    q, k = (x[name][:, :, :1].contiguous() for name in "qk")
    A = -torch.ones(x["v"].shape[2], device=q.device)
    return ssd(q=q, k=k, v=x["v"], dt=-x["log_decay"], A=A, starts=None, state=state_like(x["v"]))[0]


class Case(NamedTuple):
    """run maps the drawn inputs to the read-outs."""

    backend: str
    run: Run


CASES = {
    "softmax attention (SDPA)": Case("torch", softmax),
    "decayed linear attention": Case("fla", fla_op("decayed_linear_attention", "beta")),
    "mLSTM": Case("fla", fla_mlstm),
    "gated linear attention, vector gates": Case("fla", fla_gated_linear_attention),
    "gated delta rule": Case("fla", fla_op("delta_rule", "beta")),
    "SSD, one group": Case("mamba_ssm", mamba_ssm_ssd),
    "RG-LRU scan, float32": Case("triton", triton_rglru),
    "Mesa, fla, 30 steps": Case("fla", fla_mesa(30)),
    "Mesa, ours, eps 1e-4": Case("triton", triton_mesa(30, 1e-4)),
    "Mesa, ours, eps 1e-3": Case("triton", triton_mesa(30, 1e-3)),
    "Mesa, ours, 30 steps": Case("triton", triton_mesa(30, 0.0)),
}
TOY_CASES = {name: CASES[name] for name in ("softmax attention (SDPA)",)} | {
    "Mesa, torch, eps 1e-4": Case("torch", torch_mesa(30, 1e-4))
}
PEER = "Mesa, fla, 30 steps"


def leaves(inputs: Tensors) -> Tensors:
    return {name: x.detach().requires_grad_() for name, x in inputs.items()}


def both_passes(run: Run, inputs: Tensors, gradient: Tensor) -> None:
    run(inputs).backward(gradient)
    for x in inputs.values():
        x.grad = None


def median_ms(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(work, warmup=50, rep=200, return_mode="median")
    spent = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        spent.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(spent)


def busy_ms(work: Callable[[], object], device: torch.device, *, repeats: int = 5) -> float:
    """Milliseconds for which the GPU computes, by its profile: without what it waits for Python; on a CPU, `median_ms`."""
    if device.type != "cuda":
        return median_ms(work, device)
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    kernels = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return sum(event.time_range.elapsed_us() for event in kernels) / repeats / 1e3


def timings(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of forward and backward."""
    drawn = draw(shape, KEYS[0], device=device, dtype=dtype)
    inputs = leaves(drawn | {"regularizer": drawn["regularizer"] + F.softplus(torch.rand_like(drawn["regularizer"]))})
    o = case.run(inputs)
    step = partial(both_passes, case.run, inputs, torch.randn_like(o))
    del o
    with torch.no_grad():
        forward = median_ms(lambda: case.run(inputs), device)
    return forward, median_ms(step, device)


def errors(runs: Mapping[str, Run], shape: Shape, keys: Keys, device: torch.device, dtype: torch.dtype) -> dict[str, list[float]]:
    """Errors of read-outs, in norm and of the worst token, against an exact solve in float64 of the same inputs, by run."""
    inputs = draw(shape, keys, device=device, dtype=dtype)
    doubled = {name: x.double() for name, x in inputs.items()}
    G = state_like(doubled["v"]).double()
    found = {}
    with torch.no_grad():
        exact, _ = mesa.recurrent(mesa.Inputs(**of_mesa(doubled)), state=MesaState(G, G.clone(), None))
        for name, run in runs.items():
            off = run(inputs).double() - exact
            worst = (off.norm(dim=-1) / exact.norm(dim=-1)).max()
            found[name] = [(off.norm() / exact.norm()).item(), worst.item()]
    return found


def tried(name: str) -> str:
    """What is wrong with a case, empty for nothing: tried in a process of its own, which leaves its kernels in the cache."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_ops", "--try", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not ready after {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1][:160] if said else f"exit status {done.returncode}"


def try_case(name: str) -> None:
    """Both passes at every shape, and the forward pass at the shape of the accuracy rows."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    for shape in SHAPES:
        inputs = leaves(draw(shape, KEYS[0], device=device, dtype=dtype))
        both_passes(CASES[name].run, inputs, torch.ones_like(CASES[name].run(inputs)))
    CASES[name].run(draw(ACCURACY, KEYS[0], device=device, dtype=dtype))
    torch.cuda.synchronize()


def failures(names: list[str]) -> dict[str, str]:
    """Why each of these can't be timed, empty where it can."""
    barred = {name: obstacle(CASES[name].backend, "cuda") for name in names}
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    with ThreadPoolExecutor(CASES_AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: barred[name] or tried(name), names), strict=True))


def machine(device: torch.device) -> str:
    versions = [f"torch {torch.__version__}"]
    for package in ("triton", "fla-core", "mamba-ssm"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}; {', '.join(versions)}"


def speed_table(found: Mapping[str, Any], shapes: tuple[Shape, ...]) -> str:
    """Markdown: a row a case, milliseconds, and how many times faster than PEER forward and backward take."""
    titles = [f"{kind} B={s.B} T={s.T} [ms]" for s in shapes for kind in ("forward", "forward + backward")]
    header = ["op", "backend", *titles, "against fla's Mesa"]
    lines = [" | ".join(header), " | ".join(["---", "---", *["---:"] * (len(header) - 2)])]
    peer = found.get(PEER, {}).get("ms")
    for name, row in found.items():
        if row["failure"]:
            lines.append(" | ".join([name, row["backend"], row["failure"], *[""] * (len(header) - 3)]))
            continue
        ratio = f"{peer[1] / row['ms'][1]:.2f}x" if peer and name.startswith("Mesa") else ""
        lines.append(" | ".join([name, row["backend"], *(f"{ms:.2f}" for ms in row["ms"]), ratio]))
    return "\n".join(f"| {line} |" for line in lines)


def error_table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: a row a kind of keys, the error in norm and of the worst token by each case."""
    lines = [" | ".join(["keys", "gate logit", *names]), " | ".join(["---", "---:", *["---:"] * len(names)])]
    for row in rows:
        errors = (f"{row['errors'][name][0]:.1e} (worst {row['errors'][name][1]:.1e})" for name in names)
        lines.append(" | ".join([row["keys"], f"{row['gate_logit']:g}", *errors]))
    return "\n".join(f"| {line} |" for line in lines)


def save(whole: Mapping[str, Any], out: Path | None) -> None:
    """After every measurement, so that whatever comes next can't take it away."""
    if out is not None:
        out.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON, too")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--try", dest="single", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="those to measure")
    options = parser.parse_args()
    if options.single:
        try_case(options.single)
        return
    device = torch.device("cpu" if options.dry_run else "cuda")
    cases, shapes = (TOY_CASES, TOY) if options.dry_run else ({name: CASES[name] for name in options.cases}, SHAPES)
    dtype = torch.float32 if options.dry_run else torch.bfloat16
    wrong = dict.fromkeys(cases, "") if options.dry_run else failures(list(cases))
    found: dict[str, Any] = {}
    whole = {"machine": machine(device), "speed": found, "accuracy": []}
    for name, case in cases.items():
        ms = [] if wrong[name] else [ms for shape in shapes for ms in timings(case, shape, device, dtype)]
        found[name] = {"backend": case.backend, "failure": wrong[name], "ms": ms}
        save(whole, options.out)
    solved = {name: case.run for name, case in cases.items() if name.startswith("Mesa") and not wrong[name]}
    small = TOY[0] if options.dry_run else ACCURACY
    for keys in KEYS:
        row = {"keys": keys.name, "gate_logit": keys.gate_logit, "errors": errors(solved, small, keys, device, dtype)}
        whole["accuracy"].append(row)
        save(whole, options.out)
    print(f"{whole['machine']}\n\n{speed_table(found, shapes)}\n\n{error_table(whole['accuracy'], list(solved))}")


if __name__ == "__main__":
    main()
