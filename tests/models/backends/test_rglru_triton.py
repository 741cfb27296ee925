"""The RG-LRU scan in Triton on a GPU; `test_interpreted` has it on a CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from models.ops import rglru
from tests.models.tolerances import assert_near

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
# A tile is of 16 tokens and 128 channels: lengths below and above whole tiles, and a tile of channels that is not whole.
LENGTHS = (1, 63, 64, 65, 500, 1000)
CHANNELS = 160


def draw(length: int, width: int = CHANNELS, batch_size: int = 2) -> dict[str, Tensor]:
    """Decays from none to total, resets among them, and a state that is not zero."""
    generator = torch.Generator().manual_seed(length)
    log_decay = -20.0 * torch.rand(batch_size, length, width, generator=generator, dtype=torch.float64) ** 4
    log_decay[0, length // 2 :: 37] = float("-inf")
    log_decay[1, 0] = 0.0
    u = torch.randn(batch_size, length, width, generator=generator, dtype=torch.float64)
    state = torch.randn(batch_size, width, generator=generator, dtype=torch.float64)
    return {"log_decay": log_decay, "u": u, "state": state}


def results(form, inputs: dict[str, Tensor], *, weigh_last: bool) -> list[Tensor]:
    """Every h, the last one, and the gradients of a fixed random weighting of them."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    h, last = form(**leaves)
    generator = torch.Generator().manual_seed(0)
    loss = (h * torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h)).sum()
    if weigh_last:
        loss = loss + (last * torch.randn(last.shape, generator=generator, dtype=torch.float64).to(h)).sum()
    return [h, last, *torch.autograd.grad(loss, list(leaves.values()))]


def assert_equals_recurrent(
    length: int, *, device: str, dtype: torch.dtype, kind: str, width: int = CHANNELS, weigh_last: bool = True
) -> None:
    from models.backends.triton.rglru import scan

    inputs = draw(length, width)
    given = {name: x.to(device, dtype) for name, x in inputs.items()}
    expected = results(rglru.recurrent, {name: x.cpu().double() for name, x in given.items()}, weigh_last=weigh_last)
    for x, y in zip(results(scan, given, weigh_last=weigh_last), expected, strict=True):
        assert_near(x.cpu().double(), y, kind)


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((1, 32768, 1024), (32, 1024), (32, 1024)),
        ((2, 1000, CHANNELS), (3, 336), (3, 336)),
        ((2, 767, CHANNELS), (1, 767), (1, 767)),
        ((16, 2048, 1024), (1, 2048), (4, 512)),
        ((32, 2048, 1024), (1, 2048), (1, 2048)),
        ((3, 0, 5), (1, 0), (1, 0)),
        ((0, 300, 5), (1, 300), (1, 300)),
    ],
)
def test_a_sequence_is_cut_where_there_are_few_of_them(
    shape: tuple[int, int, int], forward: tuple[int, int], backward: tuple[int, int]
) -> None:
    from models.backends.triton.rglru import ENOUGH_BACKWARD, ENOUGH_FORWARD, cut

    assert cut(*shape, programs=ENOUGH_FORWARD) == forward
    assert cut(*shape, programs=ENOUGH_BACKWARD) == backward


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "kind"), [(torch.float64, "float64"), (torch.float32, "float32")])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recurrence(length: int, dtype: torch.dtype, kind: str) -> None:
    assert_equals_recurrent(length, device="cuda", dtype=dtype, kind=kind)


@pytest.mark.gpu
def test_it_compiles_without_a_break() -> None:
    from models.backends.triton.rglru import scan

    def run(log_decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return scan(log_decay=log_decay.mul(0.5), u=u, state=state)

    inputs = {name: x.float().cuda() for name, x in draw(65).items()}
    compiled = torch.compile(run, fullgraph=True)
    eager, fused = (results(form, inputs, weigh_last=True) for form in (run, compiled))
    for x, y in zip(fused, eager, strict=True):
        assert_near(x, y, "float32")


@pytest.mark.gpu
def test_operators_are_registered_whole() -> None:
    from models.backends.triton.rglru import _scan

    inputs = [x.float().cuda().requires_grad_() for x in draw(65).values()]
    torch.library.opcheck(_scan, tuple(inputs))
