"""Softmax attention by PyTorch's FlexAttention (Dong et al. 2024, arXiv 2412.05496): blocks of keys out of sight cost nothing.

Arguments and result are those of `masked` in models/ops/softmax_attention.py. For CUDA and 16-bit inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Queries and keys of a block; what the kernel takes by default."""
GRAPHS_OF_A_FUNCTION = 64


def flexible(*, q: Tensor, k: Tensor, v: Tensor, span: Tensor) -> Tensor:
    """`masked` in time and memory that grow with the blocks of keys seen, O(T window) under a window."""
    mask = block_mask(span.expand(len(q), -1).contiguous(), k.shape[1])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attend = flex_attention if torch.compiler.is_compiling() else _compiled()
    return attend(q, k, v, block_mask=mask).transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """The kernel. Uncompiled it would hold all T x S scores, so a graph that can't be compiled whole is an error."""
    allow_many_shapes()
    return torch.compile(flex_attention, fullgraph=True)


def block_mask(span: Tensor, num_keys: int) -> BlockMask:
    """Which blocks of keys a block of queries sees, in part or in full, from the span of every query [B, T].

    All keys of a query lie in a row, so the blocks follow from the first key and the query itself: no T x S mask is made.
    """
    length = span.shape[1]
    before = num_keys - length
    last = torch.arange(before, num_keys, device=span.device)
    first = last - span  # [B, T], the first key that a query sees

    def visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s <= t + before) & (s >= t + before - span[b, t])

    # Padding repeats the last query, which changes no block's extremes.
    padded = torch.arange(length - length % -BLOCK, device=span.device).clamp(max=length - 1)
    first, last = first[:, padded].unflatten(1, (-1, BLOCK)), last[padded].unflatten(0, (-1, BLOCK))
    begin = torch.arange(0, num_keys, BLOCK, device=span.device)
    end = begin + BLOCK - 1
    seen = (end >= first.amin(-1, keepdim=True)) & (begin <= last[:, -1:])  # [B, blocks of queries, blocks of keys]
    full = (begin >= first.amax(-1, keepdim=True)) & (end <= last[:, :1])
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, num_keys)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the blocks [B, N, M] a row has, [B, 1, N], and their indices, those first, [B, 1, N, M]."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)


def allow_many_shapes() -> None:
    """Lets torch.compile keep a graph for every shape and dtype that a sweep meets: its own limit is 8 a process, and where a
    graph must be whole it raises at the ninth.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_OF_A_FUNCTION)
