"""Softmax attention under a window, or with documents in a sequence, three ways: which is fastest on this GPU?

    python -m tests.benchmarks.gpu_windows [--dry-run]

bfloat16, 8 heads of 128, forward and backward, milliseconds (median), as they are and compiled; 32,768 tokens in every
batch. `attend` in models/ops/softmax_attention.py takes what this says. The first row is all earlier tokens, for scale.
--dry-run is on a CPU, where FlexAttention has no backward pass and says so, and nothing is compiled.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from models.backends.flex_attention import flexible
from models.ops.softmax_attention import fused, windowed
from tests.benchmarks.gpu_decode import seconds_of

TOKENS, HEADS, KEY_DIM, REPEATS = 2**15, 8, 128, 20


def milliseconds(attend: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> float:
    """The time of a forward and backward pass."""

    def once() -> None:
        q, k, v = tensors
        torch.autograd.grad(attend(q=q, k=k, v=v), tensors, weight)

    times = [seconds_of(once, weight.device) for _ in range(REPEATS + 3)]
    return 1e3 * statistics.median(times[3:])


def measured(attend: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> str:
    """As it is, and compiled as a training block has it."""
    torch.compiler.reset()
    forms = [attend, torch.compile(attend, fullgraph=True, dynamic=False)] if weight.is_cuda else [attend]
    return " / ".join(shown(form, tensors, weight) for form in forms)


def shown(attend: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> str:
    try:
        return f"{milliseconds(attend, tensors, weight):.2f}"
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def spans(length: int, window: int | None, documents: int, device: torch.device) -> Tensor:
    """[1, T]: the window, and documents of equal length."""
    position = torch.arange(length, device=device) % -(-length // documents)
    return (position if window is None else position.clamp(max=window - 1)).unsqueeze(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    lengths, tokens = ((256,), 512) if options.dry_run else ((2048, 16384), TOKENS)
    print("| T | window | documents | fused | windowed | flexible |\n|---|---|---|---|---|---|")
    for length in lengths:
        drawn = torch.randn(4, tokens // length, length, HEADS, KEY_DIM, device=device, dtype=torch.bfloat16).unbind()
        tensors, weight = [x.clone().requires_grad_() for x in drawn[:3]], drawn[3]
        print(f"| {length} | none | 1 | {measured(functools.partial(fused, span=None), tensors, weight)} | | |", flush=True)
        for window, documents in ((16, 1), (128, 1), (1024, 1), (None, 8)):
            span = spans(length, window, documents, device)
            ways = [functools.partial(fused, span=span), functools.partial(flexible, span=span)]
            if window is not None:
                ways.insert(1, functools.partial(windowed, span=span, window=window))
            cells = [measured(way, tensors, weight) for way in ways]
            if window is None:
                cells.insert(1, "")
            print(" | ".join([f"| {length} | {window or 'none'} | {documents}", *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
