"""Soft-capped cross-entropy of a tied head whose gradient takes the place of the logits, a slice of positions at a time.

What models/ops/cross_entropy.py defines, with the two products left to cuBLAS and all between them in one kernel: the
logits are written once in the dtype of the features, and read once where a row fits into the registers of a program, else twice.

Shapes: features x [N, D], weight E [V, D], targets [N] int64, below 0 where nothing is asked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from models.backends.triton.launch import on_its_device

SLICE_ELEMENTS = 2**28
BLOCK = 2048
WIDEST_ROW = 16384
"""A program holds rows of up to so many columns: 16 for each thread of 32 warps, the most that there are."""
NUMBERS_A_WARP = 512
# cuBLAS is several times slower on rows that do not begin at a multiple of 16 bytes; 50,257 columns are odd.
COLUMNS_MULTIPLE = 64


@triton.jit
def _half(x, soft_cap):
    """(1 + tanh(x / soft_cap)) / 2, whose slope by x / soft_cap is 2 (half - half^2).

    Off by some units in the last place of float32, so the slope of a logit above 8 caps is 0.
    """
    # exp to the base of 2, with log2(e) among what is the same for all numbers
    root = tl.rsqrt(1.0 + tl.exp2((-2.0 / soft_cap * 1.4426950408889634) * x))
    # The GPU waits for instructions here, of which a division takes several.
    return root * root


@triton.jit
def _exponential(half, soft_cap):
    """exp of the capped logit. What is capped needs no maximum in front of an exponential."""
    cap = soft_cap * 1.4426950408889634
    return tl.exp2(2.0 * cap * half - cap)


@triton.jit
def _target_of(targets, logits, row, vocab_size, soft_cap):
    """(target, whether it asks something, its capped logit, of one beyond the vocabulary that of 0)."""
    target = tl.load(targets + row)
    asked = target >= 0
    x = tl.load(logits + target, mask=asked & (target < vocab_size), other=0.0).to(tl.float32)
    return target, asked, soft_cap * (2.0 * _half(x, soft_cap) - 1.0)


@triton.jit
def _loss_and_gradient(logits, targets, nll, scale, soft_cap, vocab_size, num_columns, BLOCK: tl.constexpr):
    """One row a program: products x E^T [num_columns] -> nll, and the gradient of scale * nll in their place."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * num_columns
    # By all threads, before any of them writes: the sum below has them wait for each other.
    target, asked, chosen = _target_of(targets, logits, row, vocab_size, soft_cap)
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab_size, BLOCK):
        at = first + columns
        # What is padded is read too, since whole words can be masked by num_columns alone.
        x = tl.load(logits + at, mask=at < num_columns, other=0.0).to(tl.float32)
        exponential = _exponential(_half(x, soft_cap), soft_cap)
        if first + BLOCK > vocab_size:
            exponential = tl.where(at < vocab_size, exponential, 0.0)
        sums += exponential
    normaliser = tl.sum(sums)
    tl.store(nll + row, tl.where(asked, tl.log(normaliser) - chosen, 0.0))
    weight = tl.where(asked, 4.0 * tl.load(scale), 0.0)
    per_exponential = weight / normaliser
    for first in range(0, num_columns, BLOCK):
        at = first + columns
        half = _half(tl.load(logits + at, mask=at < num_columns, other=0.0).to(tl.float32), soft_cap)
        share = _exponential(half, soft_cap) * per_exponential
        # Most blocks hold neither the target nor padding, and to ask that of every number takes longer than to read it.
        if (target >= first) & (target < first + BLOCK):
            share -= tl.where(at == target, weight, 0.0)
        if first + BLOCK > vocab_size:
            share = tl.where(at < vocab_size, share, 0.0)
        gradient = share * (half - half * half)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < num_columns)


