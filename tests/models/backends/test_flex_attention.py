"""FlexAttention sees the keys that the definition sees: on a CPU the mask and its blocks, on a GPU the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from models.attention import positions_in_document
from models.backends import flex_attention as ours
from models.backends.calls import is_worth_a_mask
from models.backends.flex_attention import BLOCK, block_mask, flexible
from models.ops.softmax_attention import _visible, masked


def spans(length: int, *, cached: int, window: int | None) -> Tensor:
    """Documents that begin anywhere, rarely in one row and often in the other, under a window."""
    odds = torch.tensor([[0.002], [0.05]])
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < odds
    return positions_in_document(torch.tensor([cached, cached // 2]), starts).clamp(max=(window or length + cached) - 1)


CASES = [(1, 0, None), (100, 60, None), (300, 0, None), (257, 200, 50), (512, 0, 130), (640, 127, 128), (640, 0, 1)]


@pytest.mark.parametrize(("length", "cached", "window"), CASES)
def test_blocks_hold_every_visible_key_and_full_ones_no_other(length: int, cached: int, window: int | None) -> None:
    span = spans(length, cached=cached, window=window)
    mask = block_mask(span, cached + length)
    rows, columns = (-(-n // BLOCK) for n in (length, cached + length))
    seen = torch.zeros(2, rows * BLOCK, columns * BLOCK, dtype=torch.bool)
    seen[:, :length, : cached + length] = _visible(span, cached + length)
    blocks = seen.unflatten(2, (columns, BLOCK)).unflatten(1, (rows, BLOCK)).transpose(2, 3)
    assert torch.equal(mask.to_dense().squeeze(1).bool(), blocks.any(-1).any(-1))
    for row in range(2):
        for i in range(rows):
            full = mask.full_kv_indices[row, 0, i, : mask.full_kv_num_blocks[row, 0, i]]
            queries = min(BLOCK, length - i * BLOCK)
            assert blocks[row, i, full, :queries].all()


@pytest.mark.parametrize(("length", "cached", "window"), CASES[1:4:2])
def test_the_mask_is_the_definitions(length: int, cached: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_compiled", lambda: flex_attention)
    q, k, v = (torch.randn(2, n, 2, 16, generator=torch.Generator().manual_seed(n)) for n in (length, *[cached + length] * 2))
    inputs = {"q": q, "k": k, "v": v, "span": spans(length, cached=cached, window=window)}
    torch.testing.assert_close(flexible(**inputs), masked(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "cached", "window"), [(500, 0, None), (1000, 127, 128)])
def test_the_kernel_is_the_definition(length: int, cached: int, window: int | None) -> None:
    """Outputs and gradients; a bfloat16 number has 8 bits, 4e-3, and a weighted mean of them rounds once more.

    The gradients of q and k are sums of p (dp - p dp^T), where the rounded output stands for a sum over p: a plain
    computation with p and the output rounded to bfloat16 is off by 2.8e-2 on the first case.
    """
    span = spans(length, cached=cached, window=window).cuda()
    drawn = [torch.randn(2, n, 2, 64, generator=torch.Generator().manual_seed(n)) for n in (length, *[cached + length] * 2)]
    narrow = [x.cuda().bfloat16().requires_grad_() for x in drawn]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    o, expected = (f(q=q, k=k, v=v, span=span) for f, (q, k, v) in ((flexible, narrow), (masked, wide)))
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).cuda().bfloat16()
    gradients, correct_gradients = torch.autograd.grad(o, narrow, weight), torch.autograd.grad(expected, wide, weight.double())
    pairs = zip([o, *gradients], [expected, *correct_gradients], (1e-2, 4e-2, 4e-2, 1e-2), strict=True)
    for actual, correct, tolerance in pairs:
        assert (actual.double() - correct).norm() < tolerance * correct.norm()


@torch.no_grad()
def test_it_is_part_of_one_graph_where_the_caller_is_compiled() -> None:
    q, k, v = torch.randn(3, 2, 300, 2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    inputs = {"q": q, "k": k, "v": v, "span": spans(300, cached=0, window=50)}
    together = torch.compile(flexible, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(together(**inputs), masked(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "num_keys", "window", "compiled", "expected"),
    [
        # As gpu_windows.py measured it on an H200; the sixth is the cache of a long prompt.
        (2048, 2048, 16, True, True),
        (2048, 2048, 16, False, False),
        (2048, 2048, 1024, False, False),
        (2048, 2048, None, False, False),
        (16384, 16384, 128, False, False),
        (512, 65536, None, False, True),
        (16384, 16384, 1024, False, True),
        (16384, 16384, None, False, True),
        # Its blocks are of 128 by 128: two of queries are the fewest of which any can be left out.
        (255, 65536, None, True, False),
        (256, 65536, None, True, True),
    ],
)
def test_it_is_chosen_where_it_was_the_fastest(length, num_keys, window, compiled, expected) -> None:
    assert is_worth_a_mask(length, num_keys, window, compiled=compiled) is expected
