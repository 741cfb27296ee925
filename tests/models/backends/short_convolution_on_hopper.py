"""The short convolution's kernels compiled for a Hopper GPU on a machine without one: `test_short_convolution_triton` runs it.

Nothing is computed; what is seen is that they compile and read and write 16 bytes a thread, a slice of the channels included.
"""

from __future__ import annotations

import torch

from tests.models.backends.hopper_stand_in import stand_in

stand_in()

from models.backends.triton import short_convolution_kernels as kernels  # noqa: E402 - behind the stand-in
from tests.models.backends.test_short_convolution_triton import draw, results  # noqa: E402

DTYPES = (torch.bfloat16, torch.float32)
WIDTHS = (1, 3, 4)


def main() -> None:
    from models.backends.triton.short_convolution import convolve

    for dtype in DTYPES:
        for width in WIDTHS:
            for cut in (False, True):
                results(convolve, **draw(144, width, 192, cut=cut, dtype=dtype, device="cpu"))
    for kernel in (kernels._convolution_kernel, kernels._convolution_backward_kernel):
        (compiled, *_) = kernel.device_caches[0]
        # A width of 1 has nothing to cut, but is compiled for either.
        assert len(compiled) == 2 * len(DTYPES) * len(WIDTHS), list(compiled)
        for binary in compiled.values():
            # A number by itself is read or written where Triton does not know that rows begin at a multiple of 16 bytes.
            assert ".global.v4.b32" in binary.asm["ptx"] and ".global.b16" not in binary.asm["ptx"], binary.metadata
    print("compiled for sm_90")


if __name__ == "__main__":
    main()
