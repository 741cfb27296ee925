"""What must hold for every model in conf/model, without a test of its own."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conf.groups import whole
from models.backbone.language_model import LanguageModel
from models.build import Size, build_model, read_model
from models.components import ShortConvolution, linear_flops_per_token, linear_maps
from models.mesa.layers import mesa_layers
from suite.request.compose import WITHOUT
from tests.models.tolerances import assert_near

CONF = Path(__file__).parents[2] / "conf"
# A model that is read from a folder has weights of its own: tests/models/test_hf.py.
MODELS = whole("model")
VARIANTS = {
    # Token by token, which takes long: with keys as short as they may be, and as many steps as they need.
    "mesanet starting at the previous token": ("solver.initial=previous_token", "key_dim=8", "solver.max_steps=12"),
    "mesanet by preconditioned_cg": ("solver.name=preconditioned_cg",),
    "mesanet by chebyshev": ("solver.name=chebyshev",),
    "mesanet by richardson": ("solver.name=richardson", "solver.gradient=unrolled"),
    "mesanet with signed gates": ("signed_decay=true", "forget_gate_init=-0.98", "regularizer_floor=9", "regularizer_init=10"),
    # Where gates forget it is another function than the solver's, and its steps are not its forward pass.
    "mesanet by sherman_morrison": ("decode=sherman_morrison", "refresh=4", "forget_gate_init=null", "forget_cap=null"),
    "mesanet with its input convolved, affine keys and a gate of rank 4": (
        "convolution=input",
        "affine_keys=true",
        "output_gate=sigmoid",
        "output_gate_rank=4",
    ),
    "gated_deltanet with its values convolved and a swish gate": ("convolution=query_key_value", "output_gate=swish"),
    "mlstm without a convolution": ("convolution=none",),
    "path_attention with a forget gate": ("forget_gate_init=0.98",),
    "gated_deltanet with Mamba's decay": ("forget_gate_init=null", "decay_rates=[0,16]"),
    "kda with a bounded decay": ("decay_rates=[1,1]", "decay_bound=5", "decay_rank=null", "negative_eigenvalues=true"),
    "deltaproduct of three reflections": ("num_householder=3", "input_gate_init=null"),
    # At this small size the model itself has a single head.
    "mamba2_original with two groups of two heads": ("value_dim=16", "num_groups=2"),
    "mamba3 with two groups of two heads": ("value_dim=16", "num_groups=2"),
}
SIZE = ("size.d_model=32", "size.num_blocks=2", "size.num_heads=2", "size.head_dim=16", "size.mlp_dim=32")
VOCAB_SIZE, BATCH_SIZE, LENGTH = 19, 3, 65
# Parameters of two dimensions or more that weight decay leaves alone, since they are no linear maps.
UNDECAYED = ("embedding.weight", "convolution.weight", "norm.weight", "gates.bias", "regularizer_logit", "token_shift.weight")
UNDECAYED += ("key_bias", "query_bias", "level_scale")

pytestmark = pytest.mark.parametrize("name", [*MODELS, *VARIANTS])


@functools.cache
def config(name: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"+model={name.split()[0]}", *(f"model.mixer.{change}" for change in VARIANTS.get(name, ()))]
        return OmegaConf.to_container(compose(overrides=[*WITHOUT, *overrides, "+size=tiny", *SIZE]), resolve=True)


def build(name: str, *, solver_steps: int | None = None) -> LanguageModel:
    """The model at a small size; a solver goes on until rounding ends it, since laws are of what it converges to."""
    model = copy.deepcopy(config(name)["model"])
    for mixer in (model[key] for key in model["pattern"]):
        if "solver" in mixer:
            mixer["solver"] |= {"tolerance": 0.0, "max_steps": solver_steps or mixer["solver"]["max_steps"]}
    return build_model(read_model(model), Size.read(config(name)["size"]), vocab_size=VOCAB_SIZE, backend="torch")


def stirred(name: str, dtype: torch.dtype = torch.float64, *, solver_steps: int | None = None) -> LanguageModel:
    """A model none of whose parameters is at a neutral value, such as a bias of zero, that could hide a mistake."""
    model = build(name, solver_steps=solver_steps).to(dtype)
    model.reset_parameters(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def draw_tokens(seed: int, length: int = LENGTH, batch_size: int = BATCH_SIZE) -> Tensor:
    return torch.randint(VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(seed))


@functools.cache
def kept(name: str, dtype: torch.dtype = torch.float64, solver_steps: int | None = None) -> LanguageModel:
    """The stirred model, made once a process: for laws that leave it as it is."""
    return stirred(name, dtype, solver_steps=solver_steps)


@functools.cache
@torch.no_grad()
def whole(name: str, dtype: torch.dtype = torch.float64, length: int = LENGTH) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Logits and state of the stirred model after the first `length` of the tokens of `draw_tokens(0)`."""
    return kept(name, dtype)(draw_tokens(0)[:, :length])


