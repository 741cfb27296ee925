"""The gradient of a custom operator by kernels, as an operator too: torch.compile takes both whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.library import CustomOpDef, custom_op

SCHEMA = "(Tensor do, Tensor? dstate, Tensor?[] kept) -> Tensor[]"


def differentiate(forward: CustomOpDef, gradients: Callable[..., tuple[Tensor, ...]], *, num_inputs: int) -> None:
    """Makes `gradients` the gradient of `forward`, into the first num_inputs of its inputs.

    forward: takes q, k, v and others; returns o, in the shape and dtype of v, the state and what only `gradients` reads.
    gradients: takes the gradients into o and the state, or None for the latter, the inputs and what is returned beside.
    """

    @custom_op(f"{forward._qualname}_backward", mutates_args=(), schema=SCHEMA)
    def backward(do: Tensor, dstate: Tensor | None, kept: list[Tensor | None]) -> list[Tensor]:
        with torch.cuda.device_of(do):
            return list(gradients(do, dstate, *kept))

    @backward.register_fake
    def _(do: Tensor, dstate: Tensor | None, kept: list[Tensor | None]) -> list[Tensor]:
        return [torch.empty_like(x) for x in kept[:num_inputs]]

    def keep(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
        # The gradient into a state that nobody reads is then None, not a matrix of zeros.
        ctx.set_materialize_grads(False)
        ctx.num_others = len(inputs) - num_inputs
        ctx.save_for_backward(*inputs, *output[2:])

    def differentiate(ctx: FunctionCtx, do: Tensor | None, dstate: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        do = torch.zeros_like(ctx.saved_tensors[2]) if do is None else do.contiguous()
        dstate = None if dstate is None else dstate.contiguous()
        return (*backward(do, dstate, list(ctx.saved_tensors)), *[None] * ctx.num_others)

    forward.register_autograd(differentiate, setup_context=keep)
