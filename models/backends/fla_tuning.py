"""Finds the fastest launches of fla's kernels on the card that is here: compiled in many processes, timed alone in one.

Both run the same calls (`fla_calls`) of the same sizes, so that what the first compiles lies in Triton's cache of files for the
second. Both belong in processes in which no launches are pinned (LRS_LAUNCHES=none).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from models.backends.fla_calls import CALLS, Sizes, make, run
from models.backends.fla_launches import as_launch, kernels, named_key
from models.backends.launches import Entry

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DIMS = (16, 32, 64, 128, 256)
BATCH_SIZE, LENGTH, NUM_HEADS = 8, 2048, 8
SMALL_BATCH_SIZE = 2
"""The batch of a call that only compiles: many processes share the card's memory, and a batch of 1 may be compiled otherwise."""
FINALISTS = 5
BRIEFLY = {"warmup": 2, "rep": 10}
"""Milliseconds of the first round of timing; Triton has 25 and 100."""
EVERYWHERE = ("B", "H", "HV", "T")
"""Parts of keys by which a launch is not told from another: how many programs there are, and not what one does."""

Found = tuple[dict[str, object], dict[str, Any]]
"""A call's key and the launch that was fastest."""


class Asked(NamedTuple):
    """names: of CALLS. dims: of DIMS, key sizes of a head. dtypes: names of DTYPES."""

    names: tuple[str, ...]
    dims: tuple[int, ...]
    dtypes: tuple[str, ...]

    def every(self) -> list[tuple[str, int, str]]:
        """All calls that are asked for and that a kernel computes."""
        asked = itertools.product(self.names, self.dims, self.dtypes)
        return [(name, dim, dtype) for name, dim, dtype in asked if CALLS[name].smallest <= dim <= CALLS[name].largest]


def every_call(asked: Asked, device: torch.device, *, batch_size: int) -> Iterator[None]:
    """Makes all calls, and comes back after each."""
    for name, dim, dtype in asked.every():
        sizes = Sizes(batch_size, LENGTH, NUM_HEADS, dim, DTYPES[dtype])
        run(CALLS[name], make(CALLS[name], sizes, device))
        yield


def compile_share(asked: Asked, device: torch.device, *, index: int, count: int) -> int:
    """Compiles every count-th launch that fla lists for the kernels of these calls, from the index-th, and launches none.

    Returns how many that were. What comes out of the calls is not computed.
    """
    turns, compiled, seen = itertools.count(), 0, set()

    def compile_only(kernel: Any, *args: Any, **given: Any) -> None:
        nonlocal compiled
        kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
        call = _as_compiled(kernel, given)
        configs = [] if call in seen else kernel.prune_configs(given)
        seen.add(call)
        for config in configs:
            if next(turns) % count == index:
                _compile(kernel, config, args, given)
                compiled += 1

    for _, kernel in kernels():
        kernel.run = partial(compile_only, kernel)
    for _ in every_call(asked, device, batch_size=SMALL_BATCH_SIZE):
        pass
    return compiled


def _as_compiled(kernel: Any, given: Mapping[str, Any]) -> tuple[object, ...]:
    """What tells a call from others that are compiled alike: the kernel, and numbers and dtypes of its arguments."""
    arguments = {name: value for name, value in {**kernel.nargs, **given}.items() if name in kernel.arg_names}
    return id(kernel), *((name, getattr(value, "dtype", value)) for name, value in arguments.items())


def _compile(kernel: Any, config: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """Leaves one launch of a kernel in Triton's cache, unless it can't be compiled: tuning then leaves it out too."""
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    with contextlib.suppress(OutOfResources, CompileTimeAssertionFailure, PTXASError):
        kernel.fn.run(*args, **{**given, "warmup": True}, **config.all_kwargs())


def time_in_two_rounds() -> None:
    """Has Triton time every launch of a kernel briefly, and then the FINALISTS that were fastest for as long as it would all.

    What it timed in other processes, maybe on a busy card, it times anew.
    """
    for _, kernel in kernels():
        kernel.cache_results = False
        kernel.prune_configs = partial(_fastest_of_all, kernel, kernel.prune_configs)


def _fastest_of_all(kernel: Any, permitted: Callable[[Any], list[Any]], given: dict[str, Any]) -> list[Any]:
    """Those of a kernel's launches for a call that Triton then times: the finalists of all that fla permits."""
    from triton.testing import do_bench

    usual, kernel.do_bench = kernel.do_bench, partial(do_bench, **BRIEFLY)
    medians = {each: kernel._bench(*kernel.nargs.values(), config=each, **given)[0] for each in permitted(given)}
    kernel.do_bench = usual
    return sorted(medians, key=medians.__getitem__)[:FINALISTS]


def timed() -> dict[str, list[Found]]:
    """What tuning found in this process, a list for every kernel that was called."""
    found = {}
    for name, kernel in kernels():
        if kernel.cache:
            found[name] = [(named_key(kernel, key), as_launch(config)) for key, config in kernel.cache.items()]
    return found


def entries(found: Iterable[Found], before: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Entries of one kernel: what was found last for each key, and behind that for all others what a table had before.

    Where it had nothing, and float32 was timed, others get the launch of the largest call in float32: that takes the most of a
    card's memory, so the launch runs with any other key.
    """
    reduced = [({name: value for name, value in key.items() if name not in EVERYWHERE}, launch) for key, launch in found]
    by_key = {tuple(key.items()): launch for key, launch in reduced}
    timed = [Entry.read({"where": dict(key), "launch": launch, "measured": True}) for key, launch in by_key.items()]
    wide = [(_size(key), launch) for key, launch in reduced if key.get("dtype") == "float32"]
    if before or not wide:
        return (*timed, *(entry for entry in before if dict(entry.where) not in [dict(each.where) for each in timed]))
    largest = max(wide, key=lambda each: each[0])[1]
    return (*timed, Entry.read({"where": {}, "launch": largest, "measured": False}))


def _size(key: Mapping[str, object]) -> int:
    return sum(value for name, value in key.items() if isinstance(value, int) and name in ("K", "V", "S", "BK", "BV"))
