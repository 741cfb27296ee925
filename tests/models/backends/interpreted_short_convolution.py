"""The short convolution's kernels under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

import pytest
import torch

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels

# isort: split
from models.backends.triton import short_convolution_kernels as kernels
from models.backends.triton.short_convolution import convolve
from models.ops import short_convolution
from tests.models.backends.current_devices import recorded
from tests.models.backends.test_short_convolution_triton import (
    assert_is_the_definition,
    assert_layer_is_the_plain_one,
    draw,
    results,
)
from tests.thinned import pairwise

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as small as they can be: what is interpreted costs a call for every number."""
    monkeypatch.setattr(kernels, "FORWARD", kernels.FORWARD | {"BLOCK_T": 8, "BLOCK_D": 16})
    monkeypatch.setattr(kernels, "BACKWARD", kernels.BACKWARD | {"BLOCK_T": 4, "BLOCK_D": 16, "ROWS": 2})
    monkeypatch.setattr(kernels, "PART", 8)


# Shorter than the width, than a tile and than a part, whole ones, and one token more; a state of more tokens than a tile has.
@pairwise(length=[1, 2, 3, 7, 8, 9, 16, 21], width=[1, 2, 3, 4, 7], cut=[False, True], dtype=[F32, BF16], channels=[16, 20])
def test_it_is_the_definition(length: int, width: int, cut: bool, dtype: torch.dtype, channels: int) -> None:
    assert_is_the_definition(draw(length, width, channels, cut=cut, dtype=dtype, device="cpu"))


def test_x_of_any_strides_and_a_weight_in_bfloat16_are_taken() -> None:
    inputs = draw(9, 4, 20, cut=True, dtype=F32, device="cpu")
    inputs["x"] = inputs["x"].mT.contiguous().mT
    assert_is_the_definition(inputs)
    assert_is_the_definition(inputs | {"weight": inputs["weight"].bfloat16()})


def test_a_layer_with_it_is_the_plain_one_compiled_and_not() -> None:
    assert_layer_is_the_plain_one("cpu", dtype=F32, backend="aot_eager", length=10)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_gradient_is_differentiated_again(dtype: torch.dtype) -> None:
    inputs = draw(9, 4, 16, cut=True, dtype=dtype, device="cpu")
    found = []
    for form, kind in ((convolve, dtype), (short_convolution.convolve, torch.float64)):
        x, state = (inputs[name].detach().to(kind).requires_grad_() for name in ("x", "state"))
        weight = inputs["weight"].detach().to(F32 if kind == dtype else kind).requires_grad_()
        leaves = [x, weight, state]
        loss = form(*leaves, starts=inputs["starts"]).square().sum()
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append([*gradients, *torch.autograd.grad(sum(each.square().sum() for each in gradients), leaves)])
    for mine, exact in zip(*found, strict=True):
        assert (mine - exact).abs().max() <= (2.0**-5 if dtype == BF16 else 1e-5) * exact.abs().max()


def test_both_passes_are_launched_on_the_device_of_x(monkeypatch: pytest.MonkeyPatch) -> None:
    on, launched = recorded(monkeypatch), []
    for name in ("forward", "backward"):
        launch = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *inputs, launch=launch: (launched.append([*on]), launch(*inputs))[1])
    inputs = draw(9, 4, 16, cut=False, dtype=F32, device="cpu")
    results(convolve, **inputs)
    assert launched == 2 * [[inputs["x"].shape]]


def test_the_operator_is_registered_whole() -> None:
    from models.backends.triton.short_convolution import _convolve

    x, weight, state, starts = draw(9, 4, 16, cut=True, dtype=F32, device="cpu").values()
    torch.library.opcheck(_convolve, (*(each.detach().requires_grad_() for each in (x, weight, state)), starts))
