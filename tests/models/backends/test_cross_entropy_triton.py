"""The head's loss in Triton on a GPU; `test_interpreted` has it on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import chosen
from models.ops import cross_entropy
from tasks.task import IGNORE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
ROOT = Path(__file__).parents[3]
CAP = 30.0


def draw(count: int, vocab_size: int, d_model: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features and weights whose logits go beyond the cap, and targets of which some ask nothing."""
    generator = torch.Generator().manual_seed(count)
    features = 3.0 * torch.randn(count, d_model, generator=generator)
    weight = torch.randn(vocab_size, d_model, generator=generator)
    targets = torch.randint(vocab_size, (count,), generator=generator)
    targets[1::5] = IGNORE
    return features, weight, targets


def plain(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(CAP * torch.tanh(features @ weight.mT / CAP), targets, ignore_index=IGNORE)


def loss_and_gradients(form, features: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaves = [x.clone().requires_grad_() for x in (features, weight)]
    loss = form(*leaves, targets)
    return loss.detach(), *torch.autograd.grad(2.0 * loss, leaves)


def assert_is_the_plain_loss(count: int, vocab_size: int, d_model: int, device: str) -> None:
    """In float32, where what is rounded differently is the order of sums: 1e-5 of the largest entry."""
    from models.backends.triton.cross_entropy import mean_nll

    features, weight, targets = (x.to(device) for x in draw(count, vocab_size, d_model))
    ours = loss_and_gradients(lambda x, w, t: mean_nll(x, w, t, soft_cap=CAP), features, weight, targets)
    theirs = loss_and_gradients(plain, features.double(), weight.double(), targets)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_nothing_asked_costs_nothing(device: str) -> None:
    from models.backends.triton.cross_entropy import mean_nll

    for count in (0, 3):
        features, weight, targets = (x.to(device) for x in draw(count, 300, 16))
        ours = loss_and_gradients(lambda x, w, t: mean_nll(x, w, t, soft_cap=CAP), features, weight, targets.fill_(IGNORE))
        assert all((mine == 0).all() for mine in ours) and ours[2].shape == (300, 16)


@pytest.mark.slow
def test_compiles_for_a_hopper_gpu() -> None:
    command = [sys.executable, "-m", "tests.models.backends.cross_entropy_on_hopper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "compiled for sm_90" in done.stdout, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 50257, 64), (300, 50257, 64), (2048, 8192, 64), (77, 16381, 64), (40, 300, 64), (5, 11, 64)]
)
def test_it_is_the_plain_loss(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from models.backends.triton import cross_entropy as kernel

    monkeypatch.setattr(kernel, "SLICE_ELEMENTS", 2**23)
    assert_is_the_plain_loss(*shape, "cuda")


@pytest.mark.gpu
def test_nothing_asked_costs_nothing() -> None:
    assert_nothing_asked_costs_nothing("cuda")


@pytest.mark.gpu
def test_under_autocast_it_is_as_near_as_bfloat16_logits_are() -> None:
    """A logit of up to 30 is rounded by 0.06, a loss by less, as most of these errors cancel in its mean; the gradients by
    bfloat16's 2^-8 at each of two roundings, here of logits as large as they get."""
    features, weight, targets = (x.cuda() for x in draw(4096, 5000, 64))
    features, weight = features / 8.0, weight / 2.0
    with torch.autocast("cuda", torch.bfloat16):
        mean_nll = chosen(cross_entropy, features)
        ours = loss_and_gradients(lambda x, w, t: mean_nll(x, w, t, soft_cap=CAP), features, weight, targets)
    theirs = loss_and_gradients(plain, features.double(), weight.double(), targets)
    assert ours[0].dtype == ours[1].dtype == ours[2].dtype == torch.float32
    for mine, expected, tolerance in zip(ours, theirs, (1e-3, 2e-2, 2e-2), strict=True):
        assert (mine - expected).norm() <= tolerance * expected.norm()


@pytest.mark.gpu
def test_it_compiles_without_a_break_and_never_waits_for_the_device() -> None:
    features, weight, targets = (x.cuda() for x in draw(300, 5000, 64))

    mean_nll = chosen(cross_entropy, features)

    def form(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return mean_nll(x * 1.0, w, t, soft_cap=CAP)

    eager = loss_and_gradients(form, features, weight, targets)
    for mine, expected in zip(
        loss_and_gradients(torch.compile(form, fullgraph=True), features, weight, targets), eager, strict=True
    ):
        torch.testing.assert_close(mine, expected)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(form, features, weight, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_operator_is_registered_whole() -> None:
    from models.backends.triton.cross_entropy import _mean_nll

    features, weight, targets = (x.cuda() for x in draw(20, 300, 16))
    torch.library.opcheck(_mean_nll, (features.requires_grad_(), weight.requires_grad_(), targets, CAP))


@pytest.mark.gpu
def test_it_holds_one_slice_of_the_logits() -> None:
    """16,384 positions of 50,257 tokens are 1.65 GB of bfloat16 logits and 3.3 GB of float32 ones; a slice is 0.54 GB."""
    features = torch.randn(16384, 64, device="cuda", requires_grad=True)
    weight = torch.randn(50257, 64, device="cuda", requires_grad=True)
    targets = torch.randint(50257, (16384,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        chosen(cross_entropy, features)(features, weight, targets, soft_cap=CAP).backward()
    assert torch.cuda.max_memory_allocated() - before < 0.75e9
