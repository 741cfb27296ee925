"""The loss's kernels compiled for a Hopper GPU on a machine without one: `test_cross_entropy_triton` runs it.

Nothing is computed; what is seen is that they compile, that a row is read and written 16 bytes a thread, whatever the
vocabulary, and that one held by a program stays in its registers.
"""

from __future__ import annotations

import subprocess
import tempfile

import torch
from triton import knobs

from tests.models.backends.hopper_stand_in import stand_in

stand_in()

from models.backends.triton import cross_entropy  # noqa: E402 - behind the stand-in

DTYPES = (torch.bfloat16, torch.float32)
HELD, LONGER = (8192, 8100, 16_381), (50_257,)


def resources(cubin: bytes) -> str:
    """What a compiled kernel takes, in cuobjdump's words."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    # A CPU has no product of bfloat16 that stays in float32.
    cross_entropy._product_in_float32 = lambda a, b: a.float() @ b.float()
    targets = torch.zeros(16, dtype=torch.int64)
    for dtype in DTYPES:
        for vocab_size in (*HELD, *LONGER):
            cross_entropy._mean_nll(torch.zeros(16, 16, dtype=dtype), torch.zeros(vocab_size, 16), targets, 30.0)
    (held, *_), (longer, *_) = (
        kernel.device_caches[0] for kernel in (cross_entropy._loss_and_gradient_at_once, cross_entropy._loss_and_gradient)
    )
    assert len(held) == len(DTYPES) * len(HELD) and len(longer) == len(DTYPES) * len(LONGER)
    for binary in (*held.values(), *longer.values()):
        # One number is read by itself, the target's, where a row is held.
        assert ".global.v4.b32" in binary.asm["ptx"] and binary.asm["ptx"].count("ld.global.b16") <= 1, binary.metadata
    for binary in held.values():
        assert "STACK:0" in (taken := resources(binary.asm["cubin"])) and "LOCAL:0" in taken, taken
    print("compiled for sm_90")


if __name__ == "__main__":
    main()
