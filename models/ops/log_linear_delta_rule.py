"""The gated delta rule with a state for every scale of the past (log-linear attention, arXiv 2506.04761, over Gated DeltaNet).

    S_t = gamma_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T = sum_l S_t^l,   o_t = sum_l w_t^l S_t^l q_t

S^l is what tokens of level l have written. Token t itself is of level 0; an earlier token s is of the level of the highest bit
in which the numbers s and t differ, counted from 1, so that a level l >= 1 is none or 2^(l-1) tokens in a row, and the longer
ago the more (Fenwick 1994). The last of the levels has all that is longer ago. With weights of 1 it is the gated delta rule.

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 and beta in [0, 1] [B, T, H], weights [B, T, H, L] of L levels,
positions [B, T], the numbers of the tokens, which follow each other, and begin at 0 where log_decay is -inf and all that came
before is forgotten, and the state S [B, H, L, V, K] in float32 or wider, as the token before the first has left it. They return
o [B, T, H, V] and the state after the last token, both in the dtype of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.decay import chunk_decays, join_heads, over_time, split_heads


def num_levels(length: int) -> int:
    """With so many levels every token of a sequence of this length is of a level of its own scale."""
    return (length - 1).bit_length() + 1


def recurrent(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    weights: Tensor,
    positions: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time: levels are joined as the digits of a binary counter are, and then all are moved."""
    outputs = []
    tokens = over_time(q, k, v, log_decay.exp(), beta, weights, dtype=state.dtype)
    for token, position in zip(tokens, positions.unbind(1), strict=True):
        q_t, k_t, v_t, decay_t, beta_t, weights_t = (x.unsqueeze(2) for x in token)
        levels = _levels_of_blocks(position - 1, position, state.shape[2])
        state = decay_t * _joined(state, levels.unsqueeze(1))
        # The lowest level, which is empty now, is written; the others are erased along the key.
        change = torch.cat([v_t, -(state[:, :, 1:] @ k_t)], dim=2)
        state = state + (beta_t * change) @ k_t.mT
        outputs.append((weights_t.squeeze(2)[..., None] * (state @ q_t)).sum(2))
    return torch.stack(outputs, dim=1).squeeze(-1), state


def chunked(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    weights: Tensor,
    positions: Tensor,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products, from what the delta rule's chunks make of every value and of the state before.

    With A_t = gamma_t (I - beta_t k_t k_t^T) token t reads beta_s v_s k_s^T A_{s+1} ... A_t q_t of a token s of its chunk, and
    S^l A_1 ... A_t q_t of a level before it: the rows of `pairs` and `reading`, weighted by the level that s or l is of at t.
    """
    shape, heads, count = v.shape, state.shape[:2], state.shape[2]
    numbers = _split_positions(positions, heads[1], chunk_size)
    tensors = (q, k, v, log_decay, beta, weights)
    q, k, v, log_decay, beta, weights = split_heads(*tensors, chunk_size=chunk_size, dtype=state.dtype)
    decays = chunk_decays(log_decay)
    # The solve reads only below the diagonal. A product of powers, exact on paper, cancels badly for equal keys.
    interaction = torch.bmm(k, k.mT) * (decays.within * beta.unsqueeze(-1))
    inverse = torch.linalg.solve_triangular(interaction, torch.diag_embed(beta), upper=False, unitriangular=True)
    scores, k_end = torch.bmm(q, k.mT) * decays.within, k * decays.to_end.unsqueeze(-1)
    erasing = torch.bmm(inverse * decays.from_start.unsqueeze(-2), k)
    pairs, reading = torch.bmm(scores, inverse), q * decays.from_start.unsqueeze(-1) - torch.bmm(scores, erasing)
    of_tokens = _level(numbers.unsqueeze(-1), numbers.unsqueeze(-2), count)
    of_blocks = _levels_of_blocks(numbers[:, :1] - 1, numbers, count)
    within = torch.bmm(pairs * weights.gather(2, of_tokens), v)

    keys = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    moving = decays.from_start[:, -1, None, None] * keys - torch.bmm(erasing.mT, k_end)
    at_end = F.one_hot(of_tokens[:, -1], count).to(v.dtype)
    written = torch.bmm((at_end.unsqueeze(-1) * v.unsqueeze(2)).flatten(2).mT, torch.bmm(inverse.mT, k_end))
    state, outputs = state.flatten(0, 1), []
    parts = (reading, weights.gather(2, of_blocks), within, moving, of_blocks[:, -1], written)
    chunks = (x.unflatten(0, (len(state), -1)).unbind(1) for x in parts)
    for reading_n, weights_n, within_n, moving_n, levels_n, written_n in zip(*chunks, strict=True):
        read = torch.bmm(reading_n, state.flatten(1, 2).mT).unflatten(-1, (count, -1))
        outputs.append(within_n + (weights_n.unsqueeze(-1) * read).sum(2))
        moved = torch.bmm(state.flatten(1, 2), moving_n).view_as(state)
        state = _joined(moved, levels_n) + written_n.view_as(state)
    return join_heads(torch.stack(outputs, dim=1).flatten(0, 1), shape), state.unflatten(0, heads)


def _level(t: Tensor, s: Tensor, count: int) -> Tensor:
    """The level, of `count`, that token s is of at token t, int64: the bits of the number in whose digits both differ."""
    return torch.frexp((t ^ s).double()).exponent.clamp(max=count - 1).long()


def _levels_of_blocks(last: Tensor, t: Tensor, count: int) -> Tensor:
    """What the levels [..., count] that token `last` has left are at a later token t: those of the first token of each block."""
    levels = torch.arange(count, device=t.device)
    # Where nothing came before there is nothing that could be of a wrong level.
    last = last.clamp(min=0).unsqueeze(-1)
    found = _level(t.unsqueeze(-1), (last >> levels) << levels, count)
    return torch.cat([found[..., :-1], torch.full_like(found[..., -1:], count - 1)], dim=-1)


def _joined(state: Tensor, levels: Tensor) -> Tensor:
    """The state [..., L, V, K] with each level added to what it becomes, levels [..., L]."""
    index = levels[..., None, None].expand(*state.shape[:-3], *levels.shape[-1:], *state.shape[-2:])
    return torch.zeros_like(state).scatter_add(-3, index, state)


def _split_positions(positions: Tensor, num_heads: int, chunk_size: int) -> Tensor:
    """[B, T] -> [M, C] as `split_heads` does it; what is padded has the number of the last token."""
    chunk_size = min(chunk_size, positions.shape[1])
    missing = -positions.shape[1] % chunk_size
    padded = torch.cat([positions, positions[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (-1, chunk_size))
    return padded.unsqueeze(1).expand(-1, num_heads, -1, -1).flatten(0, 2)
