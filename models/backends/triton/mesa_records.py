"""What calls of the Mesa kernels pass to one another.

B batch, T time, H heads, K key dim, V value dim, C chunk, N chunks, P heads of a piece
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """k [B, T, H, K], v [B, T, H, V], gates [B, T, H] and the regularizer [H, K]."""

    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor
    regularizer: Tensor


class Gates(NamedTuple):
    """What a chunk's gates come to, in float32, heads of all sequences first and the last chunk filled up with beta = 0.

    [B * H, N * C], a token each. log, resets: log_decay summed over the chunk up to the token, without those that forget
    everything, and how many these are (int32). from_start: what is left at the token of what was before the chunk. to_end: what
    is left of the token at the chunk's end. strength: beta.
    [B * H, N], a chunk each. decay: what is left at its end of what was before it. mass: what its tokens weigh there in all.
    """

    log: Tensor
    resets: Tensor
    from_start: Tensor
    to_end: Tensor
    strength: Tensor
    decay: Tensor
    mass: Tensor

    def within(self) -> tuple[Tensor, ...]:
        """What `chunk_weights` takes, and what is left of the state before the chunk."""
        return self.log, self.resets, self.strength, self.from_start


class Ends(NamedTuple):
    """G [B, H, V, K] and H [B, H, K, K] before the first token, or after the last; None for zeros."""

    G: Tensor | None
    H: Tensor | None


class Sizes(NamedTuple):
    """Sizes of one problem, as the kernels take them.

    all_heads: heads of all sequences. block_k: columns of a tile that has all of K. parts: how many of 16 bits hold a number of
    q, k or v, one or two.
    """

    length: int
    num_chunks: int
    num_heads: int
    all_heads: int
    block_k: int
    parts: int


class States(NamedTuple):
    """G: [P, N, V, K] float32 before every chunk. H: [P, N, 2, K, K], the high and low float16 part of H times scale [P, N].

    low: the squares of H's low part, summed over each row of its tiles, float32 [P, N, rows of all tiles].
    """

    G: Tensor
    H: Tensor
    scale: Tensor
    low: Tensor


class Solver(NamedTuple):
    """When and where conjugate gradients end and begin, see `mesa.mesa_chunked`."""

    tolerance: float
    max_steps: int
    initial: str


class Segments(NamedTuple):
    """Time cut into `number` segments of `span` chunks, the last of which may be shorter.

    sums [P, number - 1, rows, K], decays and masses [P, number - 1]: what kernels leave of all segments but one, in float32.
    """

    sums: Tensor
    decays: Tensor
    masses: Tensor
    span: int
    number: int