def assert_states_near(actual: list[dict], expected: list[dict]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_near(value, theirs[key], "float64")


@pytest.mark.parametrize(
    ("changed", "dtype"), [(1, torch.float64), (40, torch.float64), (LENGTH - 1, torch.float64), (40, torch.float32)]
)
@torch.no_grad()
def test_a_later_token_changes_nothing(name: str, changed: int, dtype: torch.dtype) -> None:
    model, tokens = kept(name, dtype), draw_tokens(0)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCAB_SIZE
    before, after = whole(name, dtype)[0], model(other)[0]
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed], after[:, changed]).all()


@torch.no_grad()
def test_an_output_reaches_as_far_back_as_declared(name: str) -> None:
    model, tokens = kept(name), draw_tokens(0)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB_SIZE
    changed = (whole(name)[0] != model(other)[0]).any(dim=(0, 2)).nonzero().max().item()
    assert changed == min(LENGTH - 1, LENGTH if model.reach is None else model.reach)


@pytest.mark.parametrize("cut", [1, 2, 33, 63])
@torch.no_grad()
def test_a_sequence_may_be_cut_anywhere(name: str, cut: int) -> None:
    model, tokens = kept(name), draw_tokens(0)
    expected, expected_state = whole(name)
    first, state = model(tokens[:, :cut])
    second, state = model(tokens[:, cut:], state)
    assert_near(torch.cat([first, second], dim=1), expected, "float64")
    assert_states_near(state, expected_state)


@torch.no_grad()
def test_steps_equal_forward_at_every_length(name: str) -> None:
    model, tokens = kept(name), draw_tokens(0)
    stepped, state = [], model.init_state(BATCH_SIZE)
    for length in range(1, LENGTH + 1):
        logits, state = model.step(tokens[:, length - 1], state)
        stepped.append(logits)
        if length in (1, 2, 63, 65):
            expected, expected_state = whole(name, length=length)
            assert_near(torch.stack(stepped, dim=1), expected, "float64")
            assert_states_near(state, expected_state)


# As far as a window of 4 or 16 tokens and a chunk of 64 need to come round: 29 tokens leave 3 places of a second window of 16.
@pytest.mark.parametrize(("prefilled", "steps"), [(1, 20), (2, 5), (29, 5), (63, 2)])
@torch.no_grad()
def test_steps_in_place_equal_forward(name: str, prefilled: int, steps: int) -> None:
    """The tensors given are those written, in their shapes; those of an RNN, which reserves nothing, hold the same state."""
    model, tokens = kept(name), draw_tokens(0)
    _, state = model(tokens[:, :prefilled])
    reserved = model.reserve([{key: value.clone() for key, value in block.items()} for block in state], LENGTH)
    given = [value for block in reserved for value in block.values()]
    shapes, places = [value.shape for value in given], [value.data_ptr() for value in given]
    for t in range(prefilled, prefilled + steps):
        assert_near(model.step_(tokens[:, t], reserved), whole(name)[0][:, t], "float64")
    now = [value for block in reserved for value in block.values()]
    assert [value.shape for value in now] == shapes and [value.data_ptr() for value in now] == places
    for ours, theirs in zip(reserved, whole(name, length=prefilled + steps)[1], strict=True):
        for key in ours.keys() & theirs.keys():
            assert_near(ours[key], theirs[key], "float64")


@torch.no_grad()
def test_float32_is_near_float64(name: str) -> None:
    assert_near(whole(name, torch.float32)[0].double(), whole(name)[0], "float32 model")


