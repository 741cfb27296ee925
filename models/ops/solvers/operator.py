"""What a solver sees of its matrices, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Preconditioner(Protocol):
    """M_t near A_t for each of M * C tokens; `where` is [M, C, 1], the tokens that have one."""

    where: Tensor

    def inverse(self, r: Tensor) -> Tensor:
        """M^-1 r, [M, C, K]; r itself where a token has none."""


class Operator(Protocol):
    """M * C symmetric matrices of K x K; iterating over it gives its tensors, M first, and its type builds it again."""

    def product(self, p: Tensor) -> Tensor:
        """A p, [M, C, K]."""

    def diagonal(self) -> Tensor:
        """[M, C, K]."""

    def dense(self) -> Tensor:
        """[M, C, K, K], for the exact solver."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Numbers below and above all eigenvalues of a positive definite A, both [M, C, 1]."""

    def preconditioner(self) -> Preconditioner:
        """Matrices near A that are quickly inverted."""


class Solution(NamedTuple):
    """x: [M, C, K]. steps: [M, C] int64, the iterations of every token; 0 for an exact solver.

    remainder: [M, C, K], what the solution has beyond the digits of x, 0 for tokens that are not solved to more than these;
    None where none are.
    """

    x: Tensor
    steps: Tensor
    remainder: Tensor | None


def widened(operator: Operator) -> Operator:
    """The matrices of an operator in float64."""
    return changed(operator, Tensor.double)


def changed(operator: Operator, change: Callable[[Tensor], Tensor]) -> Operator:
    """The matrices of an operator whose tensors are others."""
    return type(operator)(*map(change, operator))


def select(operator: Operator, chosen: Tensor) -> Operator:
    """The matrices of some of the M, by their indices."""
    return type(operator)(*(x[chosen] for x in operator))


class Rounded:
    """The same matrices where a product takes its operands in fewer digits, as tensor cores do, and sums in all.

    H + Lambda is rounded once, with all that it is made of, and every vector before it is multiplied; what else a solver asks of
    the matrices is exact. bits: significant ones, with the leading one.
    """

    def __init__(self, operator: Operator, bits: int) -> None:
        self._bits = bits
        self._coarse = changed(operator, partial(rounded, bits=bits))
        self.diagonal, self.dense, self.bounds = operator.diagonal, operator.dense, operator.bounds
        self.preconditioner = operator.preconditioner

    def product(self, p: Tensor) -> Tensor:
        return self._coarse.product(rounded(p, self._bits))


WHOLE_NUMBERS = {torch.float32: (torch.int32, 24), torch.float64: (torch.int64, 53)}
"""By type its numbers' bits as whole numbers, and how many of them are significant, with the leading one."""


def rounded(x: Tensor, bits: int) -> Tensor:
    """The numbers of so many significant bits that are nearest to x, of two the even one, in x's own range; its gradient is 1."""
    kind, significant = WHOLE_NUMBERS[x.dtype]
    dropped = significant - bits
    number = x.detach().view(kind)
    # Nearer to the next one from half on, or from beyond half where that is odd. No product, which a compiler would fuse.
    up = (1 << dropped - 1) - 1 + ((number >> dropped) & 1)
    nearest = (((number + up) >> dropped) << dropped).view(x.dtype)
    return x + (nearest - x.detach())
