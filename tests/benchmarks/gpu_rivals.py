"""How fast the rivals' recurrences are on a GPU by our adapters, beside flash-linear-attention's own calls.

    python -m tests.benchmarks.gpu_rivals [--ops kda pgdn ...] [--out FILE] [--eager] [--dry-run]
    python -m tests.benchmarks.gpu_rivals --warm kda

Milliseconds of forward, and of forward and backward, in bfloat16 at B=16 T=2048, 8 heads of 128: medians of
`triton.testing.do_bench`, and the ratio of ours to fla's, both measured in one process, which every op has to itself: one that
fails costs a line. "busy" is for how much of both passes the GPU computes; the rest it waits for Python, as it does not in
training, where other layers keep it busy. Both begin with what a layer has: keys, values and the logits of gates, and both are
compiled as a layer is: ours with what surrounds its kernels, fla's, whose call breaks a graph, in what precedes it. --eager:
nothing is compiled. --warm: runs both passes of an op once, which compiles its kernels and keeps no tuning, so that several
processes can do it side by side, and a timing tunes alone. --dry-run: toy sizes on a CPU, by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends.fla_launches import as_fla_launches
from models.ops import (
    decayed_linear_attention,
    diagonal_plus_low_rank,
    generalized_delta_rule,
    momentum_delta_rule,
    path_attention,
    rglru,
)
from models.ops.momentum_delta_rule import MomentumState
from tests.benchmarks.gpu_ops import Shape, Tensors, both_passes, busy_ms, leaves, machine, median_ms

Run = Callable[[Tensors], Tensor]

SHAPE, TOY = Shape(16, 2048, 8, 128), Shape(1, 80, 2, 16)
LIMIT_SECONDS = 540
STRONGEST = 0.6065306597126334
"""RWKV-7's log-decays are above its negative."""
CHUNK_SIZE = 64


def draw(shape: Shape, *, micro_steps: int = 1, key_ratio: int = 1) -> Tensors:
    """Unit keys and values in bfloat16; gates in float32, forget gates as logits about 4; from a fixed seed."""
    B, T, H, D = shape
    normal, K, steps = partial(torch.randn, generator=torch.Generator().manual_seed(0)), D * key_ratio, T * micro_steps
    q, k, k2 = (F.normalize(normal(B, length, H, K), dim=-1).bfloat16() for length in (T, steps, T))
    drawn = {"q": q, "k": k, "k2": k2, "v": normal(B, steps, H, D).bfloat16(), "beta": normal(B, steps, H).sigmoid()}
    drawn |= {"log_decay": normal(B, T, H) + 4.0, "log_momentum": F.logsigmoid(normal(B, T, H) + 1.0)}
    drawn |= {"channel_log_decay": normal(B, T, H, K) + 4.0, "moment_beta": normal(B, T, H).sigmoid()}
    gates = {"erase": normal(B, T, H, K).sigmoid().bfloat16(), "write": normal(B, steps, H, D).sigmoid().bfloat16()}
    return drawn | gates | {"bounded_log_decay": -STRONGEST * normal(B, T, H, K).sigmoid()}


DECAY, CHANNEL_DECAY, WEIGHTED = "log_decay", "channel_log_decay", "weighted_k"


def with_gates(x: Tensors, names: Sequence[str]) -> Tensors:
    """With what is named: log-decays, about -0.02, in the place of logits; keys times beta, as linear attention writes them."""
    gates = {name: F.logsigmoid(x[name]) for name in names if name != WEIGHTED}
    return x | gates | ({WEIGHTED: (x["k"] * x["beta"].unsqueeze(-1)).to(x["k"].dtype)} if WEIGHTED in names else {})


def empty_state(x: Tensors) -> Tensor:
    (batch, _, heads, value_dim), key_dim = x["v"].shape, x["k"].shape[-1]
    return torch.zeros(batch, heads, value_dim, key_dim, device=x["v"].device)


def generalized(x: Tensors, **inputs: Tensor) -> Tensor:
    """Ours: with one key and one gate where no others are given."""
    beta = x["beta"].unsqueeze(-1)
    whole = {"q": x["q"], "e": x["k"], "a": x["k"], "u": x["v"], "erase": beta, "write": beta, **inputs}
    if not x["v"].is_cuda:
        return generalized_delta_rule.chunked(**whole, state=empty_state(x), chunk_size=16)[0]
    from models.backends.fla_delta import generalized_delta_rule as by_fla

    return by_fla(**whole, state=empty_state(x))[0]


