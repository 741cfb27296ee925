"""Both passes of the Mesa op compiled for a Hopper GPU on a machine without one: `test_triton_mesa` runs it in its own process.

Nothing is computed; what is seen is that the kernels compile, that the solve is the one in Gluon, and that as many programs of it
fit a multiprocessor as its launch counts on.
"""

from __future__ import annotations

import torch

from tests.models.backends.hopper_stand_in import SHARED_MEMORY, Binaries, stand_in

stand_in()

from models.backends.triton import mesa_launches as launches  # noqa: E402 - behind the stand-in
from models.backends.triton.mesa import mesa_chunked  # noqa: E402

RESERVED = 1024
"""Bytes of shared memory that every program takes beside its own."""
PROGRAMS = {64: 3, 128: 2}


def both_passes(dim: int) -> None:
    tokens = (1, 130, 2)
    inputs = {name: torch.zeros(*tokens, dim, dtype=torch.bfloat16) for name in ("q", "k", "v")}
    inputs |= {name: torch.zeros(tokens) for name in ("log_decay", "beta")} | {"regularizer": torch.ones(2, dim)}
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    o = mesa_chunked(**leaves, G=None, H=None, tolerance=1e-4, max_steps=30, initial="diagonal").o
    torch.autograd.grad(o.float().sum(), list(leaves.values()))


def main() -> None:
    launches._is_hopper = lambda device: True
    load, shared = Binaries.load_binary, list[tuple[str, int]]()

    def noted(self: Binaries, name: str, kernel: bytes, size: int, device: int) -> tuple[int, int, int, int, int]:
        shared.append((name, size))
        return load(self, name, kernel, size, device)

    Binaries.load_binary = noted
    for dim, programs in PROGRAMS.items():
        shared.clear()
        both_passes(dim)
        sizes = [size for name, size in shared if name == "solve_kernel"]
        assert len(sizes) == 2, shared
        assert programs * (max(sizes) + RESERVED) <= SHARED_MEMORY + RESERVED, (dim, sizes)
        print(f"heads of {dim}: {len(shared)} kernels")
    from models.backends.triton import mesa_hopper

    (compiled, *_) = mesa_hopper.solve_kernel.device_caches[0]
    assert len(compiled) == 2 * len(PROGRAMS), compiled
    print("compiled for sm_90")


if __name__ == "__main__":
    main()