@torch.no_grad()
def test_autocast_keeps_the_state_wide(name: str) -> None:
    model, tokens = kept(name, torch.float32), draw_tokens(0)
    expected, _ = whole(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        first, state = model(tokens[:, :40])
        second, state = model(tokens[:, 40:], state)
    actual = torch.cat([first, second], dim=1).float()
    # In the norm: eight bits through a solve can turn a single logit around.
    assert (actual - expected).norm() < 0.1 * expected.norm()
    for block, block_state in zip(model.blocks, state, strict=True):
        # What grows by the token is kept and not added up: it may be as narrow as it was computed.
        if block.mixer.state_elements(1) == block.mixer.state_elements(2):
            assert {value.dtype for value in block_state.values()} <= {torch.float32, torch.float64, torch.int64}


@torch.no_grad()
def test_a_document_sees_nothing_of_the_one_before(name: str) -> None:
    model, first, second = kept(name), draw_tokens(0, 20), draw_tokens(1, 45)
    starts = torch.zeros(BATCH_SIZE, LENGTH, dtype=torch.bool)
    starts[:, 20] = True
    packed, state = model(torch.cat([first, second], dim=1), starts=starts)
    other, _ = model(torch.cat([draw_tokens(2, 20), second], dim=1), starts=starts)
    alone, _ = model(second)
    assert torch.equal(packed[:, 20:], other[:, 20:])
    assert_near(packed[:, 20:], alone, "float64")
    following = draw_tokens(3, 9)
    assert_near(model(following, state)[0], model(following, model(second)[1])[0], "float64")


@torch.no_grad()
def test_starts_are_a_matter_of_each_sequence(name: str) -> None:
    """Starts at other places in each row, the first token, the last and next to each other among them."""
    model, tokens = kept(name), draw_tokens(0)
    starts = torch.zeros(BATCH_SIZE, LENGTH, dtype=torch.bool)
    begins = [[0, 30, 31, 64], [1, 16, 32], []]
    for row, positions in enumerate(begins):
        starts[row, positions] = True
    _, state = model(draw_tokens(1, 10))
    packed, _ = model(tokens, state, starts=starts)
    for row, positions in enumerate(begins):
        row_state = [{key: value[row : row + 1] for key, value in block.items()} for block in state]
        for begin, end in zip([0, *positions], [*positions, LENGTH], strict=True):
            if begin < end:
                carried = None if begin in positions else row_state
                assert_near(packed[row : row + 1, begin:end], model(tokens[row : row + 1, begin:end], carried)[0], "float64")


@torch.no_grad()
def test_a_sequence_is_the_same_in_any_batch(name: str) -> None:
    model, tokens = kept(name), draw_tokens(0)
    together, _ = whole(name)
    for row in range(BATCH_SIZE):
        assert_near(model(tokens[row : row + 1])[0], together[row : row + 1], "float64")


@pytest.mark.parametrize("length", [1, 5, LENGTH])
@torch.no_grad()
def test_state_elements_are_those_held(name: str, length: int) -> None:
    _, state = whole(name, length=length)
    held = sum(value[0].numel() for block in state for value in block.values())
    assert held == kept(name).state_elements(length)


# In float32 they are the elements of the law above, at any length.
@pytest.mark.parametrize(
    ("length", "dtype"),
    [(1, torch.bfloat16), (5, torch.bfloat16), (LENGTH, torch.bfloat16), (LENGTH, torch.float32)],
)
@torch.no_grad()
def test_state_bytes_are_those_held(name: str, length: int, dtype: torch.dtype) -> None:
    """In the dtype in which they are held; of the whole number that counts tokens 4 bytes, however wide it is."""
    model = kept(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, state = model(draw_tokens(0, length))
    tensors = [value[0] for block in state for value in block.values()]
    counters = sum(4 * value.numel() for value in tensors if not value.is_floating_point())
    held = sum(value.numel() * value.element_size() for value in tensors if value.is_floating_point())
    assert model.state_bytes(length, dtype) == held + counters
    empty = [value[0].numel() for block in model.init_state(1) for value in block.values()]
    assert len(empty) == len(tensors) and model.state_elements(length) >= sum(empty)


def uncounted_flops_per_token(model: LanguageModel) -> float:
    """What the counter can't see: it counts matrix products, and the short convolutions are sums of shifted products.

    Nor does it see an inversion.
    """
    convolutions = sum(linear_flops_per_token(part) for part in model.modules() if isinstance(part, ShortConvolution))
    inverting = [mixer for _, mixer in mesa_layers(model) if mixer.settings.refresh is not None]
    return convolutions + sum(2.0 * mixer.num_heads * mixer.key_dim**3 / mixer.settings.refresh for mixer in inverting)


@torch.no_grad()
def test_flops_are_those_counted(name: str) -> None:
    """Counted for one token and for six, step by step; attention by plain products, as its kernel escapes the counter.

    A solver is stopped at a step that it can't have converged by: what is declared is its maximum.
    """
    if "preconditioned" in name:
        pytest.skip("on a single token the preconditioner is the inverse, so no step is taken")
    model, tokens = kept(name, torch.float32, 1), draw_tokens(0, 6, batch_size=1)
    state, counted = model.init_state(1), {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for length in range(1, 7):
            _, state = model.step(tokens[:, length - 1], state)
            counted[length] = counter.get_total_flops() / length + uncounted_flops_per_token(model)
    for length in (1, 6):
        assert counted[length] == pytest.approx(model.forward_flops_per_token(length)), length


def gradients(loss: Tensor, model: LanguageModel) -> dict[str, Tensor | None]:
    """The gradient of every parameter, None where the loss does not depend on it; the model keeps none of them."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


def test_gradients_reach_every_parameter(name: str) -> None:
    model, tokens = kept(name, torch.float32), draw_tokens(0)
    logits, _ = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    for parameter_name, gradient in gradients(loss, model).items():
        assert gradient is not None, parameter_name
        assert gradient.isfinite().all(), parameter_name
        assert gradient.count_nonzero() > 0, parameter_name


@pytest.mark.slow
def test_a_compiled_block_computes_what_it_does_uncompiled(name: str) -> None:
    """As `compute.compile` compiles it, by all of torch.compile but its last stage, which makes code of what is traced here."""
    found = []
    for compiled in (False, True):
        model, tokens = stirred(name, torch.float64, solver_steps=5), draw_tokens(0)
        if compiled:
            torch._dynamo.reset()
            for block in model.blocks:
                block.compile(backend="aot_eager_decomp_partition")
        logits = model(tokens)[0]
        into = {key: gradient for key, gradient in gradients(logits.square().mean(), model).items() if gradient is not None}
        found.append({"logits": logits.detach()} | into)
    assert found[0].keys() == found[1].keys()
    for key, expected in found[0].items():
        assert_near(found[1][key], expected, "float64")


def test_gradients_stay_finite_across_starts(name: str) -> None:
    model, tokens = kept(name, torch.float32), draw_tokens(0)
    starts = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    loss = model(tokens, starts=starts)[0].square().mean()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, model).values())


def test_the_seed_alone_decides_the_weights(name: str) -> None:
    """Whatever the memory held, the global generator was at, or the device the model was built on."""
    torch.manual_seed(0)
    first = build(name)
    first.reset_parameters(seed=3)
    torch.manual_seed(1)
    with torch.device("meta"):
        second = build(name)
    assert sum(p.numel() for p in second.parameters()) == sum(p.numel() for p in first.parameters())
    second.to_empty(device="cpu")
    for tensor in second.state_dict().values():
        tensor.fill_(float("nan"))
    second.reset_parameters(seed=3)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    second.reset_parameters(seed=4)
    assert not torch.equal(first.blocks[0].mixer.output_projection.weight, second.blocks[0].mixer.output_projection.weight)


@torch.no_grad()
def test_saved_and_loaded_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model, tokens = kept(name, torch.float32), draw_tokens(0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        loaded = build(name)
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    assert torch.equal(loaded(tokens)[0], whole(name, torch.float32)[0])


@pytest.mark.gpu
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    model, tokens = stirred(name), draw_tokens(0)
    there = copy.deepcopy(model).cuda()
    (logits, state), (logits_there, state_there) = model(tokens), there(tokens.cuda())
    assert_near(logits_there.cpu(), logits, "float64")
    assert_states_near([{key: value.cpu() for key, value in block.items()} for block in state_there], state)
    logits.square().mean().backward()
    logits_there.square().mean().backward()
    for ours, theirs in zip(model.parameters(), there.parameters(), strict=True):
        assert_near(theirs.grad.cpu(), ours.grad, "float64")


def test_every_matrix_is_decayed_or_named(name: str) -> None:
    model = build(name)
    decayed = {id(module.weight) for module in linear_maps(model)}
    undecayed = [each for each, x in model.named_parameters() if x.ndim > 1 and id(x) not in decayed]
    assert decayed and not [each for each in undecayed if not each.endswith(UNDECAYED)]