def by_adapter(name: str, ours: Run) -> Run:
    """The adapter of this name to fla, which takes keys and beta apart; on a CPU `ours`."""

    def run(x: Tensors) -> Tensor:
        if not x["v"].is_cuda:
            return ours(x)
        from models.backends import fla

        inputs = {key: x[key] for key in ("q", "k", "v", "log_decay", "beta")}
        return getattr(fla, name)(**inputs, state=empty_state(x))[0]

    return run


def linear_attention(x: Tensors) -> Tensor:
    inputs = {key: x[key] for key in ("q", "k", "v", "log_decay", "beta")}
    return decayed_linear_attention.chunked(**inputs, state=empty_state(x), chunk_size=16)[0]


def fla_linear_attention(x: Tensors) -> Tensor:
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(x["q"], x["weighted_k"], x["v"], x["log_decay"], scale=1.0)[0]


def fla_delta_rule(x: Tensors) -> Tensor:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["log_decay"], x["beta"], scale=1.0)[0]


def kda(x: Tensors) -> Tensor:
    return generalized(x, log_decay=x["channel_log_decay"])


def fla_kda(x: Tensors) -> Tensor:
    from fla.ops.kda import chunk_kda

    return chunk_kda(x["q"], x["k"], x["v"], x["channel_log_decay"], x["beta"], scale=1.0)[0]


def gdn2(x: Tensors) -> Tensor:
    return generalized(x, log_decay=x["channel_log_decay"], erase=x["erase"], write=x["write"])


def fla_gdn2(x: Tensors) -> Tensor:
    from fla.ops.gdn2 import chunk_gdn2

    return chunk_gdn2(x["q"], x["k"], x["v"], x["channel_log_decay"], x["erase"], x["write"], scale=1.0)[0]


def preconditioned(x: Tensors) -> Tensor:
    """M k of models/pgdn.py with x = 1.5, whose moments are a scan over the channels."""
    k = x["k"].float()
    log_decay, u = x["log_decay"].unsqueeze(-1).expand_as(k), x["moment_beta"].unsqueeze(-1) * k.square()
    inputs = {"log_decay": log_decay.flatten(2), "u": u.flatten(2), "state": torch.zeros_like(k[:, 0].flatten(1))}
    if k.is_cuda:
        from models.backends.triton.rglru import scan

        moments = scan(**inputs)[0]
    else:
        moments = rglru.chunked(**inputs, chunk_size=16)[0]
    r = torch.log(moments.view_as(k) + 1e-6) + 0.2
    return 1.5 ** (-r / (1.0 + r.abs())) * k


def two_keys(decay: str, *, moments: bool) -> Run:
    """The rule alone, with a key to write along that is there already, or that of a preconditioner."""

    def run(x: Tensors) -> Tensor:
        return generalized(x, log_decay=x[decay], a=preconditioned(x) if moments else x["k2"])

    return run


def fla_pgdn(x: Tensors) -> Tensor:
    from fla.ops.precond_gated_delta_rule import chunk_precond_gated_delta_rule

    gates = x["log_decay"], x["log_decay"], x["moment_beta"], x["beta"]
    return chunk_precond_gated_delta_rule(x["q"], x["k"], x["v"], *gates, scale=1.0, use_qk_l2norm_in_kernel=False)[0]


def fla_pkda(x: Tensors) -> Tensor:
    from fla.ops.precond_kda import chunk_precond_kda

    gates = x["channel_log_decay"], x["log_decay"], x["moment_beta"], x["beta"]
    return chunk_precond_kda(x["q"], x["k"], x["v"], *gates, scale=1.0)[0]


def comba(x: Tensors) -> Tensor:
    return generalized(x, log_decay=x["log_decay"], e=x["k2"] * torch.exp(-x["log_decay"]).unsqueeze(-1))


def fla_comba(x: Tensors) -> Tensor:
    from fla.ops.comba import chunk_comba

    return chunk_comba(x["q"], x["k"], x["v"], x["k2"], x["log_decay"], x["beta"], scale=1.0)[0]


def delta_product(x: Tensors) -> Tensor:
    return generalized(x, log_decay=x["log_decay"])


