"""PaTH attention against its definition with every product of H written out, and what it is without turns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import softmax_attention
from models.ops.path_attention import Cache, chunked, decode_, recurrent
from tests.models.tolerances import assert_near

B, H, K, V, CACHED = 2, 3, 5, 4, 6

Tensors = dict[str, Tensor]
FORMS = pytest.mark.parametrize("form", [recurrent, partial(chunked, chunk_size=8)], ids=["recurrent", "chunked"])
FORGETS = pytest.mark.parametrize("forgets", [False, True], ids=["path", "fox"])


def draw(length: int, *, forgets: bool, cached: int = CACHED) -> Tensors:
    """Inputs behind a cache; the cached tensors are named as in `Cache`, with a c in front."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    drawn = {
        "q": normal(B, length, H, K),
        "k": normal(B, length, H, K),
        "v": normal(B, length, H, V),
        "w": F.normalize(normal(B, length, H, K), dim=-1),
        "beta": 2.0 * normal(B, length, H).sigmoid(),
        "ck": normal(B, H, cached, K),
        "cv": normal(B, H, cached, V),
    }
    if forgets:
        drawn |= {"log_forget": F.logsigmoid(normal(B, length, H)), "cdecay": F.logsigmoid(normal(B, H, cached))}
    return drawn


def draw_span(length: int, cached: int = CACHED) -> Tensor:
    """Some queries see nothing but their own token, some everything."""
    generator = torch.Generator().manual_seed(length)
    return (torch.rand(B, length, generator=generator) * (cached + torch.arange(length) + 1)).long()


def run(form: Callable[..., tuple[Tensor, Cache]], inputs: Tensors, span: Tensor) -> list[Tensor]:
    over_time = {name: inputs.get(name) for name in ("q", "k", "v", "w", "beta", "log_forget")}
    o, cache = form(**over_time, span=span, cache=Cache(inputs["ck"], inputs["cv"], inputs.get("cdecay")))
    return [o, *(x for x in cache if x is not None)]


def written_out(inputs: Tensors, span: Tensor) -> list[Tensor]:
    """o_t and the cache behind the last token, from the product H_t ... H_{j+1} of every pair of tokens."""
    length, cached = inputs["q"].shape[1], inputs["ck"].shape[2]
    keys = torch.cat([inputs["ck"], inputs["k"].transpose(1, 2)], dim=2)
    values = torch.cat([inputs["cv"], inputs["v"].transpose(1, 2)], dim=2)
    outputs, turned, decays = [], [], []
    for b in range(B):
        for h in range(H):
            w, beta = inputs["w"][b, :, h], inputs["beta"][b, :, h]
            turns = [torch.eye(K, dtype=w.dtype) - beta[s] * torch.outer(w[s], w[s]) for s in range(length)]
            for t in range(length):
                product, total, logits = torch.eye(K, dtype=w.dtype), w.new_zeros(()), {}
                for j in reversed(range(cached + t + 1)):
                    logits[j] = inputs["q"][b, t, h] @ product @ keys[b, h, j] / math.sqrt(K)
                    if t == length - 1:
                        turned.append(product @ keys[b, h, j])
                    if "log_forget" in inputs:
                        decay = total + inputs["cdecay"][b, h, j] if j < cached else total
                        logits[j] = logits[j] + decay
                        if t == length - 1:
                            decays.append(decay)
                    if j >= cached:
                        product = product @ turns[j - cached]
                        total = total + (inputs["log_forget"][b, j - cached, h] if "log_forget" in inputs else 0.0)
                seen = [j for j in logits if cached + t - j <= span[b, t]]
                weights = torch.stack([logits[j] for j in seen]).softmax(0)
                outputs.append(weights @ values[b, h, seen])
    o = torch.stack(outputs).view(B, H, length, V).transpose(1, 2)
    cache = [torch.stack(turned).view(B, H, -1, K).flip(2), values]
    return [o, *cache, *([torch.stack(decays).view(B, H, -1).flip(2)] if decays else [])]


