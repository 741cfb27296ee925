"""Launches of kernels: on the device of their inputs, and without what Triton looks up again for those launched before.

The latter takes longer than a launch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

Others = TypeVarTuple("Others")
R = TypeVar("R")

CALLED_SO = ("3.7.1",)
"""Versions of Triton whose compiled kernels are called as they are below; any other launches its kernels itself."""
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def on_its_device(compute: Callable[[Tensor, *Others], R]) -> Callable[[Tensor, *Others], R]:
    """compute with the device of its first input as the current one, on which Triton launches wherever tensors lie."""

    @functools.wraps(compute)
    def there(x: Tensor, /, *others: *Others) -> R:
        with torch.cuda.device_of(x):
            return compute(x, *others)

    return there


def launch(kernel: Any, grid: tuple[int, int, int], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """kernel[grid](*arguments, **constants): tensors and numbers, all before the kernel's constants.

    What Triton compiles apart is told apart here: constants, launches, types of tensors and whether they begin where loads of 16
    bytes may, and numbers that are 1, divisible by 16 or wider than 32 bits.
    """
    if triton.__version__ not in CALLED_SO or not isinstance(kernel, JITFunction):
        kernel[grid](*arguments, **constants)
        return
    device = driver.active.get_current_device()
    key = (kernel.fn, device, *constants.items(), *map(kind, arguments))
    known = _compiled.get(key)
    if known is None:
        compiled = kernel[grid](*arguments, **constants)
        if compiled is not None:
            _compiled[key] = compiled, tuple(constants[each.name] for each in kernel.params[len(arguments) :])
        return
    compiled, rest = known
    run_compiled(compiled, device, grid, (*arguments, *rest))


def run_compiled(compiled: Any, device: int, grid: tuple[int, ...], arguments: Sequence[Any]) -> None:
    """Launches what Triton compiled, as Triton does. arguments: all of the kernel's in their order, constants among them."""
    stream = driver.active.get_current_stream(device)
    metadata = compiled.launch_metadata(grid, stream, *arguments)
    hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
    width, height, depth = (*grid, 1, 1)[:3]
    compiled.run(width, height, depth, stream, compiled.function, compiled.packed_metadata, metadata, *hooks, *arguments)


def kind(x: Any) -> Any:
    """What Triton compiles apart of an argument that is no constant."""
    if type(x) is int:
        return (x & 15 == 0) + 2 * (x == 1) + 4 * (not -(1 << 31) <= x < 1 << 31) + 8 * (x >= 1 << 63)
    if isinstance(x, Tensor):
        return (x.dtype, "shifted") if x.data_ptr() & 15 else x.dtype
    return type(x)
