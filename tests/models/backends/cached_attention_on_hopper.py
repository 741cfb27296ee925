"""The kernels of attention over a cache compiled for a Hopper GPU on a machine without one.

`test_cached_attention_triton` runs it. Nothing is computed; what is seen is that they compile, that keys and values are read by
16 bytes a thread, and that no thread waits for another in the loop over slots.
"""

from __future__ import annotations

import itertools

import torch

from tests.models.backends.hopper_stand_in import stand_in

stand_in()

from models.backends.triton import cached_attention_kernels as kernels  # noqa: E402 - behind the stand-in
from models.backends.triton.cached_attention import attend  # noqa: E402
from tests.models.backends.test_cached_attention_triton import draw  # noqa: E402

DTYPES = (torch.bfloat16, torch.float32)
KEY_DIMS = (16, 64, 96, 128, 256)
BATCHES = (1, 70)
"""A head of several parts, and a whole one."""


def loop(ptx: str) -> str:
    """What lies between a label and a branch back to it, of which there is one."""
    lines = ptx.splitlines()
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith("$L__BB")}
    branches = [(labels.get(line.rstrip(";").split()[-1], i), i) for i, line in enumerate(lines) if "bra" in line]
    ((begin, end),) = [(label, i) for label, i in branches if label < i]
    return "\n".join(lines[begin:end])


def main() -> None:
    cases = list(itertools.product(DTYPES, KEY_DIMS, BATCHES))
    for dtype, key_dim, batch in cases:
        attend(**draw(batch, 8, 128, key_dim, seen="few", dtype=dtype, device="cpu"))
    (attention, *_), (summing, *_) = (kernel.device_caches[0] for kernel in (kernels._attention_kernel, kernels._sum_kernel))
    assert len(attention) == 2 * len(summing) == len(cases), (len(attention), len(summing))
    for (dtype, key_dim, _), binary in zip(cases, attention.values(), strict=True):
        inside = loop(binary.asm["ptx"])
        assert inside.count("ld.global.v4.b32") == inside.count("ld.global") == 2 * kernels.LAUNCH["DEPTH"], binary.metadata
        # A warp reads 512 bytes at once: of more, threads of two warps have a slot together.
        assert ("bar.sync" in inside) == (dtype.itemsize * key_dim > 512), binary.metadata
    print("compiled for sm_90")


if __name__ == "__main__":
    main()
