"""The published layers of xLSTM: each against one written out head by head, their starts, their mix and what they refuse."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.build import build_model, read_model
from models.mixer import SequenceMixer
from models.xlstm_original import MLSTM, SLSTM, HeadwiseLinear
from tests.models import built
from tests.models.test_laws import VOCAB_SIZE, config
from tests.models.tolerances import assert_near

B, D, H = 2, 12, 3
MIXERS = {
    MLSTM: {
        "d_model": D,
        "backend": "torch",
        "expand": 2,
        "num_heads": H,
        "projection_block": 4,
        "conv_width": 4,
        "forget_bias_first": 3.0,
        "forget_bias_last": 6.0,
        "input_bias_std": 0.1,
        "norm_eps": 1e-5,
        "chunk_size": 4,
    },
    SLSTM: {
        "d_model": D,
        "backend": "torch",
        "num_heads": H,
        "conv_width": 4,
        "forget_bias_first": 5.0,
        "forget_bias_last": -7.0,
        "forget_bias_power": 0.5,
        "norm_eps": 1e-5,
    },
}
PARAMETERS = dict[str, Tensor]


def build(kind: type[SequenceMixer], **changes: Any) -> SequenceMixer:
    layer = built.mixer(kind, {**MIXERS[kind], **changes})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.double()


def stirred(kind: type[SequenceMixer]) -> SequenceMixer:
    """A layer none of whose parameters is at a neutral value."""
    layer, generator = build(kind), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def draw(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(B, length, D, generator=generator).double(), torch.rand(B, length, generator=generator) < 0.2


def documents(x: Tensor, starts: Tensor) -> list[list[Tensor]]:
    """The documents of every row, each [length, D]."""
    rows = []
    for row, begins in zip(x, starts, strict=True):
        cuts = [0, *(begins.nonzero().flatten().tolist()), len(row)]
        rows.append([row[first:last] for first, last in zip(cuts[:-1], cuts[1:], strict=True) if first < last])
    return rows


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu of a causal convolution of [length, channels] by weights in order of age."""
    kernel = weight.flip(1).unsqueeze(1)
    return F.silu(F.conv1d(F.pad(x.T, (weight.shape[1] - 1, 0)), kernel, bias, groups=len(weight)).T)


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * weight


def mlstm_written_out(p: PARAMETERS, x: Tensor) -> Tensor:
    """A document [length, D] by sums over the tokens so far, without a stabiliser."""
    inner, z = (x @ p["input_projection.weight"].T).chunk(2, dim=-1)
    y = convolved(inner, p["convolution.weight"], p["convolution_bias"])
    blocks = [(q_k[:, :4], q_k[:, 4:]) for q_k in p["query_key_projection.weight"]]
    q, k = (y @ torch.block_diag(*matrices) for matrices in zip(*blocks, strict=True))
    v = inner @ torch.block_diag(*p["value_projection.weight"])
    log_i, forget = (torch.cat([q, k, v], dim=-1) @ p["gates.weight"].T + p["gates.bias"]).chunk(2, dim=-1)
    log_f, size, outputs = F.logsigmoid(forget), 2 * D // H, []
    for t in range(len(x)):
        read = []
        for head in range(H):
            part = slice(head * size, (head + 1) * size)
            weights = torch.stack([(log_f[s + 1 : t + 1, head].sum() + log_i[s, head]).exp() for s in range(t + 1)])
            scores = weights * (k[: t + 1, part] @ q[t, part]) / math.sqrt(size)
            o = scores @ v[: t + 1, part] / scores.sum().abs().clamp(min=1.0)
            read.append(layer_norm(o, p["norm_weight"][part]))
        outputs.append((torch.cat(read) + p["skip"] * y[t]) * F.silu(z[t]))
    return torch.stack(outputs) @ p["output_projection.weight"].T


def slstm_written_out(p: PARAMETERS, x: Tensor) -> Tensor:
    """A document [length, D] head by head, without a stabiliser."""
    y, size, heads = convolved(x, p["convolution.weight"], p["convolution_bias"]), D // H, []
    for head in range(H):
        part, bias = slice(head * size, (head + 1) * size), p["gate_bias"].view(H, 4 * size)[head]
        given = torch.cat([y[:, part] @ p["convolved_gates.weight"][head], x[:, part] @ p["direct_gates.weight"][head]], dim=-1)
        h = c = n = x.new_zeros(size)
        outputs = []
        for t in range(len(x)):
            i, f, z, o = (given[t] + bias + h @ p["recurrent_gates.weight"][head]).view(4, size)
            c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
            h = o.sigmoid() * c / n
            outputs.append(layer_norm(h, p["norm_weight"][part]))
        heads.append(torch.stack(outputs))
    return torch.cat(heads, dim=-1) @ p["output_projection.weight"].T