def gradients(form: Callable[[Tensors], list[Tensor]], inputs: Tensors) -> tuple[list[Tensor], Tensors]:
    """Outputs, and the gradient into every input of a fixed random weighting of all of them."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = form(leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum() for y in outputs)
    return outputs, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(actual: Callable[[Tensors], list[Tensor]], expected: Callable[[Tensors], list[Tensor]], inputs: Tensors) -> None:
    assert_gives(actual, inputs, gradients(expected, inputs))


def assert_gives(form: Callable[[Tensors], list[Tensor]], inputs: Tensors, known: tuple[list[Tensor], Tensors]) -> None:
    """known: outputs and gradients, as of `gradients`."""
    (ours, into), (theirs, correct) = gradients(form, inputs), known
    for x, y in zip(ours, theirs, strict=True):
        assert_near(x, y, "float64")
    for name, gradient in correct.items():
        assert_near(into[name], gradient, "float64")


@functools.cache
def by_definition(forgets: bool, length: int) -> tuple[Tensors, tuple[list[Tensor], Tensors]]:
    """Inputs, and outputs and gradients for all forms: the definition goes through every pair of tokens."""
    inputs = draw(length, forgets=forgets)
    return inputs, gradients(lambda x: written_out(x, draw_span(length)), inputs)


@FORMS
@FORGETS
@pytest.mark.parametrize("length", [1, 7, 8, 19])
def test_a_form_is_the_definition(form: Callable, forgets: bool, length: int) -> None:
    span = draw_span(length)
    assert_gives(lambda x: run(form, x, span), *by_definition(forgets, length))


EXTREMES = {
    "no_turn": ("beta", 0.0),
    "reflection": ("beta", 2.0),
    "zero_directions": ("w", 0.0),
    "equal_directions": ("w", K**-0.5),
    "large_keys": ("k", 1e4),
    "strong_forgetting": ("log_forget", -200.0),
    "nothing_forgotten": ("log_forget", 0.0),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_are_finite_and_agree(extreme: str) -> None:
    inputs, span = draw(19, forgets=True), draw_span(19)
    name, value = EXTREMES[extreme]
    # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
    inputs[name][:, 2:12] = value
    inputs = {name: x.float() for name, x in inputs.items()}
    for form in (recurrent, partial(chunked, chunk_size=8)):
        outputs, into = gradients(lambda x, form=form: run(form, x, span), inputs)
        assert all(x.isfinite().all() for x in (*outputs, *into.values()))
    wide = {name: x.double() for name, x in inputs.items()}
    assert_same(lambda x: run(partial(chunked, chunk_size=8), x, span), lambda x: run(recurrent, x, span), wide)


def test_a_bias_is_exact_behind_a_gate_that_forgot_nearly_all() -> None:
    """In float32 a difference of running sums near -4000 would be off by 1e-4, a tenth of what is asked for here."""
    inputs = {name: x.float() for name, x in draw(30, forgets=True, cached=0).items()}
    inputs["log_forget"][:, :20], inputs["log_forget"][:, 20:] = -200.0, -1e-3
    span = torch.full((B, 30), 5)
    narrow = run(partial(chunked, chunk_size=30), inputs, span)
    wide = run(recurrent, {name: x.double() for name, x in inputs.items()}, span)
    torch.testing.assert_close(narrow[0].double(), wide[0], rtol=1e-5, atol=5e-6)


@FORMS
def test_without_turns_it_is_softmax_attention(form: Callable) -> None:
    inputs, span = draw(19, forgets=False, cached=0), draw_span(19, cached=0)
    inputs["beta"].zero_()
    expected = softmax_attention.masked(q=inputs["q"], k=inputs["k"], v=inputs["v"], span=span)
    assert_near(run(form, inputs, span)[0], expected, "float64")


@FORMS
def test_the_forget_gate_is_not_divided_by_the_root_of_the_key_size(form: Callable) -> None:
    """With equal keys a weight is what the gates leave, as in FoX; flash-linear-attention divides the gates' logarithms."""
    inputs = draw(7, forgets=True, cached=0)
    inputs["beta"].zero_()
    inputs["k"][:] = inputs["k"][:, :1]
    o = run(form, inputs, torch.arange(7).expand(B, 7))[0]
    left = torch.stack([inputs["log_forget"][:, j + 1 :].sum(1).exp() for j in range(7)], dim=1).unsqueeze(-1)
    assert_near(o[:, -1], (left * inputs["v"]).sum(1) / left.sum(1), "float64")


def test_a_key_never_grows() -> None:
    inputs = draw(200, forgets=False, cached=0)
    keys = run(partial(chunked, chunk_size=16), inputs, torch.arange(200).expand(B, 200))[1]
    assert (keys.norm(dim=-1) <= inputs["k"].transpose(1, 2).norm(dim=-1) + 1e-12).all()


@FORGETS
def test_decoding_in_place_is_one_token_of_the_recurrence(forgets: bool) -> None:
    """Three tokens into a cache of ten slots, in a batch whose sequences are of other lengths."""
    inputs, slot = draw(3, forgets=forgets), torch.tensor([CACHED, CACHED - 2])
    expected = run(recurrent, inputs, slot.unsqueeze(1) + torch.arange(3))[0]
    # A sequence's tokens stand at its start, so what the second one may not see goes.
    sizes = (10 - CACHED, 10 - CACHED + 2)
    first, second = ({name: x[row : row + 1] for name, x in inputs.items() if name.startswith("c")} for row in range(2))
    second = {name: x[:, :, 2:] for name, x in second.items()}
    held = {}
    for name in first:
        pads = [(0, size) if first[name].ndim == 3 else (0, 0, 0, size) for size in sizes]
        held[name] = torch.cat([F.pad(each[name], pad) for each, pad in zip((first, second), pads, strict=True)])
    cache = Cache(held["ck"], held["cv"], held.get("cdecay"))
    for t in range(3):
        token = {name: inputs[name][:, t] if name in inputs else None for name in ("q", "k", "v", "w", "beta", "log_forget")}
        assert_near(decode_(**token, slot=slot + t, cache=cache), expected[:, t], "float64")


@FORMS
def test_keys_are_turned_in_the_width_of_the_cache_and_values_kept_as_they_are(form: Callable) -> None:
    drawn = draw(9, forgets=True, cached=0)
    inputs = {name: x.bfloat16() if name in ("q", "k", "v") else x.float() for name, x in drawn.items()}
    o, keys, values, decay = run(form, inputs, torch.arange(9).expand(B, 9))
    assert (o.dtype, keys.dtype, values.dtype, decay.dtype) == (torch.float32, torch.float32, torch.bfloat16, torch.float32)
