"""Launches a tuned kernel again without what Triton, and whoever wrote the kernel, look up for every launch.

A kernel of flash-linear-attention finds its tuned launch by two keys, each a list of a call's values and dtypes, before Triton
binds and classifies its arguments. A host needs longer for that than many of these kernels run.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from inspect import Parameter
from typing import Any, NamedTuple

import triton
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.driver import driver

from models.backends.triton.launch import CALLED_SO, kind, run_compiled


class Known(NamedTuple):
    """What Triton compiled for a kind of call, and the arguments that no call gives: defaults and what tuning chose."""

    compiled: Any
    chosen: Mapping[str, Any]


class Relaunched:
    """In place of `run` of a tuned kernel, which may have heuristics around it: the first launch of a kind is by `run`.

    Launches are of one kind where they have the same constants and heuristics, the same values of what tuning goes by, and
    arguments that Triton compiles for alike (`kind`).
    """

    def __init__(self, kernel: Autotuner | Heuristics) -> None:
        self.run = kernel.run
        self.heuristics: dict[str, Any] = {}
        while isinstance(kernel, Heuristics):
            self.heuristics |= kernel.values
            kernel = kernel.fn
        self.tuner, function = kernel, kernel.fn
        self.names = [each.name for each in function.params]
        self.defaults = {each.name: each.default for each in function.params if each.default is not Parameter.empty}
        # What is no parameter of the kernel, such as num_warps, is a constant too.
        self.classified = {each.name for each in function.params if not each.is_constexpr}
        self.compared = set(kernel.keys)
        self.known: dict[tuple[Any, ...], Known] = {}
        self.lock = threading.Lock()

    def __call__(self, *args: Any, grid: Any, warmup: bool, **given: Any) -> Any:
        named = {**dict(zip(self.names, args, strict=False)), **given}
        for name, value in self.heuristics.items():
            named[name] = value(named)
        device = driver.active.get_current_device()
        key = (device, *named, *itertools.starmap(self._told, named.items()))
        known = None if warmup else self.known.get(key)
        if known is None:
            # The tuner's choice is read behind a launch, and threads of several devices share the tuner.
            with self.lock:
                compiled = self.run(*args, grid=grid, warmup=warmup, **given)
                if not warmup and compiled is not None:
                    self.known[key] = Known(compiled, self.defaults | self.tuner.best_config.all_kwargs())
            return compiled
        values = {**known.chosen, **named}
        run_compiled(known.compiled, device, grid(values) if callable(grid) else grid, [values[name] for name in self.names])
        return known.compiled

    def _told(self, name: str, value: Any) -> Any:
        """What tells a call's argument from those of other kinds."""
        if name not in self.classified:
            return value
        return (kind(value), value) if name in self.compared else kind(value)


def may_relaunch(kernel: Any) -> bool:
    """Whether `Relaunched` launches as this kernel does: tuned by Triton, heuristics around it, and no launch has a hook."""
    while isinstance(kernel, Heuristics):
        kernel = kernel.fn
    if triton.__version__ not in CALLED_SO or not isinstance(kernel, Autotuner):
        return False
    return isinstance(kernel.fn, triton.JITFunction) and all(each.pre_hook is None for each in kernel.configs)
