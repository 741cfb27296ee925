"""mamba-ssm's kernels against the float64 recurrence.

Their first use tries every launch of a dozen kernels, which takes minutes; MAMBA_DETERMINISTIC=1 makes mamba-ssm take one.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import mamba_ssm, settle
from models.mamba2 import Mamba2
from models.ops import ssd
from tests.models import built
from tests.models.test_mamba2 import MIXER

LENGTHS = (1, 63, 64, 65, 500, 1000)
B, H, G, K, V = 2, 4, 2, 64, 64
# Norms of the error over norms of the result. bfloat16: q, k, v are given in its 8 bits, but the decayed keys, the attention
# within a chunk and the states that chunks read are rounded to them anew, 2^-9 each, a few of which add up; the gradient of A
# is a sum over all tokens, of both signs. float32: products in TF32, whose 11 bits round by 2^-12.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 4e-3}


def pretend(monkeypatch: pytest.MonkeyPatch, *, version: str | None, missing: str | None = None) -> None:
    """mamba-ssm installed in a version or not at all, and of what else it needs all but one."""

    def installed(distribution: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(distribution)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())


@pytest.mark.parametrize(
    ("version", "missing", "message"),
    [
        (None, None, "mamba-ssm is not installed: MAMBA_SKIP_CUDA_BUILD=TRUE"),
        ("2.2.4", None, "mamba-ssm is 2.2.4, permitted is 2.3"),
        ("2.3.2.post1", "einops", "einops, which mamba-ssm needs, is not installed: pip install einops"),
        ("2.3.2.post1", "triton", "triton, which mamba-ssm needs, is not installed: pip install triton"),
    ],
)
def test_an_obstacle_is_named(version: str | None, missing: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, version=version, missing=missing)
    assert mamba_ssm.obstacle().startswith(message)


def test_nothing_missing_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, version="2.3.2.post1")
    assert mamba_ssm.obstacle() is None


def test_the_kernels_are_imported_past_the_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose __init__ fails where its compiled extension is missing."""
    folder = tmp_path / "mamba_ssm"
    (folder / "ops" / "triton").mkdir(parents=True)
    (folder / "__init__.py").write_text("import a_compiled_extension_that_is_missing")
    for package in (folder / "ops", folder / "ops" / "triton"):
        (package / "__init__.py").touch()
    (folder / "ops" / "triton" / "ssd_combined.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    assert mamba_ssm._kernels.__wrapped__("ssd_combined").answer == 42
    assert "mamba_ssm" not in sys.modules
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]


def test_a_cpu_takes_torch() -> None:
    backends = Mamba2.backends(built.mixer(Mamba2, MIXER).settings)
    assert settle("auto", [backends], "cpu") == "torch"
    with pytest.raises(ValueError, match="needs a CUDA device"):
        settle("mamba_ssm", [backends], "cpu")


def draw(length: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs in the dtypes of a model under autocast, a state that is not zero among them; and where sequences start."""
    generator = torch.Generator().manual_seed(length)
    shapes = {"q": (B, length, G, K), "k": (B, length, G, K), "v": (B, length, H, V), "dt": (B, length, H), "A": (H,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn |= {"dt": F.softplus(drawn["dt"] - 3.0), "A": -drawn["A"].exp()}
    drawn |= {name: drawn[name].to(dtype) for name in ("q", "k", "v")}
    state = torch.randn(B, H, V, K, generator=generator)
    starts = torch.rand(B, length, generator=generator) < 0.01
    # One sequence goes on from the state it is given to its end.
    starts[1] = False
    starts[0, 0] = True
    return {**drawn, "state": state}, starts


def results(form, inputs: dict[str, Tensor], starts: Tensor) -> dict[str, Tensor]:
    """Outputs, the last state, and the gradients of a fixed random weighting of both."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, last = form(**leaves, starts=starts)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (y, last))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "last": last, **{f"into {name}": x for name, x in zip(leaves, gradients, strict=True)}}


def assert_equals_recurrent(form, length: int, dtype: torch.dtype) -> None:
    inputs, starts = draw(length, dtype)
    actual = results(form, {name: x.cuda() for name, x in inputs.items()}, starts.cuda())
    expected = results(ssd.recurrent, {name: x.double() for name, x in inputs.items()}, starts)
    assert actual["last"].dtype == torch.float32
    for name, x in expected.items():
        error = (actual[name].cpu().double() - x).norm() / x.norm()
        assert error < TOLERANCES[dtype], f"{name}: {error:.1e}"


needs_mamba_ssm = pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="needs mamba-ssm")


@pytest.mark.gpu
@needs_mamba_ssm
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recurrence(length: int) -> None:
    assert_equals_recurrent(mamba_ssm.ssd, length, torch.bfloat16)


@pytest.mark.gpu
@needs_mamba_ssm
def test_it_is_the_recurrence_in_float32() -> None:
    assert_equals_recurrent(mamba_ssm.ssd, 500, torch.float32)


@pytest.mark.gpu
@needs_mamba_ssm
def test_it_compiles_without_a_break() -> None:
    assert_equals_recurrent(torch.compile(mamba_ssm.ssd, fullgraph=True), 500, torch.bfloat16)


@pytest.mark.gpu
@needs_mamba_ssm
def test_the_layer_is_the_same_by_either_backend() -> None:
    settings = MIXER | {"d_model": 128, "key_dim": K, "value_dim": V}
    x = torch.randn(B, 500, 128, generator=torch.Generator().manual_seed(0)).cuda()
    outputs = []
    for backend in ("torch", "mamba_ssm"):
        mixer = built.mixer(Mamba2, settings | {"backend": backend}).cuda()
        mixer.reset_parameters(torch.Generator().manual_seed(0))
        with torch.autocast("cuda", torch.bfloat16):
            outputs.append(mixer(x)[0])
    assert (outputs[1] - outputs[0]).norm() < TOLERANCES[torch.bfloat16] * outputs[0].norm()


@pytest.mark.gpu
@needs_mamba_ssm
@torch.no_grad()
def test_a_step_in_place_is_one_of_the_recurrence() -> None:
    inputs, _ = draw(1, torch.bfloat16)
    expected, after = ssd.recurrent(**{name: x.double() for name, x in inputs.items()}, starts=None)
    there = {name: x.cuda() for name, x in inputs.items()}
    state, A = there.pop("state"), there.pop("A")
    y = mamba_ssm.step_(**{name: x.squeeze(1) for name, x in there.items()}, A=A, state=state)
    # The step multiplies in float32, and only its result is bfloat16.
    assert (y.cpu().double() - expected.squeeze(1)).norm() < 3e-3 * expected.norm()
    torch.testing.assert_close(state.cpu().double(), after, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_mamba_ssm
@torch.no_grad()
def test_steps_in_place_of_the_layer_are_its_forward_pass() -> None:
    mixer = built.mixer(Mamba2, MIXER | {"d_model": 128, "key_dim": K, "value_dim": V, "backend": "mamba_ssm"}).cuda()
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(B, 9, 128, generator=torch.Generator().manual_seed(0)).cuda()
    state = mixer.init_state(B)
    stepped = torch.stack([mixer.step_(x_t, state) for x_t in x.unbind(1)], dim=1)
    expected, after = mixer(x)
    assert (stepped - expected).norm() < TOLERANCES[torch.float32] * expected.norm()
    for name, value in after.items():
        assert (state[name] - value).norm() < TOLERANCES[torch.float32] * value.norm()
