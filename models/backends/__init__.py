"""Which library computes an op; backends differ at the op, never at the layer, and from mixer to mixer of a hybrid.

KERNELS is the one table from an op (a module of models/ops) and a backend to what computes it beside the plain PyTorch of the
op itself, with the settings at which that was found right. `computing`, `settle` and `load` read it: what "auto" takes, what
is refused and what is called follow from it, and there is never a silent fallback.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from conf.settings import Refusal, RequestError, near
from models.backends.calls import (
    suits_cached_attention,
    suits_flex_attention,
    suits_fused_loss,
    suits_short_convolution,
    suits_spread_embedding,
)
from models.installed import version as version
from models.ops.solvers import SMALLEST_RESIDUAL

BACKENDS = ("torch", "fla", "mamba_ssm", "triton")
JOINT = "+"
"""Stands between the backends of a model whose mixers have several, such as "fla+torch", in the order of its pattern."""


class Limit(NamedTuple):
    """Which settings of a mixer a kernel was found right at, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A row: `op` by `backend`. Functions are "module:name" below models/backends, imported when they are first needed.

    computes: takes and returns what the op's `chunked` does, without chunk_size. in_place: decodes a token without a gradient
    and writes the new state over the old one, if there is such a kernel. shortest: tokens from which it is called; fewer are
    left to PyTorch. limits: on the settings of a mixer. suits: says by the tensors of a call whether this kernel
    computes it, whatever the run's backend; the op's own functions compute the other calls.
    """

    op: str
    backend: str
    computes: str
    in_place: str = ""
    shortest: int = 1
    limits: tuple[Limit, ...] = ()
    suits: Callable[..., bool] | None = None

    def __str__(self) -> str:
        return f"{self.op} by {self.backend}" + (f" ({', '.join(limit.words for limit in self.limits)})" if self.limits else "")


# A key of another length than heads have was tried with no kernel.
PLAIN_KEYS = Limit("affine_keys=false", lambda m: not getattr(m, "affine_keys", False))
MESA = (
    PLAIN_KEYS,
    Limit("solver.name=cg", lambda m: m.solver.name == "cg"),
    Limit("solver.gradient=implicit", lambda m: m.solver.gradient == "implicit"),
    Limit("solve_precision=float32", lambda m: m.solve_precision == "float32"),
    Limit("feature_map=silu_l2", lambda m: m.feature_map == "silu_l2"),
    Limit("decode=solver", lambda m: m.decode == "solver"),
    Limit("signed_decay=false", lambda m: not m.signed_decay),
    # Between these a Lambda is exact enough in float16, in which kernels of bfloat16 inputs keep it.
    Limit("regularizer_floor from 1e-4", lambda m: m.regularizer_floor >= 1e-4),
    Limit("regularizer_init below 32,768", lambda m: m.regularizer_init < 32_768),
)
MESA_BY_TRITON = (
    *MESA,
    Limit("key_dim and value_dim up to 128", lambda m: max(m.key_dim, m.value_dim) <= 128),
    Limit("solver.initial other than previous_token", lambda m: m.solver.initial != "previous_token"),
    # No kernel goes on in more digits, as `models.ops.solvers` does.
    Limit(f"solver.tolerance=0 or from {SMALLEST_RESIDUAL:g}", lambda m: not m.solver.is_beyond_float32),
    Limit("solver.stop=right_hand_side or tolerance=0", lambda m: m.solver.stop == "right_hand_side" or m.solver.tolerance == 0),
)
MESA_BY_FLA = (
    *MESA,
    # Found right on an H200; at 32 its read-outs were off by their own size.
    Limit("key_dim = value_dim = 64 or 128", lambda m: m.key_dim == m.value_dim and m.key_dim in (64, 128)),
    Limit("solver.initial=zero", lambda m: m.solver.initial == "zero"),
    Limit("solver.tolerance=0", lambda m: m.solver.tolerance == 0.0),
    Limit("random_steps=null", lambda m: m.random_steps is None),
)
DELTA_RULE_BY_FLA = (
    PLAIN_KEYS,
    Limit("key_dim up to 256", lambda m: m.key_dim <= 256),
)
GENERALIZED_DELTA_RULE_BY_FLA = (
    PLAIN_KEYS,
    Limit("key_dim times num_slices up to 256", lambda m: m.key_dim * getattr(m, "num_slices", 1) <= 256),
)

# The kernels of an op stand fastest first.
KERNELS = (
    Kernel(op="decayed_linear_attention", backend="fla", computes="fla:decayed_linear_attention", limits=(PLAIN_KEYS,)),
    Kernel(op="mlstm", backend="fla", computes="fla:mlstm", limits=(PLAIN_KEYS,)),
    Kernel(op="gla", backend="fla", computes="fla:gla"),
    Kernel(op="delta_rule", backend="fla", computes="fla:delta_rule", in_place="fla:delta_rule_", limits=DELTA_RULE_BY_FLA),
    Kernel(
        op="generalized_delta_rule",
        backend="fla",
        computes="fla_delta:generalized_delta_rule",
        shortest=2,
        limits=GENERALIZED_DELTA_RULE_BY_FLA,
    ),
    Kernel(
        op="diagonal_plus_low_rank",
        backend="fla",
        computes="fla_low_rank:diagonal_plus_low_rank",
        shortest=2,
        limits=(Limit("key_dim up to 128", lambda m: m.key_dim <= 128),),
    ),
    Kernel(op="ssd", backend="mamba_ssm", computes="mamba_ssm:ssd", in_place="mamba_ssm:step_", shortest=2),
    Kernel(op="rglru", backend="triton", computes="triton.rglru:scan"),
    Kernel(op="mesa", backend="triton", computes="triton.mesa_op:mesa", in_place="triton.mesa_op:mesa_", limits=MESA_BY_TRITON),
    Kernel(op="mesa", backend="fla", computes="fla:mesa", limits=MESA_BY_FLA),
    Kernel(op="softmax_attention", backend="torch", computes="flex_attention:flexible", suits=suits_flex_attention),
    Kernel(op="cached_attention", backend="triton", computes="triton.cached_attention:attend", suits=suits_cached_attention),
    Kernel(op="embedding", backend="torch", computes="spread_embedding:rows", suits=suits_spread_embedding),
    Kernel(op="cross_entropy", backend="triton", computes="triton.cross_entropy:mean_nll", suits=suits_fused_loss),
    Kernel(op="short_convolution", backend="triton", computes="triton.short_convolution:convolve", suits=suits_short_convolution),
)


def _rows(op: ModuleType | None) -> list[Kernel]:
    return [] if op is None else [row for row in KERNELS if f"models.ops.{row.op}" == op.__name__]


def computing(op: ModuleType | None, settings: Any) -> tuple[str, ...]:
    """The backends that compute an op for a mixer of these settings, in the order in which "auto" tries them.

    Kernels stand fastest first, and torch, which computes everything, last.
    """
    rows = [row for row in _rows(op) if row.suits is None and all(limit.holds(settings) for limit in row.limits)]
    return (*(row.backend for row in rows), "torch")


def obstacle(backend: str, device: str) -> str | None:
    """Why a backend, or one of several joined, can't run on a device ("cpu", "cuda"), with the remedy; None where nothing is in
    its way.
    """
    if JOINT in backend:
        return next(filter(None, (obstacle(name, device) for name in backend.split(JOINT))), None)
    if backend == "torch":
        return None
    if device != "cuda":
        return "it needs a CUDA device"
    return importlib.import_module(f"models.backends.{backend}").obstacle()


def check(backend: str, permitted: Sequence[str]) -> None:
    """Raises RequestError for a backend that is not among those that compute a mixer or a model with its settings."""
    if backend not in permitted:
        raise RequestError(
            f"backend={backend} does not compute this model with its settings, permitted are {', '.join(permitted)}"
            + ("" if set(backend.split(JOINT)) <= {*BACKENDS} else near(backend, (*BACKENDS, "auto")))
        )


def settle(backend: str, computing: Sequence[Sequence[str]], device: str) -> str:
    """The backend that a run uses, from what was asked: a name of BACKENDS, one for each mixer joined by JOINT, or "auto".

    computing: for each of the model's mixers the backends that compute it with its settings, as the function of that name gives
    them, torch among them.
    A mixer that no library has a kernel for, such as attention, is computed by torch beside any other backend.
    Returns one name where all mixers have it, else one for each, joined. Raises RequestError for a backend that does not compute
    the model or can't run on the device.
    """
    if backend == "auto":
        return _joined([next(name for name in own if obstacle(name, device) is None) for own in computing])
    for name in backend.split(JOINT):
        if name not in BACKENDS:
            known = "auto", *BACKENDS
            raise Refusal("backend", backend, ", ".join(known), near(name, known), "is unknown")
    permitted = {name: _joined([name if name in own else "torch" for own in computing]) for name in _common(computing)}
    names = by_mixer(permitted.get(backend, backend), len(computing))
    if len(names) != len(computing) or not all(name in own for name, own in zip(names, computing, strict=True)):
        check(backend, list(dict.fromkeys(["auto", *permitted, *permitted.values(), _joined([own[0] for own in computing])])))
    reason = next(filter(None, (obstacle(name, device) for name in names)), None)
    if reason is not None:
        raise RequestError(f"backend={backend} can't run here: {reason}")
    return _joined(names)


def by_mixer(backend: str, count: int) -> list[str]:
    """The backend of each of `count` mixers, from what `settle` returned."""
    names = backend.split(JOINT)
    return names * count if len(names) == 1 else names


def _common(computing: Sequence[Sequence[str]]) -> list[str]:
    """The backends that compute every mixer for which a library has a kernel, in the first one's order of speed."""
    choosing = [own for own in computing if len(own) > 1] or [computing[0]]
    return [name for name in choosing[0] if all(name in own for own in choosing)]


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(set(names)) == 1 else JOINT.join(names)