@triton.jit
def _loss_and_gradient_at_once(logits, targets, nll, scale, soft_cap, vocab_size, num_columns, BLOCK: tl.constexpr):
    """The same for rows of at most BLOCK columns, of which every number is read, and its exponentials are computed, once."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * num_columns
    target, asked, chosen = _target_of(targets, logits, row, vocab_size, soft_cap)
    at = tl.arange(0, BLOCK)
    half = _half(tl.load(logits + at, mask=at < num_columns, other=0.0).to(tl.float32), soft_cap)
    exponential = tl.where(at < vocab_size, _exponential(half, soft_cap), 0.0)
    normaliser = tl.sum(exponential)
    tl.store(nll + row, tl.where(asked, tl.log(normaliser) - chosen, 0.0))
    weight = tl.where(asked, 4.0 * tl.load(scale), 0.0)
    share = exponential * (weight / normaliser) - tl.where(at == target, weight, 0.0)
    gradient = share * (half - half * half)
    tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < num_columns)


@triton.jit
def _share_of_a_target(targets, scale, count, BLOCK: tl.constexpr):
    """One program: one over how many of all targets [count] ask something, 1 where none does. To the bit what torch divides."""
    asked = tl.zeros([BLOCK], tl.int64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        asked += (tl.load(targets + at, mask=at < count, other=-1) >= 0).to(tl.int64)
    tl.store(scale, tl.div_rn(1.0, tl.maximum(tl.sum(asked), 1).to(tl.float32)))


def mean_nll(features: Tensor, weight: Tensor, targets: Tensor, *, soft_cap: float) -> Tensor:
    """Mean negative log-likelihood of the targets that ask something, in nats, float32, 0 where none does; its gradient is
    worked out on the way forward.

    Logits are rounded to the dtype of the features, float32 or bfloat16, as a linear map would leave them; under autocast to
    that of autocast. Targets that ask nothing cost their share of the products, and nothing waits for their number.
    """
    if torch.is_autocast_enabled("cuda"):
        features = features.to(torch.get_autocast_dtype("cuda"))
    return _mean_nll(features, weight, targets, soft_cap)[0]


@torch.library.custom_op("linear_rnn_suite::mean_nll", mutates_args=())
@on_its_device
def _mean_nll(features: Tensor, weight: Tensor, targets: Tensor, soft_cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients by features (in their dtype) and by weight (in its own)."""
    vocab_size = len(weight)
    narrow, missing = weight.to(features.dtype), -vocab_size % COLUMNS_MULTIPLE
    # Padding by nothing copies.
    if missing:
        narrow = F.pad(narrow, (0, 0, 0, missing))
    targets, scale = targets.contiguous(), torch.empty((), dtype=torch.float32, device=features.device)
    _share_of_a_target[(1,)](targets, scale, len(targets), BLOCK=BLOCK, num_warps=8)
    nll = torch.empty(len(features), dtype=torch.float32, device=features.device)
    into_features = torch.empty_like(features, memory_format=torch.contiguous_format)
    into_weight = None if len(features) else torch.zeros_like(narrow)
    # A multiple of 16, so that every slice begins where the kernel may read whole words.
    size = max(16, SLICE_ELEMENTS // len(narrow) // 16 * 16)
    for first in range(0, len(features), size):
        rows = slice(first, first + size)
        logits = features[rows] @ narrow.mT
        arguments = (logits, targets[rows], nll[rows], scale, soft_cap, vocab_size, len(narrow))
        if len(narrow) <= WIDEST_ROW:
            block = triton.next_power_of_2(len(narrow))
            num_warps = max(1, block // NUMBERS_A_WARP)
            _loss_and_gradient_at_once[(len(logits),)](*arguments, BLOCK=block, num_warps=num_warps)
        else:
            _loss_and_gradient[(len(logits),)](*arguments, BLOCK=BLOCK, num_warps=8)
        torch.mm(logits, narrow, out=into_features[rows])
        part = _product_in_float32(logits.mT, features[rows])
        into_weight = part if into_weight is None else into_weight.add_(part)
        # Else the next slice would stand beside this one.
        del logits, arguments
    # What is padded has a gradient of zero.
    return nll.sum() * scale, into_features, into_weight[:vocab_size].to(weight.dtype)


def _product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, summed and left in float32: the sum over slices must not be rounded at each of them."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


@_mean_nll.register_fake
def _(features: Tensor, weight: Tensor, targets: Tensor, soft_cap: float) -> tuple[Tensor, Tensor, Tensor]:
    into_features = torch.empty_like(features, memory_format=torch.contiguous_format)
    return features.new_empty((), dtype=torch.float32), into_features, torch.empty_like(weight)


def _keep_gradients(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: FunctionCtx, into_loss: Tensor, *_: None) -> tuple[Tensor, Tensor, None, None]:
    into_features, into_weight = ctx.saved_tensors
    return into_features * into_loss.to(into_features.dtype), into_weight * into_loss, None, None


_mean_nll.register_autograd(_backward, setup_context=_keep_gradients)
