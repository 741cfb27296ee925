"""Hands the launches of a table to fla's kernels, each of which then runs without having been tuned.

Triton keeps what tuning found in a kernel's `cache`, a mapping from the call's key, and tunes only for keys that are not in it.
`Launches` stands there in its place and answers for all keys of the table; a launch is one of those that fla itself lists for
the kernel, and one that fla rules out for a call is not taken. Beside this mapping, what is replaced of Triton and fla is the
`run` of a kernel, which then looks up what a kind of call needs once (models/backends/triton/relaunch.py).
fla's own files (FLA_CONFIG_DIR) would not do: they go by a kernel's bare name, which different kernels share, by keys with
the batch size and the number of heads, and only some kernels read them.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.backends import launches, version

Key = tuple[Any, ...]
PACKAGES_OF_KERNELS = ("fla.ops", "fla.ops.gated_delta_product", "fla.ops.gdn2")
"""Importing the first imports all but the others."""


class Launches(dict[Key, Any]):
    """What tuning a kernel found, and where it was not tuned, the launch that a table has. The kernel must be one of `kernels`.

    kernel: a triton.runtime.Autotuner. entries: of the kernel in the table; none leaves it to fla, and says so once.
    """

    def __init__(self, name: str, kernel: Any, entries: tuple[launches.Entry, ...]) -> None:
        super().__init__()
        self.name, self.kernel, self.entries = name, kernel, entries

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        assert isinstance(key, tuple)
        launch = self._launch(key)
        if launch is None:
            _say(f"fla tunes {self.name} at its first use: the table has no launch for it; python -m suite tune makes one")
            return False
        self[key] = launch
        return True

    def _launch(self, key: Key) -> Any:
        """The configuration among fla's own that the table has for a call; None where it has none that fla permits."""
        if not self.entries:
            return None
        named = named_key(self.kernel, key)
        entry = launches.chosen(self.entries, named)
        permitted, prune = self.kernel.configs, self.kernel.early_config_prune
        if prune is not None:
            permitted = prune(permitted, {**(self.kernel.nargs or {}), **named})
        return None if entry is None else next((each for each in permitted if as_launch(each) == dict(entry.launch)), None)


def named_key(kernel: Any, key: Key) -> dict[str, object]:
    """A call's key by the names of its values, with the dtype of the first tensor."""
    # A tuned value may be named in a kernel's key too; it is then no argument of the call.
    names = [name for name in kernel.keys if name not in kernel.configs[0].kwargs]
    dtypes = [value.removeprefix("torch.") for value in key[len(names) :]]
    return dict(zip(names, key, strict=False)) | ({"dtype": dtypes[0]} if dtypes else {})


def as_launch(config: Any) -> dict[str, Any]:
    """A triton.Config as a table has it."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


def kernels() -> Iterator[tuple[str, Any]]:
    """The name, "module:function", and the autotuner of every tuned kernel of fla."""
    return ((name, tuner) for name, tuner, _ in _with_callables())


def _with_callables() -> Iterator[tuple[str, Any, Any]]:
    """The same with what fla calls of each kernel: the autotuner, or the heuristics around it."""
    from triton.runtime.autotuner import Autotuner, Heuristics

    for name in PACKAGES_OF_KERNELS:
        importlib.import_module(name)
    for module in [module for name, module in sys.modules.items() if name.startswith("fla.ops.")]:
        for called in list(vars(module).values()):
            value = called
            while isinstance(value, Heuristics):
                value = value.fn
            # Modules import kernels from each other: each is told of where it was written.
            if isinstance(value, Autotuner) and value.base_fn.__module__ == module.__name__:
                yield f"{module.__name__}:{value.base_fn.__name__}", value, called


def pin_to(table: Mapping[str, tuple[launches.Entry, ...]]) -> None:
    """Every tuned kernel of fla gets the launches that the table has for it, in place of what tuning found before."""
    for name, kernel in kernels():
        kernel.cache = Launches(name, kernel, table.get(name, ()))


def versions() -> dict[str, str | None]:
    """What is installed of what a table holds with."""
    return {name: version(name) for name in launches.PACKAGES}


def pin_for(versions: Mapping[str, str | None], capability: tuple[int, int], card: str) -> None:
    """Hands over the table for such a machine, or says in a line why there is none and fla tunes. Raises RequestError."""
    if launches.named() == launches.NONE:
        return
    found = launches.find(versions, capability, card)
    if isinstance(found, str):
        _say(f"fla tunes its kernels, which takes minutes at their first use: {found} (python -m suite tune makes a table)")
    else:
        pin_to(found.kernels)


@torch.compiler.disable
@functools.cache
def pin() -> None:
    """Once in a process, before fla's first kernel runs."""
    pin_for(versions(), torch.cuda.get_device_capability(), torch.cuda.get_device_name())


@torch.compiler.disable
@functools.cache
def relaunch() -> None:
    """From now on, tuned kernels of fla are launched without what was looked up for a call of their kind before."""
    from models.backends.triton.relaunch import Relaunched, may_relaunch

    for _, _, called in _with_callables():
        if may_relaunch(called):
            called.run = Relaunched(called)


@contextmanager
def as_fla_launches() -> Iterator[None]:
    """Within, kernels are launched as by fla alone, for a comparison with it."""
    relaunch()
    ours = [(called, vars(called).pop("run")) for _, _, called in _with_callables() if "run" in vars(called)]
    try:
        yield
    finally:
        for called, run in ours:
            called.run = run


def on_device(x: Tensor) -> torch.cuda.device_of:
    """The device of x as the current one, for kernels of fla, which are first given our launches."""
    pin()
    relaunch()
    return torch.cuda.device_of(x)


@functools.cache
def _say(line: str) -> None:
    warnings.warn(line, stacklevel=3)
