"""fla on a machine without a GPU, as if it were on a Hopper: its kernels are called and tuned, and nothing is computed.

python -m tests.models.backends.hopper_stand_in makes every call of `fla_calls` with the shipped table pinned, and fails where a
kernel would be tuned, or where an entry of the table is none of fla's own launches. With the word "compile" behind it, it also
compiles what is pinned, and prints the kernels and a core's seconds of every call in bfloat16 with heads of 128: of those that no
call before it compiled, if Triton's cache (TRITON_CACHE_DIR) is empty.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_MEMORY = 232_448
"""Bytes of a multiprocessor that one program may have (an H100's, and an H200's)."""


class Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        pass


class Binaries:
    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        assert shared <= SHARED_MEMORY, f"{name} takes {shared} bytes of shared memory, of which there are {SHARED_MEMORY}"
        return 0, 0, 64, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": 132, "max_num_regs": 65_536, "warpSize": 32}


class Driver:
    """What Triton and fla ask of a driver, for sm_90."""

    launcher_cls = Launcher
    utils = Binaries()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_benchmarker(self) -> Any:
        raise AssertionError("a kernel was tuned")


def stand_in() -> None:
    """Before fla is imported, in a process of its own."""
    driver.set_active(Driver())
    torch.cuda.get_device_name = lambda *device: "NVIDIA H200"
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch.cuda.device_count = lambda: 1


def check_entries(table: Any) -> None:
    """Every kernel and every launch of the table is one of fla's."""
    from models.backends.fla_launches import as_launch, kernels

    known = dict(kernels())
    for name, entries in table.kernels.items():
        own = [as_launch(config) for config in known[name].configs]
        for entry in entries:
            assert dict(entry.launch) in own, f"{name}: {entry.launch} is none of fla's launches"


def main(compiles: bool) -> None:
    stand_in()
    from models.backends import fla_launches, launches
    from models.backends.fla_calls import CALLS, Sizes, make, run

    run_kernel, called = JITFunction.run, []

    def count(self: JITFunction, *args: Any, **given: Any) -> Any:
        called.append(self.fn.__name__)
        return run_kernel(self, *args, **given) if compiles else None

    JITFunction.run = count
    versions = {name: fla_launches.version(name) for name in launches.PACKAGES}
    table = launches.find(versions, (9, 0), "NVIDIA H200")
    assert isinstance(table, launches.Table), table
    check_entries(table)
    # Whatever is said is that fla tunes.
    warnings.filterwarnings("error", message="fla tunes")
    for dtype in (torch.bfloat16,) if compiles else (torch.bfloat16, torch.float32):
        for name, call in CALLS.items():
            for dim in (128,) if compiles else (64, 96, 128, 256):
                if dim <= call.largest:
                    called.clear()
                    begin = sum(os.times()[:4])
                    run(call, make(call, Sizes(3, 130, 2, dim, dtype), torch.device("cpu")))
                    if compiles:
                        print(f"{name}: {len(set(called))} kernels, {sum(os.times()[:4]) - begin:.1f} s", flush=True)
    tuned = [name for name, kernel in fla_launches.kernels() if kernel.cache]
    assert set(tuned) == set(table.kernels), f"called and in the table differ by {set(tuned) ^ set(table.kernels)}"
    print(f"{len(tuned)} kernels run as the table has it")


if __name__ == "__main__":
    main("compile" in sys.argv[1:])
