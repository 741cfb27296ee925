"""Operators with a gradient by kernels, as an operator too: torch.compile takes both whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torch.library import custom_op

SCHEMA = "(Tensor do, Tensor? dstate, Tensor?[] kept) -> Tensor[]"

Gradients = Callable[..., tuple[Tensor, ...]]
"""Takes the gradients into o and the state, or None for the latter, the inputs and what is returned beside."""


def is_traced() -> bool:
    """Whether a compiler, a mode or a transform looks on, which takes an operator; Python takes twice as long for one."""
    # first, as a compiler would stumble over the others
    if torch.compiler.is_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()


class DifferentiableOp:
    """`compute` as an operator of this name, and outside compilers as a function of autograd.

    compute: takes q, k, v and others; returns o, in the shape and dtype of v, the state and what only `gradients` reads.
    """

    def __init__(self, name: str, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        self.name, self.compute = name, compute
        self.operator = custom_op(name, mutates_args=())(compute)
        self.direct: type[Function]

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self.operator(*inputs) if is_traced() else self.direct.apply(*inputs)

    def differentiate(self, gradients: Gradients, *, num_inputs: int, fake: Callable[..., tuple[Tensor, ...]]) -> None:
        """Makes `gradients` the gradient into the first num_inputs inputs. fake: outputs in shape and dtype, for a compiler."""
        compute = self.compute

        def on_device(do: Tensor, dstate: Tensor | None, kept: list[Tensor | None]) -> list[Tensor]:
            with torch.cuda.device_of(do):
                return list(gradients(do, dstate, *kept))

        backward = custom_op(f"{self.name}_backward", mutates_args=(), schema=SCHEMA)(on_device)

        @backward.register_fake
        def _(do: Tensor, dstate: Tensor | None, kept: list[Tensor | None]) -> list[Tensor]:
            return [torch.empty_like(x) for x in kept[:num_inputs]]

        def keep(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
            # The gradient into a state that nobody reads is then None, not a matrix of zeros.
            ctx.set_materialize_grads(False)
            ctx.num_others = len(inputs) - num_inputs
            ctx.save_for_backward(*inputs, *output[2:])

        def into_inputs(
            ctx: FunctionCtx, do: Tensor | None, dstate: Tensor | None, *_: Any, by: Any = backward
        ) -> tuple[Any, ...]:
            # Asked for once: under a checkpoint they are computed anew, and no second time.
            kept = list(ctx.saved_tensors)
            do = torch.zeros_like(kept[2]) if do is None else do.contiguous()
            dstate = None if dstate is None else dstate.contiguous()
            return (*by(do, dstate, kept), *[None] * ctx.num_others)

        class Direct(Function):
            @staticmethod
            def forward(ctx: FunctionCtx, *inputs: Any) -> tuple[Tensor, ...]:
                output = compute(*inputs)
                keep(ctx, inputs, output)
                ctx.mark_non_differentiable(*output[2:])
                return output

            @staticmethod
            @once_differentiable
            def backward(ctx: FunctionCtx, *cotangents: Any) -> tuple[Any, ...]:
                return into_inputs(ctx, *cotangents, by=on_device)

        self.operator.register_fake(fake)
        self.operator.register_autograd(into_inputs, setup_context=keep)
        self.direct = Direct


def differentiable(name: str) -> Callable[[Callable[..., tuple[Tensor, ...]]], DifferentiableOp]:
    """A decorator, as `torch.library.custom_op` is one; `DifferentiableOp.differentiate` is to follow."""
    return lambda compute: DifferentiableOp(name, compute)