@pytest.mark.parametrize("length", [1, 8, 13])
@pytest.mark.parametrize(("kind", "definition"), [(MLSTM, mlstm_written_out), (SLSTM, slstm_written_out)])
def test_the_layer_is_the_published_one(kind: type[SequenceMixer], definition: Any, length: int) -> None:
    """In outputs and in the gradients into all parameters and the input, over documents."""
    layer, (x, starts) = stirred(kind), draw(length)
    parameters = dict(layer.named_parameters())
    sources = [x.requires_grad_(), *parameters.values()]
    expected = torch.stack([torch.cat([definition(parameters, d) for d in row]) for row in documents(x, starts)])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).double()
    actual, _ = layer(x, starts=starts)
    assert_near(actual, expected, "float64")
    ours, theirs = (torch.autograd.grad((y * weight).sum(), sources) for y in (actual, expected))
    for gradient, correct in zip(ours, theirs, strict=True):
        assert_near(gradient, correct, "float64")


def test_gates_start_as_the_authors_do() -> None:
    layer, cell = build(MLSTM, num_heads=4), build(SLSTM)
    assert not layer.gates.weight.any()
    assert layer.gates.bias[4:].tolist() == pytest.approx([3.0, 4.0, 5.0, 6.0])
    many = build(MLSTM, d_model=256, num_heads=256).gates.bias[:256]
    assert many.std().item() == pytest.approx(0.1, rel=0.15) and abs(many.mean().item()) < 0.02
    assert not cell.recurrent_gates.weight.any()
    i, f, z, o = cell.gate_bias.view(H, 4, D // H).unbind(1)
    assert not torch.cat([i, z, o]).any()
    for head in f:
        assert head.tolist() == pytest.approx([5.0 - 12.0 * (place / 3) ** 0.5 for place in range(4)], rel=1e-5)


def test_a_headwise_map_is_a_block_diagonal_matrix_without_a_bias() -> None:
    linear = HeadwiseLinear(num_blocks=2, d_in=3, d_out=2)
    linear.reset_parameters(torch.Generator().manual_seed(0))
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert_near(linear(x).flatten(-2), x @ torch.block_diag(*linear.weight), "float32")
    many = HeadwiseLinear(num_blocks=50, d_in=16, d_out=16)
    many.reset_parameters(torch.Generator().manual_seed(0))
    assert many.weight.std().item() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(("depth", "num_slstm"), [(2, 1), (4, 1), (7, 1), (8, 1), (14, 2), (28, 4)])
def test_one_block_in_eight_is_an_slstm_and_the_second_is(depth: int, num_slstm: int) -> None:
    given = config("xlstm_original")
    size = built.size(**{**given["size"], "num_blocks": depth})
    with torch.device("meta"):
        model = build_model(read_model(given["model"]), size, vocab_size=VOCAB_SIZE, backend="torch")
    kinds = [type(block.mixer) for block in model.blocks]
    assert kinds[:2] == [MLSTM, SLSTM] and Counter(kinds)[SLSTM] == num_slstm


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (MLSTM, {"num_heads": 5}, "num_heads=5 is out of range, permitted are divisors of the width 24"),
        (MLSTM, {"projection_block": 5}, "projection_block=5 .*divisors of the width 24"),
        (MLSTM, {"forget_bias_first": 1e3}, "forget_bias_first=1000"),
        (MLSTM, {"input_bias_std": 0.0}, "input_bias_std=0 "),
        (MLSTM, {"expand": 0}, "expand=0"),
        (SLSTM, {"num_heads": 5}, "num_heads=5 is out of range, permitted are divisors of d_model 12"),
        (SLSTM, {"forget_bias_power": 0.0}, "forget_bias_power=0 "),
        (SLSTM, {"conv_width": 0}, "conv_width=0"),
    ],
)
def test_what_a_layer_refuses(kind: type[SequenceMixer], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(kind, **changes)