def fla_delta_product(x: Tensors) -> Tensor:
    from fla.ops.gated_delta_product import chunk_gated_delta_product

    steps = x["k"].shape[1] // x["q"].shape[1]
    return chunk_gated_delta_product(x["q"], x["k"], x["v"], x["log_decay"], x["beta"], steps, scale=1.0)[0]


def rwkv7(floor: float) -> Run:
    def run(x: Tensors) -> Tensor:
        inputs = {"q": x["q"], "k": x["k2"], "v": x["v"], "e": x["k"], "a": x["erase"] * x["k"]}
        inputs |= {"log_decay": x["bounded_log_decay"], "state": empty_state(x)}
        if not x["v"].is_cuda:
            return diagonal_plus_low_rank.chunked(**inputs, floor=floor, chunk_size=16)[0]
        from models.backends.fla_low_rank import diagonal_plus_low_rank as by_fla

        return by_fla(**inputs, floor=floor)[0]

    return run


def fla_rwkv7(x: Tensors) -> Tensor:
    from fla.ops.rwkv7 import chunk_rwkv7

    inputs = x["q"], x["bounded_log_decay"], x["k2"], x["v"], -x["k"], x["erase"] * x["k"]
    return chunk_rwkv7(*inputs, safe_gate=True, lower_bound=-STRONGEST, chunk_size=CHUNK_SIZE)[0]


def momentum(x: Tensors) -> Tensor:
    G = empty_state(x)
    inputs = {"q": x["q"], "p": x["k"], "k": x["k"], "v": x["v"], "log_decay": x["log_decay"], "beta": x["beta"]}
    state = MomentumState(G, torch.zeros_like(G))
    return momentum_delta_rule.chunked(**inputs, log_momentum=x["log_momentum"], state=state, chunk_size=CHUNK_SIZE)[0]


def fla_momentum(x: Tensors) -> Tensor:
    from fla.ops.momentum_delta_rule import chunk_momentum_delta_rule

    gates = {"log_alpha": x["log_decay"], "log_mu": x["log_momentum"], "beta": x["beta"]}
    options: dict[str, Any] = {"scale": 1.0, "use_qk_l2norm_in_kernel": False, "use_p_times_alpha": False}
    return chunk_momentum_delta_rule(x["q"], x["k"], x["v"], **gates, **options)[0]


def path(x: Tensors) -> Tensor:
    nothing = torch.zeros_like(x["v"][:, :0].transpose(1, 2), dtype=torch.float32)
    span = torch.arange(x["q"].shape[1], device=x["q"].device).unsqueeze(0)
    inputs = {"q": x["q"], "k": x["k2"], "v": x["v"], "w": x["k"], "beta": 2.0 * x["beta"], "span": span}
    cache = path_attention.Cache(nothing, nothing, None)
    return path_attention.chunked(**inputs, log_forget=None, cache=cache, chunk_size=CHUNK_SIZE)[0]


def fla_path(x: Tensors) -> Tensor:
    from fla.ops.path_attn import parallel_path_attn

    return parallel_path_attn(x["q"], x["k2"], x["v"], x["k"].float(), 2.0 * x["beta"])[0]


class Op(NamedTuple):
    """ours, peer: read-outs from the same tensors. gates: what both take of `with_gates`. draw: the tensors. by: what computes
    ours, in words."""

    ours: Run
    peer: Run
    gates: tuple[str, ...] = (DECAY,)
    draw: Callable[[Shape], Tensors] = draw
    by: str = "fla's kernels"


OPS = {
    "delta_rule": Op(by_adapter("delta_rule", delta_product), fla_delta_rule),
    "decayed_linear_attention": Op(
        by_adapter("decayed_linear_attention", linear_attention), fla_linear_attention, (DECAY, WEIGHTED)
    ),
    "kda": Op(kda, fla_kda, (CHANNEL_DECAY,)),
    "gdn2": Op(gdn2, fla_gdn2, (CHANNEL_DECAY,)),
    "pgdn": Op(two_keys(DECAY, moments=True), fla_pgdn),
    "pgdn_rule": Op(two_keys(DECAY, moments=False), fla_pgdn),
    "pkda": Op(two_keys(CHANNEL_DECAY, moments=True), fla_pkda, (DECAY, CHANNEL_DECAY)),
    "pkda_rule": Op(two_keys(CHANNEL_DECAY, moments=False), fla_pkda, (DECAY, CHANNEL_DECAY)),
    "comba": Op(comba, fla_comba),
    "deltaproduct": Op(delta_product, fla_delta_product, draw=partial(draw, micro_steps=2)),
    "triadic_gdn": Op(kda, fla_kda, (CHANNEL_DECAY,), partial(draw, key_ratio=2)),
    "rwkv7": Op(rwkv7(-STRONGEST), fla_rwkv7, ()),
    "rwkv7_documents": Op(rwkv7(float("-inf")), fla_rwkv7, ()),
    "momentum_deltanet": Op(momentum, fla_momentum, by="PyTorch"),
    "path_attention": Op(path, fla_path, (), by="PyTorch"),
}


