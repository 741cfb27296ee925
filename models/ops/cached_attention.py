"""Softmax attention of a single query over a cache of keys and values (Vaswani et al. 2017, eq. 1), for decoding.

    o = sum_s p_s v_s,   p = softmax(q . k_s / sqrt(K)) over the slots s <= position

A token has been written into every slot up to its sequence's position, in any order, and what lies in a slot above, any finite
number, is not seen; of a ring that has been round, position >= S, all S slots are. The kernel, which does not read what is not
seen, stands in models/backends/triton/cached_attention.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(*, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """q [B, H, K], k, v [B, H, S, K] in one dtype, position [B] int64 from 0 -> o [B, H, K] in the dtype of q."""
    visible = torch.arange(k.shape[2], device=k.device) <= position.unsqueeze(1)
    return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=visible[:, None, None, :]).squeeze(2)
