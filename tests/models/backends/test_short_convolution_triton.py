"""The short convolution in Triton on a GPU; `test_interpreted` has it on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backends import load
from models.components import ShortConvolution
from models.ops import short_convolution
from tests.thinned import pairwise

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
ROOT = Path(__file__).parents[3]
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The largest relative error of one rounding."""


def draw(length: int, width: int, channels: int, *, cut: bool, dtype: torch.dtype, device: str) -> dict[str, Tensor | None]:
    """Inputs of which x is a slice of the channels of a wider tensor, and documents of a few tokens where they are cut."""
    random = torch.Generator().manual_seed(length * width)
    x = torch.randn(2, length, 3 * channels, generator=random).to(device, dtype)[..., channels : 2 * channels]
    weight = torch.randn(channels, width, generator=random).to(device)
    state = torch.randn(2, width - 1, channels, generator=random).to(device, dtype)
    starts = (torch.rand(2, length, generator=random) < 0.3).to(device) if cut else None
    return {"x": x, "weight": weight, "state": state, "starts": starts}


def results(form, x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> list[Tensor]:
    """y, and the gradients of x, weight and state from a fixed random one of y."""
    leaves = [each.detach().requires_grad_() for each in (x, weight, state)]
    y = form(*leaves, starts=starts)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16().to(y)
    return [y, *torch.autograd.grad(y, leaves, dy, allow_unused=True)]


def assert_is_the_definition(inputs: dict[str, Tensor | None]) -> None:
    """Within one rounding to the dtype of x, but for the weight's gradient, and sums in float32 in another order."""
    from models.backends.triton.short_convolution import convolve

    wide = {name: each.cpu() if name == "starts" and each is not None else each for name, each in inputs.items()}
    wide |= {name: inputs[name].cpu().double() for name in ("x", "weight", "state")}
    ours, theirs = results(convolve, **inputs), results(short_convolution.convolve, **wide)
    dtypes = [inputs[name].dtype for name in ("x", "x", "weight", "state")]
    for mine, expected, dtype in zip(ours, theirs, dtypes, strict=True):
        assert mine.dtype == dtype
        if mine.numel():
            bound = ROUNDING[dtype] * expected.abs() + 2e-6 * expected.abs().max()
            assert ((mine.cpu() - expected).abs() <= bound).all()


def layer_and_norm(layer: ShortConvolution, x: Tensor, state: Tensor, starts: Tensor | None) -> Tensor:
    """A convolution between what a mixer has in front of it and behind: a product, and SiLU and the length of a head."""
    y, after = layer(x * 1.5, state, starts=starts)
    heads = F.normalize(F.silu(y).unflatten(-1, (2, -1)), dim=-1)
    return heads.float().flatten(2).sum(1) + after.float().sum(1)


def assert_layer_is_the_plain_one(device: str, *, dtype: torch.dtype, backend: str, length: int = 65, channels: int = 32) -> None:
    """With the kernel, eager and compiled without a break. What is beside the convolution is rounded at other places, too."""
    layer = ShortConvolution(channels=channels, width=4).to(device)
    nn.init.normal_(layer.weight, generator=torch.Generator(device).manual_seed(0))
    compiled = torch.compile(layer_and_norm, fullgraph=True, dynamic=False, backend=backend)
    for cut in (False, True):
        inputs = draw(length, 4, channels, cut=cut, dtype=dtype, device=device)
        found = []
        for form, taken in ((layer_and_norm, False), (layer_and_norm, True), (compiled, True)):
            layer.kernel = layer.kernel._replace(suits=lambda x, taken=taken: taken)
            x = inputs["x"].detach().requires_grad_()
            out = form(layer, x, inputs["state"].float(), inputs["starts"])
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, layer.weight])])
        for plain, *others in zip(*found, strict=True):
            bound = (2.0**-5 if dtype == torch.bfloat16 else 1e-5) * plain.abs().max()
            assert all((plain - other).abs().max() <= bound for other in others)


def test_a_slice_of_the_channels_is_read_where_it_stands() -> None:
    from models.backends.triton.short_convolution import _with_dense_rows

    x = torch.zeros(2, 5, 12)
    assert _with_dense_rows(x[..., 4:8]).data_ptr() == x[..., 4:8].data_ptr()
    assert _with_dense_rows(x[:, ::2]).data_ptr() == x.data_ptr()
    assert _with_dense_rows(x.mT).is_contiguous() and _with_dense_rows(x[..., :1].expand(2, 5, 4)).is_contiguous()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from models.components import ShortConvolution
layer = ShortConvolution(channels=4, width=3)
assert not layer.kernel.suits(torch.zeros(2, 5, 4))
layer(torch.zeros(2, 5, 4), layer.init_state(2))
"""


def test_a_cpu_does_without_it_and_without_triton() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, check=True)


@pytest.mark.slow
def test_compiles_for_a_hopper_gpu() -> None:
    command = [sys.executable, "-m", "tests.models.backends.short_convolution_on_hopper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "compiled for sm_90" in done.stdout, done.stdout + done.stderr


@pytest.mark.gpu
def test_it_is_taken_on_a_gpu_for_more_than_one_token_but_in_float64() -> None:
    suits = load(short_convolution, "triton").suits
    for dtype, length, taken in ((torch.bfloat16, 2, True), (torch.float32, 2, True), (torch.float64, 2, False)):
        assert suits(torch.zeros(1, length, 4, dtype=dtype, device="cuda")) == taken
    assert not suits(torch.zeros(1, 1, 4, device="cuda"))


@pytest.mark.gpu
@pairwise(dtype=list(ROUNDING), width=[1, 2, 3, 4, 9], length=[1, 2, 63, 65, 512, 1100], channels=[1, 72, 192], cut=[False, True])
def test_it_is_the_definition(dtype: torch.dtype, width: int, length: int, channels: int, cut: bool) -> None:
    assert_is_the_definition(draw(length, width, channels, cut=cut, dtype=dtype, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_layer_with_it_is_the_plain_one_compiled_and_not(dtype: torch.dtype) -> None:
    assert_layer_is_the_plain_one("cuda", dtype=dtype, backend="inductor", channels=256)


@pytest.mark.gpu
def test_gradients_are_the_same_bit_for_bit_every_time() -> None:
    from models.backends.triton.short_convolution import convolve

    inputs = draw(2000, 4, 192, cut=True, dtype=torch.bfloat16, device="cuda")
    first, second = (results(convolve, **inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [False, True])
def test_the_operator_is_registered_whole(cut: bool) -> None:
    from models.backends.triton.short_convolution import _convolve

    x, weight, state, starts = draw(65, 4, 16, cut=cut, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(_convolve, (*(each.detach().requires_grad_() for each in (x, weight, state)), starts))
