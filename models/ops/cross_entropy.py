"""Soft-capped cross-entropy of a tied head, a slice of positions at a time: the logits of all are never held.

    logits = c tanh(x E^T / c),   nll = logsumexp(logits) - logits[target]

At a vocabulary of 50,257 the logits of one small batch are 400 MB, and passing over them repeatedly is most of a
training step on a CPU; a slice stays in its cache.

Shapes: features x [N, D], weight E [V, D], targets [N] int64. Computed in the dtype of the features, float32 or wider.
Logits lie within the cap, so up to MAX_SOFT_CAP their exponentials are summed as they are, without finding a maximum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SLICE_ELEMENTS = 2**21
SLICE_ELEMENTS_GPU = 2**27
MAX_SOFT_CAP = 60.0  # e^60 times a million tokens is far from the largest float32


def mean_nll(features: Tensor, weight: Tensor, targets: Tensor, *, soft_cap: float) -> Tensor:
    """Mean negative log-likelihood in nats over the targets from 0 up; 0 where there is none, and so is its gradient.

    Its gradient is worked out on the way forward. A target below 0 asks nothing.
    """
    asked = targets >= 0
    if not asked.all():
        features, targets = features[asked], targets[asked]
    return _MeanNLL.apply(features, weight, targets, soft_cap)


@torch.no_grad()
def score(features: Tensor, weight: Tensor, targets: Tensor, *, soft_cap: float) -> tuple[Tensor, Tensor]:
    """nll [N] of every target, and the most likely token [N]."""
    nll, prediction = [], []
    for rows in _slices(features, weight):
        logits = _bounded(features[rows], weight, soft_cap).mul_(soft_cap)
        chosen = logits.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
        prediction.append(logits.argmax(-1))
        nll.append(logits.exp_().sum(-1).log() - chosen)
    return torch.cat(nll), torch.cat(prediction)


def _slices(features: Tensor, weight: Tensor) -> Iterator[slice]:
    elements = SLICE_ELEMENTS_GPU if features.is_cuda else SLICE_ELEMENTS
    size = max(1, elements // len(weight))
    # One of nothing where there are none.
    return (slice(first, first + size) for first in range(0, max(1, len(features)), size))


def _bounded(x: Tensor, weight: Tensor, soft_cap: float) -> Tensor:
    """tanh(x E^T / c), in float32 or wider."""
    logits = x @ weight.to(x.dtype).mT
    return logits.to(torch.promote_types(x.dtype, torch.float32)).div_(soft_cap).tanh_()


class _MeanNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, targets: Tensor, soft_cap: float) -> Tensor:
        into_features, into_weight = torch.empty_like(features), torch.zeros_like(weight)
        count = max(1, len(features))
        total = features.new_zeros((), dtype=torch.promote_types(features.dtype, torch.float32))
        for rows in _slices(features, weight):
            bounded = _bounded(features[rows], weight, soft_cap)
            logits, target = bounded * soft_cap, targets[rows].unsqueeze(1)
            total -= logits.gather(1, target).sum()
            weights = logits.exp_()
            normaliser = weights.sum(-1, keepdim=True)
            total += normaliser.log().sum()
            # d nll / d (x E^T): softmax less the one-hot target, through the cap's derivative 1 - tanh^2.
            into_logits = weights.div_(normaliser)
            into_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=into_logits.dtype))
            into_logits = bounded.square_().neg_().add_(1).mul_(into_logits).div_(count).to(features.dtype)
            into_features[rows] = into_logits @ weight.to(features.dtype)
            # In place: the gradient of the weight is larger than a slice.
            into_weight.addmm_(into_logits.mT.to(weight.dtype), features[rows].to(weight.dtype))
        ctx.save_for_backward(into_features, into_weight)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, into_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        into_features, into_weight = ctx.saved_tensors
        return into_features * into_loss.to(into_features.dtype), into_weight * into_loss, None, None
