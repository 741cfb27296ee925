"""The table of kernels: which ops it knows, what it permits, and what it calls."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace

import pytest

from conf.settings import RequestError
from models.backends import BACKENDS, KERNELS, Kernel, check, load, resolve
from models.build import computing_backends, mixer_classes, read_model
from models.ops import delta_rule, rglru, ssd
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


@pytest.mark.parametrize(
    ("names", "backends"),
    [
        (["gated_deltanet", "gla"], ("fla", "torch")),
        (["gated_deltanet", "hawk"], ("torch",)),
        (["gated_deltanet", "hawk", "gla"], ("torch",)),
    ],
)
def test_a_model_is_computed_by_what_computes_each_of_its_mixers(names: list[str], backends: tuple[str, ...]) -> None:
    first, *others = [read_model(config(name)["model"]) for name in names]
    mixers = [mixer for model in (first, *others) for mixer in model.mixers]
    assert computing_backends(replace(first, pattern=tuple(names), mixers=tuple(mixers))) == backends
