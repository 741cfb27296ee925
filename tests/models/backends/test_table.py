"""The table of kernels: which ops it knows, what it permits, and what it calls."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

from conf.settings import RequestError
from models import backends
from models.backends import BACKENDS, KERNELS, Kernel, by_mixer, check, load, resolve, settle
from models.build import Model, Size, build_mixers, computing_backends, mixer_classes, read_model
from models.ops import delta_rule, rglru, short_convolution, ssd
from tests.models.test_laws import config

of_recurrences = pytest.mark.parametrize("row", [row for row in KERNELS if row.suits is None], ids=str)


def parameters(form: object) -> set[str]:
    return set(inspect.signature(form).parameters)


def test_torch_has_a_form_for_one_token_and_one_for_more() -> None:
    assert resolve(delta_rule, None, length=1, chunk_size=8) is delta_rule.recurrent
    several = resolve(delta_rule, None, length=2, chunk_size=8)
    assert several.func is delta_rule.chunked and several.keywords == {"chunk_size": 8}


def test_a_kernel_computes_all_lengths_from_its_shortest() -> None:
    for op, backend, shortest in ((delta_rule, "fla", 1), (ssd, "mamba_ssm", 2)):
        kernel = load(op, backend)
        called = [resolve(op, kernel, length=length, chunk_size=8) for length in (1, 2)]
        assert [form is kernel.computes for form in called] == [length >= shortest for length in (1, 2)]


def test_an_op_by_torch_has_no_kernel_and_no_two_rows_are_of_one_op_and_backend() -> None:
    assert load(delta_rule, "torch") is None and load(None, "fla") is None and load(rglru, "fla") is None
    assert len({(row.op, row.backend) for row in KERNELS}) == len(KERNELS)
    assert {row.backend for row in KERNELS} <= set(BACKENDS)


@of_recurrences
def test_a_kernel_takes_what_its_op_does_but_for_chunks(row: Kernel) -> None:
    if row.backend == "triton":
        pytest.importorskip("triton")
    op = importlib.import_module(f"models.ops.{row.op}")
    kernel = load(op, row.backend)
    assert parameters(op.chunked) - parameters(kernel.computes) == {"chunk_size"}
    assert parameters(kernel.computes) <= parameters(op.chunked)


@of_recurrences
def test_a_kernel_is_that_of_some_mixer_s_op(row: Kernel) -> None:
    assert any(mixer.op is not None and mixer.op.__name__ == f"models.ops.{row.op}" for mixer in mixer_classes().values())


def test_a_backend_that_does_not_compute_a_model_is_refused_with_the_permitted_and_the_nearest() -> None:
    with pytest.raises(RequestError, match="^backend=fla does not compute .* permitted are triton, torch"):
        check("fla", ("triton", "torch"))
    with pytest.raises(RequestError, match="did you mean triton"):
        check("tritan", ("triton", "torch"))


def hybrid(*names: str) -> Model:
    """The mixers of several models in turn."""
    first, *others = [read_model(config(name)["model"]) for name in names]
    return replace(first, pattern=names, mixers=tuple(model.mixers[0] for model in (first, *others)))


@pytest.fixture
def nothing_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "obstacle", lambda name, device: None)


@pytest.mark.parametrize(
    ("names", "asked", "settled"),
    [
        (["gated_deltanet", "gla"], "auto", "fla"),
        (["gated_deltanet", "gla", "gated_deltanet"], "fla", "fla"),
        (["gated_deltanet", "transformer"], "auto", "fla+torch"),
        (["gated_deltanet", "transformer"], "fla", "fla+torch"),
        (["gated_deltanet", "transformer"], "fla+torch", "fla+torch"),
        (["transformer", "gated_deltanet", "transformer"], "fla", "torch+fla"),
        (["gated_deltanet", "transformer"], "torch+torch", "torch"),
        (["kda"], "auto", "fla"),
        (["kda"], "fla", "fla"),
        (["gated_deltanet", "hawk"], "auto", "fla+triton"),
        (["gated_deltanet", "hawk"], "torch", "torch"),
        (["gated_deltanet", "hawk"], "torch+triton", "torch+triton"),
        (["transformer"], "torch", "torch"),
    ],
)
@pytest.mark.usefixtures("nothing_in_the_way")
def test_every_mixer_of_a_hybrid_has_a_backend_of_its_own(names: list[str], asked: str, settled: str) -> None:
    model = hybrid(*names)
    assert settle(asked, computing_backends(model), "cuda") == settled
    size = Size.read(config("gla")["size"]).replace({"num_blocks": 5})
    with torch.device("meta"):
        mixers = build_mixers(model, size, backend=settled)
    by_kind = dict(zip(model.kinds, by_mixer(settled, len(model.kinds)), strict=True))
    assert [mixer.backend for mixer in mixers] == [by_kind[names[i % len(names)]] for i in range(5)]


@pytest.mark.parametrize(
    ("names", "asked", "permitted"),
    [
        (["gated_deltanet", "transformer"], "triton", "auto, fla, torch, fla+torch"),
        (["gated_deltanet", "transformer"], "torch+fla", "auto, fla, torch, fla+torch"),
        (["gated_deltanet", "transformer"], "fla+torch+torch", "auto, fla, torch, fla+torch"),
        (["gated_deltanet", "hawk"], "fla", "auto, torch, fla+triton"),
        (["transformer"], "fla", "auto, torch"),
    ],
)
@pytest.mark.usefixtures("nothing_in_the_way")
def test_a_backend_that_leaves_a_mixer_out_is_refused(names: list[str], asked: str, permitted: str) -> None:
    with pytest.raises(RequestError, match=f"^backend={re.escape(asked)} does not .* permitted are {re.escape(permitted)}$"):
        settle(asked, computing_backends(hybrid(*names)), "cuda")


@pytest.mark.parametrize("name", ["gated_deltanet", "mesanet", "gla", "mlstm"])
def test_affine_keys_are_computed_by_torch_alone(name: str) -> None:
    (settings,) = read_model(config(name)["model"]).mixers
    mixer = mixer_classes()[settings.type]
    assert len(mixer.backends(settings)) > 1 and mixer.backends(settings.replace({"affine_keys": True})) == ("torch",)


def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"^backend=fla\+tritan is unknown, permitted are auto, .*; did you mean triton\?$"):
        settle("fla+tritan", computing_backends(hybrid("gated_deltanet", "transformer")), "cpu")


def test_what_is_in_the_way_of_one_mixer_is_said() -> None:
    assert settle("auto", computing_backends(hybrid("gated_deltanet", "hawk")), "cpu") == "torch"
    with pytest.raises(RequestError, match="^backend=fla\\+triton can't run here: it needs a CUDA device$"):
        settle("fla+triton", computing_backends(hybrid("gated_deltanet", "hawk")), "cpu")


def test_a_pattern_whose_mixer_has_no_block_is_refused() -> None:
    size = Size.read(config("gla")["size"]).replace({"num_blocks": 1})
    with pytest.raises(RequestError, match=r"^size\.num_blocks=1 is out of range, permitted are numbers from 2, by which every"):
        build_mixers(hybrid("gated_deltanet", "transformer"), size, backend="torch")


def test_the_short_convolution_s_kernel_is_left_where_pytorch_asks_for_more_than_a_gradient() -> None:
    suits, taken = load(short_convolution, "triton").suits, []

    def seen(x: torch.Tensor) -> torch.Tensor:
        taken.append(suits(SimpleNamespace(is_cuda=True, dtype=x.dtype, shape=(2, 5, 4))))
        return x.sin()

    x = torch.ones(3)
    torch.func.jvp(seen, (x,), (x,))
    torch.func.vmap(seen)(x)
    torch.func.grad(lambda x: seen(x).sum())(x)
    with forward_ad.dual_level():
        seen(forward_ad.make_dual(x, x))
    assert taken == 4 * [False]
    torch.autograd.grad(seen(x.requires_grad_()).sum(), x)
    assert taken[4:] == [True]
