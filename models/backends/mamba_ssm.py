"""Every adapter to mamba-ssm (2.3.2): its kernels of the state space duality, for a sequence and for a token.

Those for a sequence multiply in the dtype of q, k, v (float32 as TF32), and sum and hand over states in float32.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.library import custom_op

from models.backends import version
from models.backends.differentiable import differentiable

INSTALL = (
    "MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps 'mamba-ssm>=2.3.2,<2.4' einops"
)
# The authors' choice: products of 256 tokens keep the tensor cores busy.
CHUNK_SIZE = 256


def obstacle() -> str | None:
    """Why mamba-ssm can't run on a CUDA device here, with the remedy; None where nothing is in its way."""
    installed = version("mamba-ssm")
    if installed is None:
        return f"mamba-ssm is not installed: {INSTALL}"
    # The operators below call functions that are not its public interface.
    if not installed.startswith("2.3."):
        return f"mamba-ssm is {installed}, permitted is 2.3: {INSTALL}"
    for module in ("einops", "triton"):
        if importlib.util.find_spec(module) is None:
            return f"{module}, which mamba-ssm needs, is not installed: pip install {module}"
    return None


@functools.cache
def _kernels(name: str) -> ModuleType:
    """A module of mamba_ssm.ops.triton, imported past the package's own __init__.

    That __init__ imports a compiled CUDA extension, which these Triton kernels do not need and which a machine without a
    CUDA compiler does not have. So the package stands in sys.modules unexecuted while its submodule is imported.
    """
    name = f"mamba_ssm.ops.triton.{name}"
    if "mamba_ssm" in sys.modules:
        return importlib.import_module(name)
    sys.modules["mamba_ssm"] = importlib.util.module_from_spec(importlib.util.find_spec("mamba_ssm"))
    try:
        return importlib.import_module(name)
    finally:
        # Whoever imports the package later is to get the package.
        del sys.modules["mamba_ssm"]


def ssd(*, q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, starts: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """As models.ops.ssd.chunked, differentiable, on a CUDA device: y in the dtype of v, the state in float32.

    q, k, v are of one dtype, float32 or bfloat16; dt, A and the state are float32.
    """
    # The kernels cut a sequence where its number changes, and count the state before it to number 0.
    document = None if starts is None else starts.cumsum(1, dtype=torch.int32)
    y, last = _scan(q, k, v, dt, A, state, document)
    return y, last


@differentiable("linear_rnn_suite::mamba_ssm_scan")
def _scan(
    q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, state: Tensor, document: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, _, _, _, _, last = _kernels("ssd_combined")._mamba_chunk_scan_combined_fwd(
        v, dt, A, k, q, CHUNK_SIZE, initial_states=state, seq_idx=document
    )
    return y, last.contiguous()


def _scan_backward(into_y: Tensor, into_last: Tensor | None, *kept: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v, dt, A, state, document = kept
    into_last = torch.zeros_like(state) if into_last is None else into_last
    # The kernels ask for the output and read only its shape where there is no gate: v has that shape too.
    into_v, into_dt, into_A, into_k, into_q, _, _, _, into_state = _kernels("ssd_combined")._mamba_chunk_scan_combined_bwd(
        into_y, v, dt, A, k, q, v, CHUNK_SIZE, initial_states=state, dfinal_states=into_last, seq_idx=document
    )
    return into_q, into_k, into_v, into_dt, into_A, into_state.to(state.dtype)


_scan.differentiate(
    _scan_backward,
    num_inputs=6,
    fake=lambda q, k, v, dt, A, state, document: (v.new_empty(v.shape), state.new_empty(state.shape)),
)


@custom_op("linear_rnn_suite::mamba_ssm_step", mutates_args=("state",))
def step_(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, state: Tensor) -> Tensor:
    """One token without a gradient, which reads and writes the state once, in place; the read-out [B, H, V].

    q, k: [B, G, K]; v: [B, H, V]; dt: [B, H]; A: [H]; state: [B, H, V, K].
    """
    heads = v.shape[1:]
    # Strides of zero tell the kernel that these are numbers of a head. It asks for the addends that we have none of.
    dt, A, nothing = dt.unsqueeze(-1).expand(v.shape), A.view(-1, 1, 1).expand(*heads, state.shape[-1]), A.new_zeros(heads[0], 1)
    nothing = nothing.expand(heads)
    return _kernels("selective_state_update").selective_state_update(state, v, dt, A, k, q, D=nothing, dt_bias=nothing)


step_.register_fake(lambda q, k, v, dt, A, state: torch.empty_like(v))
