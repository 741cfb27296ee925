"""Tuned kernels launched by `Relaunched` and by Triton, on a stand-in for a Hopper: `test_launch` runs this in its own process.

python -m tests.models.backends.relaunched takes a kernel from here, and with the word "fla" behind it all those of `fla_calls`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from tests.models.backends.hopper_stand_in import stand_in

stand_in()

from models.backends.triton.relaunch import Relaunched, may_relaunch  # noqa: E402 - behind the stand-in

Launch = tuple[Any, ...]
launches: list[Launch] = []
looked_up: list[JITFunction] = []
usual = JITFunction.run


class Compiled:
    """In place of what Triton compiles for a kind of call."""

    function = packed_metadata = None

    def launch_metadata(self, grid: tuple[int, ...], stream: int, *arguments: Any) -> None:
        pass

    def run(self, *given: Any) -> None:
        width, height, depth, stream, _function, _packed, _metadata, _enter, _exit, *arguments = given
        launches.append((self, (width, height, depth), stream, [told(x) for x in arguments]))


def told(x: Any) -> Any:
    return (x.dtype, x.shape, x.stride()) if isinstance(x, Tensor) else (type(x), x)


def compile_nothing(kernel: JITFunction, key: str, signature: Any, device: int, *others: Any) -> Compiled:
    compiled = kernel.device_caches[device][0][key] = Compiled()
    return compiled


def look_up(kernel: JITFunction, *args: Any, **given: Any) -> Any:
    looked_up.append(kernel)
    return usual(kernel, *args, **given)


def made(call: Callable[[], object]) -> list[Launch]:
    launches.clear()
    call()
    return list(launches)


def as_by_triton(calls: list[Callable[[], object]], by_triton: list[list[Launch]]) -> str:
    """Makes all calls again, in another order, of which none is looked up and each launches what it did."""
    looked_up.clear()
    for call, expected in list(zip(calls, by_triton, strict=True))[::-1]:
        assert made(call) == expected, call
    kinds = {each[0] for every in by_triton for each in every}
    return f"{sum(map(len, by_triton))} launches of {len(kinds)} kinds are the same"


@triton.heuristics({"HAS_Y": lambda args: args["y"] is not None})
@triton.autotune([triton.Config({"SIZE": size}, num_warps=warps) for size in (16, 32) for warps in (1, 2)], key=["n", "TWICE"])
@triton.jit(do_not_specialize=("n",))
def scaled(x, y, z, factor, n, stride, SIZE: tl.constexpr, TWICE: tl.constexpr, HAS_Y: tl.constexpr, MORE: tl.constexpr = 3):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    at = tl.load((y if HAS_Y else x) + i * stride, mask=i < n) * factor
    tl.store(z + i, at + at * MORE if TWICE else at, mask=i < n)


def of_ours() -> str:
    tuner, memory = scaled.fn, torch.zeros(100)
    # What tuning found differs by a number that Triton does not compile for.
    turns = iter(tuner.configs * 100)
    tuner.prune_configs = lambda given: [next(turns)]
    tuner._bench = lambda *args, **given: 0.0

    def call(x: Tensor, y: Tensor | None, factor: float, n: int, stride: int, named: dict[str, Any]) -> None:
        scaled[lambda meta: (triton.cdiv(n, meta["SIZE"]), 2)](x, y, memory, factor=factor, n=n, stride=stride, **named)

    calls = [
        partial(call, x, y, 2.0, n, stride, {"TWICE": twice} | more)
        for x in (memory, memory[1:], memory.half())
        for y in (None, memory)
        for n, stride in ((7, 16), (70, 16), (16, 16), (7, 5), (7, 1), (1, 1), (True, 1), (7, -5), (7, 2**40 + 1), (7, 2**63 + 1))
        for twice in (True, False)
        for more in ({}, {"MORE": 4})
    ]
    by_triton = [made(call) for call in calls]
    assert may_relaunch(scaled)
    scaled.run = Relaunched(scaled)
    for call, expected in zip(calls, by_triton, strict=True):
        assert made(call) == expected
    assert len({key[0] for key in tuner.cache}) == 4  # and True is 1 there
    said = as_by_triton(calls, by_triton)
    assert not looked_up
    return said


def of_fla() -> str:
    from models.backends import fla_launches
    from models.backends.fla_calls import CALLS, Sizes, make, run

    def call(name: str, sizes: Sizes) -> None:
        run(CALLS[name], make(CALLS[name], sizes, torch.device("cpu")))

    warnings.filterwarnings("error", message="fla tunes")
    # Sizes that are divisible by 16 and that are not, and numbers that are 1.
    places = [(2, 130, 2), (1, 64, 1), (3, 256, 16), (1, 1, 1)]
    sizes = [Sizes(*place, dim, dtype) for place in places for dim in (64, 128) for dtype in (torch.bfloat16, torch.float32)]
    calls = [partial(call, name, size) for name in CALLS for size in sizes]
    by_fla = []
    for each in calls:
        each()
        with fla_launches.as_fla_launches():
            by_fla.append(made(each))
    said = as_by_triton(calls, by_fla)
    # A kernel that fla does not tune is launched by Triton.
    again = {kernel.fn.__name__ for kernel in looked_up} & {tuner.base_fn.__name__ for _, tuner in fla_launches.kernels()}
    assert not again, again
    return said


if __name__ == "__main__":
    JITFunction._do_compile, JITFunction.run = compile_nothing, look_up
    print(of_fla() if "fla" in sys.argv else of_ours())
