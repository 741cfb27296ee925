"""Triton's tuning in a fraction of its time, for kernels that a benchmark measures as their authors' own tuning has them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

from suite.machine.devices import count_cores

WARM_UP_MS, TIMED_MS = 2, 10
"""Triton has 25 and 100."""


@contextlib.contextmanager
def quickly_tuned() -> Iterator[None]:
    """Within, a kernel's configurations are compiled side by side before the first is timed, and each is timed for 10 ms.

    What is tuned stays what it was: all configurations that the kernel lists and permits for the call, on the call's own
    arguments, ranked by the median of launches from an empty L2 cache. Fewer launches leave a median that is less sure, so that
    another configuration may win than with Triton's own 100 ms: one of those whose times differ by less than such medians err,
    most of all for a kernel of more than a millisecond, of which fewer than ten launches are timed. What is measured
    afterwards is measured as ever. What is found is neither kept on the disk for other processes nor read from there.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    bench = Autotuner._bench

    def quick(call: Any, quantiles: Sequence[float]) -> Any:
        return do_bench(call, warmup=WARM_UP_MS, rep=TIMED_MS, quantiles=quantiles)

    def bench_quickly(kernel: Any, *args: Any, config: Any, **given: Any) -> Any:
        permitted = kernel.prune_configs(given)
        if config == permitted[0]:
            compile_all(kernel, permitted, args, given)
        with patch.dict(vars(kernel), do_bench=quick):
            return bench(kernel, *args, config=config, **given)

    def without_disk(kernel: Any, key: Any, configs: Any, bench_all: Callable[[], Any]) -> bool:
        bench_all()
        return False

    with patch.object(Autotuner, "_bench", bench_quickly), patch.object(Autotuner, "check_disk_cache", without_disk):
        yield


def compile_all(kernel: Any, configs: Sequence[Any], args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Compiles a tuned kernel's configurations for a call, a thread for every core: LLVM and ptxas run without Python's lock.

    One that can't be compiled says so when it is timed.
    """
    from triton.runtime._async_compile import AsyncCompileMode

    with ThreadPoolExecutor(count_cores()) as threads, AsyncCompileMode(threads, ignore_errors=True):
        for config in configs:
            kernel.fn.run(*args, **{**given, "warmup": True}, **config.all_kwargs())
