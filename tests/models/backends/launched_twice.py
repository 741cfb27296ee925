"""A kernel launched by `launch` and by Triton, on a stand-in for a Hopper: `test_launch` runs this in a process of its own."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tests.models.backends.hopper_stand_in import Driver, Launcher, stand_in

calls: list[tuple[Any, ...]] = []


class Noted(Launcher):
    def __call__(self, *arguments: Any) -> None:
        *where, _metadata, _enter, _exit = arguments[:9]
        calls.append((self, *where, *arguments[9:]))


Driver.launcher_cls = Noted
stand_in()

from models.backends.triton.launch import launch  # noqa: E402 - behind the stand-in


@triton.jit(do_not_specialize=("n",))
def scaled(x, y, factor, n, stride, SIZE: tl.constexpr, TWICE: tl.constexpr):
    i = tl.arange(0, SIZE)
    z = tl.load(x + i * stride, mask=i < n) * factor
    tl.store(y + i, z + z if TWICE else z, mask=i < n)


def last(run: Any) -> tuple[Any, ...]:
    calls.clear()
    run()
    (call,) = calls
    return call


def main() -> None:
    memory, how = torch.zeros(100), {"num_warps": 1, "maxnreg": 64}
    cases = [
        (x, memory.to(dtype), 2.0, n, stride, {"SIZE": 16, "TWICE": twice} | how)
        for x in (memory, memory[1:])
        for dtype in (torch.float32, torch.float16)
        for n, stride, twice in ((7, 16, True), (7, 16, False), (16, 16, False), (7, 5, True), (7, 1, True), (1, 1, True))
    ]
    kinds = set()
    for *arguments, constants in cases + cases[::-1]:
        for grid in ((3, 2, 1), (1, 1, 1)):
            by_triton = last(lambda given=arguments, named=constants, grid=grid: scaled[grid](*given, **named))
            kinds.add(by_triton[0])
            for _ in range(2):
                found = last(lambda given=arguments, named=constants, grid=grid: launch(scaled, grid, given, named))
                assert len(found) == len(by_triton)
                assert all(a is b or a == b for a, b in zip(found, by_triton, strict=True)), (found, by_triton)
    assert len(kinds) == 2 * 2 * 4, len(kinds)
    print("the same calls")


if __name__ == "__main__":
    main()
