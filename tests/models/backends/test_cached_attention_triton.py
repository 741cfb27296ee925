"""Attention over a cache in Triton on a GPU; `test_interpreted` has it on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.attention import Attention
from models.backends import load
from models.ops import cached_attention
from tests.models import built
from tests.thinned import pairwise

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
ROOT = Path(__file__).parents[3]
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The largest relative error of one rounding."""
SEEN = {
    "one": lambda slots: 1,
    "few": lambda slots: min(slots, 3),
    "most": lambda slots: max(1, slots - 1),
    "ring": lambda slots: 3 * slots,
}
"""Tokens before and at the position, by the slots; the ring has been round."""


def draw(batch: int, heads: int, slots: int, key_dim: int, *, seen: str, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """A cache as Attention keeps it, NaN in the slots that may not be seen, and sequences that are a token apart."""
    random = torch.Generator().manual_seed(slots * key_dim)
    position = SEEN[seen](slots) - 1 + torch.arange(batch)
    q = torch.randn(batch, 3 * heads, key_dim, generator=random)[:, heads : 2 * heads]
    cache = torch.randn(batch, 2, heads, slots, key_dim, generator=random)
    hidden = torch.arange(slots) > position.unsqueeze(1)
    cache.masked_fill_(hidden[:, None, None, :, None], float("nan"))
    q, cache = (x.to(device, dtype) for x in (q, cache))
    return {"q": q, "k": cache[:, 0], "v": cache[:, 1], "position": position.to(device)}


def assert_is_the_definition(inputs: dict[str, Tensor]) -> None:
    """Within one rounding to the dtype, and sums in float32 in another order."""
    from models.backends.triton.cached_attention import attend

    wide = {name: inputs[name].cpu().double().nan_to_num() for name in "qkv"}
    expected = cached_attention.attend(**wide, position=inputs["position"].cpu())
    o, dtype = attend(**inputs), inputs["q"].dtype
    assert o.dtype == dtype and o.is_contiguous()
    bound = ROUNDING[dtype] * expected.abs() + 2e-6 * expected.abs().max()
    assert ((o.cpu() - expected).abs() <= bound).all()


def drawn_layer(window: int | None) -> Attention:
    settings = {"num_heads": 2, "key_dim": 32, "window": window, "rope_base": 10000.0}
    layer = built.mixer(Attention, {"d_model": 64, "backend": "torch", **settings})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


def assert_layer_is_the_plain_one(device: str, *, window: int | None, dtype: torch.dtype, backend: str) -> None:
    """Ten tokens in place with the kernel, eager and compiled without a break, are those without it."""
    layer = drawn_layer(window).to(device, dtype)
    compiled = torch.compile(Attention.step_, fullgraph=True, dynamic=False, backend=backend)
    x = torch.randn(3, 19, 64, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = []
    for step_, taken in ((Attention.step_, False), (Attention.step_, True), (compiled, True)):
        layer.decoding_kernel = layer.decoding_kernel._replace(suits=lambda taken=taken, **inputs: taken)
        state = layer.reserve(layer(x[:, :9])[1], 10)
        given = [*state.values()]
        found.append([torch.stack([step_(layer, x[:, t], state) for t in range(9, 19)]), *state.values()])
        assert all(one is other for one, other in zip(state.values(), given, strict=True))
    for plain, *others in zip(*found, strict=True):
        bound = (2.0**-5 if dtype == torch.bfloat16 else 1e-5) * plain.abs().max()
        assert all((plain - other).abs().max() <= bound for other in others)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from models.backends import load
from models.ops import cached_attention
x = torch.zeros(2, 3, 4)
assert not load(cached_attention, "triton").suits(q=x, k=x.unsqueeze(2), v=x.unsqueeze(2))
"""


def test_a_cpu_does_without_it_and_without_triton() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("key_dim", "dtype", "is_cuda", "learns", "taken"),
    [
        (256, torch.bfloat16, True, False, True),
        (2, torch.float16, True, False, True),
        (64, torch.float32, True, False, True),
        (64, torch.float64, True, False, False),
        (258, torch.bfloat16, True, False, False),
        (64, torch.bfloat16, False, False, False),
        (64, torch.bfloat16, True, True, False),
    ],
)
def test_it_is_taken_on_a_gpu_for_heads_up_to_256_where_no_gradient_is_asked(key_dim, dtype, is_cuda, learns, taken) -> None:
    suits = load(cached_attention, "triton").suits
    q, k = (
        SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 2, key_dim), requires_grad=wants) for wants in (False, learns)
    )
    assert suits(q=q, k=k, v=q) == taken
    with torch.no_grad():
        assert suits(q=q, k=k, v=q) == (taken or learns)


@pytest.mark.parametrize("taken", [False, True])
@torch.no_grad()
def test_a_layer_decodes_by_it_where_it_is_taken(taken: bool) -> None:
    layer = drawn_layer(window=None)
    zeros = layer.decoding_kernel._replace(suits=lambda **inputs: taken, computes=lambda q, **inputs: torch.zeros_like(q))
    layer.decoding_kernel = zeros
    assert bool(layer.step_(torch.ones(2, 64), layer.reserve(layer.init_state(2), 1)).any()) != taken


@pytest.mark.parametrize(
    ("heads", "slots", "parts"),
    # Whole where heads fill an H200; else as many programs as do, none of fewer than 32 slots, and 64 a head at most.
    [
        (512, 640, 1),
        (528, 10**6, 1),
        (265, 640, 1),
        (264, 640, 2),
        (128, 640, 4),
        (8, 640, 16),
        (8, 63, 1),
        (8, 1, 1),
        (1, 10**6, 64),
    ],
)
def test_heads_are_cut_where_they_are_few(heads: int, slots: int, parts: int) -> None:
    from models.backends.triton.cached_attention_kernels import num_parts

    assert num_parts(heads, slots) == parts


@pytest.mark.slow
def test_compiles_for_a_hopper_gpu() -> None:
    command = [sys.executable, "-m", "tests.models.backends.cached_attention_on_hopper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "compiled for sm_90" in done.stdout, done.stdout + done.stderr


# One whole head, some of several parts, more heads than are ever cut; slots that are no multiple of a block, of a part, of 16.
HEADS = [(1, 1), (3, 5), (64, 8)]
SLOTS = [1, 7, 64, 513, 2100]


@pytest.mark.gpu
@pairwise(heads=HEADS, slots=SLOTS, seen=list(SEEN), dtype=list(ROUNDING), key_dim=[2, 16, 64, 96, 128, 256])
def test_it_is_the_definition(heads: tuple[int, int], slots: int, seen: str, dtype: torch.dtype, key_dim: int) -> None:
    assert_is_the_definition(draw(*heads, slots, key_dim, seen=seen, dtype=dtype, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("window", [None, 12])
@torch.no_grad()
def test_a_layer_with_it_is_the_plain_one_compiled_and_not(window: int | None, dtype: torch.dtype) -> None:
    assert_layer_is_the_plain_one("cuda", window=window, dtype=dtype, backend="inductor")


@pytest.mark.gpu
@pytest.mark.parametrize("heads", HEADS)
def test_captured_it_reads_the_position_of_every_replay(heads: tuple[int, int]) -> None:
    from models.backends.triton.cached_attention import attend

    inputs = draw(*heads, 200, 64, seen="ring", dtype=torch.bfloat16, device="cuda")
    attend(**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = attend(**inputs)
    for position in (0, 100, 1000):
        inputs["position"].fill_(position)
        graph.replay()
        assert torch.equal(o, attend(**inputs))


@pytest.mark.gpu
def test_it_is_the_same_bit_for_bit_every_time() -> None:
    from models.backends.triton.cached_attention import attend

    inputs = draw(2, 4, 1000, 128, seen="most", dtype=torch.bfloat16, device="cuda")
    assert torch.equal(attend(**inputs), attend(**inputs))
