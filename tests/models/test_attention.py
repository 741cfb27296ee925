from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.attention import Attention, positions_in_document, rotate, rotation
from models.ops.softmax_attention import BLOCKS_WORTH_SPLITTING, MIN_BLOCK, fused, masked, windowed
from tests.models import built
from tests.models.tolerances import assert_near

MIXER = {"d_model": 8, "backend": "torch", "num_heads": 2, "key_dim": 4, "window": None, "rope_base": 10000.0}
LONG = BLOCKS_WORTH_SPLITTING * MIN_BLOCK


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(*, length: int, cached: int) -> dict[str, Tensor]:
    """Queries, the keys and values of them and of cached tokens, and spans that end at random starts of documents."""
    q, k, v = (draw(2, n, 2, 4, seed=i).requires_grad_() for i, n in enumerate((length, cached + length, cached + length)))
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.01
    return {"q": q, "k": k, "v": v, "span": positions_in_document(torch.tensor([cached, cached // 2]), starts)}


def assert_same_function(actual: Tensor, expected: Tensor, tensors: dict[str, Tensor]) -> None:
    """Equal values, and equal gradients of a random projection of them."""
    assert_near(actual, expected, "float64")
    sources = [tensors[name] for name in "qkv"]
    weight = draw(*actual.shape, seed=4)
    ours, theirs = (torch.autograd.grad((o * weight).sum(), sources) for o in (actual, expected))
    for gradient, correct in zip(ours, theirs, strict=True):
        assert_near(gradient, correct, "float64")


def test_masked_is_a_mean_of_values_weighted_by_the_exponential_of_scores() -> None:
    tensors = inputs(length=5, cached=2)
    q, k, v, o = (x.detach() for x in (tensors["q"], tensors["k"], tensors["v"], masked(**tensors)))
    for t, span in enumerate(tensors["span"][0].tolist()):
        seen = range(2 + t - span, 2 + t + 1)
        weights = [math.exp(q[0, t, 1] @ k[0, s, 1] / 2.0) for s in seen]
        values = [w * v[0, s, 1] for w, s in zip(weights, seen, strict=True)]
        assert_near(o[0, t, 1], sum(values) / sum(weights), "float64")


@pytest.mark.parametrize("cached", [0, 3])
def test_fused_is_masked(cached: int) -> None:
    tensors = inputs(length=17, cached=cached)
    assert_same_function(fused(**tensors), masked(**tensors), tensors)


def test_fused_without_a_span_sees_all_earlier_tokens() -> None:
    tensors = inputs(length=17, cached=0) | {"span": torch.arange(17).unsqueeze(0)}
    assert_same_function(fused(**tensors | {"span": None}), masked(**tensors), tensors)


@pytest.mark.parametrize("length", [LONG, LONG + 1, LONG + 2 * MIN_BLOCK - 1])
@pytest.mark.parametrize("window", [1, 2, MIN_BLOCK - 1, MIN_BLOCK, MIN_BLOCK + 1])
@pytest.mark.parametrize("cached", [0, 1, None])
def test_windowed_is_masked(length: int, window: int, cached: int | None) -> None:
    tensors = inputs(length=length, cached=window - 1 if cached is None else min(cached, window - 1))
    tensors["span"] = tensors["span"].clamp(max=window - 1)
    assert_same_function(windowed(**tensors, window=window), masked(**tensors), tensors)


def largest_tensor_kept(length: int) -> int:
    tensors = inputs(length=length, cached=0)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        windowed(**tensors | {"span": tensors["span"].clamp(max=3)}, window=4)
    return max(sizes)


def test_windowed_keeps_no_square_of_the_length() -> None:
    assert largest_tensor_kept(4 * LONG) == 2 * largest_tensor_kept(2 * LONG)


def turned(x: Tensor, position: int, *, base: float) -> Tensor:
    return rotate(x, rotation(torch.tensor([[position]]), key_dim=x.shape[-1], base=base, dtype=x.dtype))


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = draw(1, 1, 1, 8, seed=0), draw(1, 1, 1, 8, seed=1)

    def score(m: int, n: int) -> Tensor:
        return (turned(q, m, base=10000.0) * turned(k, n, base=10000.0)).sum()

    assert_near(score(7, 3), score(104, 100), "float64")
    assert not torch.isclose(score(7, 3), score(7, 4))


def test_rotary_turns_the_pair_i_by_the_position_times_base_to_the_minus_2i_over_k() -> None:
    x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    x[..., :2] = 1.0  # the first of each pair
    angles = [3.0, 3.0 * 100.0 ** (-2 / 4)]
    assert_near(
        turned(x, 3, base=100.0).flatten(),
        torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles]).double(),
        "float32",
    )


def test_a_compiled_layer_works_its_angles_out_once() -> None:
    """Fused into what reads them they would be worked out again for every head of q and of k, forwards and back."""
    layer = built.mixer(Attention, MIXER | {"d_model": 16, "key_dim": 8, "rope_base": 100.0})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    x, graphs = draw(2, 9, 16, seed=0).float(), []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=keep)(x)[0]
    torch.testing.assert_close(compiled, layer(x)[0])
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes if "cos" in str(node.target)] == ["linear_rnn_suite.cos_sin.default"]
    torch.library.opcheck(torch.ops.linear_rnn_suite.cos_sin.default, (x,))


def test_positions_count_from_the_last_start() -> None:
    starts = torch.tensor([[0, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    expected = [[5, 6, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]]
    assert positions_in_document(torch.tensor([5, 6, 7]), starts).tolist() == expected


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_a_state_keeps_nothing_but_what_it_holds(window: int | None) -> None:
    mixer = built.mixer(Attention, MIXER | {"window": window})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    _, state = mixer(torch.randn(2, 50, MIXER["d_model"]))
    for name in ("k", "v"):
        assert state[name].untyped_storage().nbytes() == state[name].numel() * state[name].element_size()


@pytest.mark.parametrize(("window", "mean_keys"), [(None, 3.0), (1, 1.0), (2, 9 / 5), (4, 14 / 5), (5, 3.0), (9, 3.0)])
def test_flops_are_those_of_the_keys_seen_on_average(window: int | None, mean_keys: float) -> None:
    mixer = built.mixer(Attention, MIXER | {"window": window})
    assert mixer.forward_flops_per_token(5) == pytest.approx(2 * 4 * 8 * 8 + 2 * 2 * mean_keys * 8)


@pytest.mark.parametrize(
    ("key", "value", "permitted"),
    [
        ("num_heads", 0, "from 1"),
        ("key_dim", 3, "even"),
        ("key_dim", 0, "even"),
        ("window", 0, "null"),
        ("rope_base", 0, "above 0"),
    ],
)
def test_values_out_of_range_are_named(key: str, value: object, permitted: str) -> None:
    with pytest.raises(ValueError, match=f"{key}={value!r}.*{permitted}"):
        built.mixer(Attention, MIXER | {key: value})
