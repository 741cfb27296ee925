"""The kernels of gated inputs under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

import pytest
import torch

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels
from tests.models.backends.test_gated_inputs_triton import SHAPES, assert_is_the_product


@pytest.mark.parametrize("keys", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(shape: tuple[int, int, int, int], keys: torch.dtype) -> None:
    assert_is_the_product(shape, keys, torch.float32, "cpu")
