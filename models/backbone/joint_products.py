"""Linear maps of one input as one product: where a token is read alone, a product takes as long as it takes to launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Joint:
    """The weights of several linear maps behind each other, [sum of out_features, in_features].

    The maps keep their names and parameters, whose weights are from then on parts of this memory.
    """

    @torch.no_grad()
    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        self.sizes = [each.out_features for each in maps]
        self.weight = torch.cat([each.weight for each in maps])
        for each, weight in zip(maps, self.weight.split(self.sizes), strict=True):
            each.weight.data = weight
        self.waiting: list[Tensor] = []

    def next(self, x: Tensor) -> Tensor:
        """The product of x with the weight of the next map in turn: the first one computes all."""
        if not self.waiting:
            self.waiting = list(F.linear(x, self.weight).split(self.sizes, dim=-1))
        return self.waiting.pop(0)


class Part(nn.Linear):
    """A linear map, computed with others where a compiler looks on."""

    joint: Joint

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y = self.joint.next(x)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def join_products(module: nn.Module, call: Callable[[], object]) -> None:
    """Linear maps in `module` that read one tensor are computed by one product in compiled calls, in place.

    call: what is to be compiled, which is called once to see which maps these are. The weights stay where they are after it:
    what moves them, as `to` does, leaves the products behind.
    """
    seen: list[tuple[Tensor, nn.Linear]] = []
    maps = [each for each in module.modules() if type(each) is nn.Linear]
    hooks = [each.register_forward_pre_hook(lambda each, inputs: seen.append((inputs[0], each))) for each in maps]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[tuple[int, torch.dtype], list[nn.Linear]] = {}
    for x, each in seen:
        groups.setdefault((id(x), each.weight.dtype), []).append(each)
    called = [each for _, each in seen]
    for together in groups.values():
        if len(together) > 1 and all(called.count(each) == 1 for each in together):
            joint = Joint(together)
            for each in together:
                each.__class__ = Part
                assert isinstance(each, Part)
                each.joint = joint