def forms(op: Op, *, compiled: bool) -> tuple[Run, Run]:
    """Ours and fla's, from logits of gates."""
    gates = partial(with_gates, names=op.gates)
    if not compiled:
        return (lambda x: op.ours(gates(x))), (lambda x: op.peer(gates(x)))
    apart = torch.compile(gates)
    return torch.compile(lambda x: op.ours(gates(x))), (lambda x: op.peer(apart(x)))


def timings(run: Run, drawn: Tensors) -> tuple[float, float, float]:
    """Milliseconds of the forward pass, of forward and backward, and for how many of these the GPU is busy."""
    device, inputs = drawn["v"].device, leaves(drawn)
    gradient = torch.ones_like(run(inputs))
    with torch.no_grad():
        forward = median_ms(lambda: run(inputs), device)
    both = partial(both_passes, run, inputs, gradient)
    return forward, median_ms(both, device), busy_ms(both, device)


def measured(name: str, *, dry: bool, eager: bool) -> dict[str, Any]:
    op, device = OPS[name], torch.device("cpu" if dry else "cuda")
    drawn = {key: x.to(device) for key, x in op.draw(TOY if dry else SHAPE).items()}
    run, run_peer = forms(op, compiled=not (dry or eager))
    ours = timings(run, drawn)
    # Only a GPU has fla's kernels.
    if dry:
        peer = ours
    else:
        with as_fla_launches():
            peer = timings(run_peer, drawn)
    return {"op": name, "by": op.by, "ours_ms": ours, "fla_ms": peer, "ratios": [a / b for a, b in zip(ours, peer, strict=True)]}


def warm(name: str) -> None:
    os.environ["FLA_CACHE_RESULTS"] = "0"
    op = OPS[name]
    drawn = {key: x.cuda() for key, x in op.draw(SHAPE).items()}
    for run in forms(op, compiled=False):
        inputs = leaves(drawn)
        both_passes(run, inputs, torch.ones_like(run(inputs)))
    torch.cuda.synchronize()


def in_its_own_process(name: str, *, dry: bool, eager: bool) -> dict[str, Any]:
    """`measured`, or why not."""
    flags = [*(["--dry-run"] if dry else []), *(["--eager"] if eager else [])]
    command = [sys.executable, "-m", "tests.benchmarks.gpu_rivals", "--measure", name, *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"op": name, "failure": f"not ready after {LIMIT_SECONDS} s"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return {"op": name, "failure": said[-1][:300] if said else f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def row_of(found: dict[str, Any]) -> str:
    if "failure" in found:
        return f"| {found['op']} | {found['failure']} ||||||||||"
    numbers = [*found["ours_ms"], *found["fla_ms"], *found["ratios"]]
    return f"| {found['op']} | {found['by']} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="those to measure")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON, too")
    parser.add_argument("--warm", choices=OPS, metavar="OP", help="only compile the kernels of an op")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--measure", choices=OPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        warm(options.warm)
        return
    if options.measure:
        print(json.dumps(measured(options.measure, dry=options.dry_run, eager=options.eager)))
        return
    print(machine(torch.device("cpu" if options.dry_run else "cuda")), flush=True)
    header = ["op", "ours by", *(f"{who} {time}" for who in ("ours", "fla", "ratio") for time in ("fwd", "fwd+bwd", "busy"))]
    print(f"\n| {' | '.join(header)} |\n|{' --- |' * 2}{' ---: |' * 9}", flush=True)
    rows = []
    for name in options.ops:
        rows.append(in_its_own_process(name, dry=options.dry_run, eager=options.eager))
        print(row_of(rows[-1]), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