class Loaded(NamedTuple):
    """The functions of a row, imported: `torch.compile` follows what a layer holds, and not an import."""

    computes: Callable[..., Any]
    in_place: Callable[..., Any] | None
    shortest: int
    suits: Callable[..., bool] | None


def load(op: ModuleType | None, backend: str) -> Loaded | None:
    """The kernel of an op by a backend, None where PyTorch computes it."""
    for row in _rows(op):
        if row.backend == backend:
            in_place = _function(row.in_place) if row.in_place else None
            return Loaded(_function(row.computes), in_place, row.shortest, row.suits)
    return None


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"models.backends.{module}"), name)


def resolve(op: ModuleType, kernel: Loaded | None, *, length: int, chunk_size: int) -> Callable[..., Any]:
    """What computes an op for `length` tokens.

    Without a kernel that is `recurrent` for a single token, and else `chunked`, in chunks of chunk_size tokens.
    """
    if kernel is not None and length >= kernel.shortest:
        return kernel.computes
    return op.recurrent if length == 1 else partial(op.chunked, chunk_size=chunk_size)


def chosen(op: ModuleType, x: Tensor) -> Callable[..., Any] | None:
    """The kernel that computes an op of this tensor whatever the run's backend, None where the op's own functions do."""
    return next((_function(row.computes) for row in _rows(op) if row.suits is not None and row.suits(x)), None)
