"""Text from a trained model, token by token with the state it carries."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.backbone.blocks import Block
from models.backbone.joint_products import join_products
from models.backbone.language_model import LanguageModel
from models.backends.flex_attention import allow_many_shapes
from models.components import linear_maps

COMPILED_AS: dict[str, str | int | bool | Callable[..., Any]] = {
    "coordinate_descent_tuning": True,
    "combo_kernels": True,
    "triton.enable_pdl": True,
}
"""Launches are tuned, and with that the products of a single sequence become sums on a GPU, which read weights at full speed.
Kernels that do not wait for each other are launched as one, and the others before what they wait for is done: programmatic
dependent launch, which waits on the GPU."""


@torch.no_grad()
def generate(
    model: LanguageModel, prompt: Tensor, *, num_tokens: int, temperature: float, top_k: int | None, seed: int
) -> Tensor:
    """The tokens that follow each prompt [B, num_tokens]: the prompts are read at once, then every token is one step.

    On a CUDA device the step and the draw are captured once as a CUDA graph and replayed, where the model is capturable. A
    solver with other steps is `with mesa_replaced(model, {"solver": {"max_steps": 5}}):` around the call; fewer bytes and
    fewer kernels a step are `narrow(model, torch.bfloat16)` and `compile_step(model)` before it, and
    `compile_prompts(model)` compiles how prompts are read.

    model: in evaluation mode. prompt: ids [B, T], T >= 1, all prompts of one length. temperature: of the softmax that is
    drawn from, >= 0; 0 takes the most likely token. top_k: draws among so many most likely tokens, None for all.
    seed: the same seed gives the same tokens on the same device. Raises ValueError for values outside these ranges.
    """
    _check(prompt, num_tokens=num_tokens, temperature=temperature, top_k=top_k)
    generator = torch.Generator(prompt.device).manual_seed(seed)
    features, state = model.features(prompt)
    state = model.reserve(state, num_tokens)
    token = draw(model.head(features[:, -1]), temperature=temperature, top_k=top_k, generator=generator)

    def advance() -> None:
        logits = model.step_(token, state)
        token.copy_(draw(logits, temperature=temperature, top_k=top_k, generator=generator))

    generated = [token.clone()]
    if prompt.is_cuda and model.capturable and num_tokens > 1:
        advance = captured(advance, [token, *(x for block in state for x in block.values())], generator)
    for _ in range(num_tokens - 1):
        advance()
        generated.append(token.clone())
    return torch.stack(generated, dim=1)


def draw(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """A token for each row of logits [B, V] -> [B], as `generate` says."""
    if temperature == 0.0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    # The largest of p_i / e_i, e_i exponential, is i with probability p_i: unlike `multinomial`, no wait for the device.
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_(generator=generator)).argmax(-1)


def at_quantiles(logits: Tensor, quantile: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """A token for each row of logits [B, V] -> [B], by a number of its own: the one at which the probabilities, largest first,
    add up to more than that share of what may be drawn. Unlike with `draw`, a row's token depends on no other row.

    All other arguments: [B] float64. quantile: from 0 to below 1. temperature: above 0. top_k: among so many likeliest tokens.
    top_p: among the fewest likeliest whose probabilities reach it.
    """
    likely, order = (logits.double() / temperature.unsqueeze(1)).softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(likely.shape[-1], device=likely.device)
    permitted = (rank < top_k.unsqueeze(1)) & (likely.cumsum(-1) - likely < top_p.unsqueeze(1))
    reached = (likely * permitted).cumsum(-1)
    # Rounding may leave the number beyond the last of them.
    place = (reached <= (quantile * reached[:, -1]).unsqueeze(1)).sum(-1).minimum(permitted.sum(-1) - 1)
    return order.gather(1, place.unsqueeze(1)).squeeze(1)


class Recorded(NamedTuple):
    """A call as a CUDA graph; the call is kept with it, since the graph reads and writes the memory of what it names."""

    graph: torch.cuda.CUDAGraph
    advance: Callable[[], None]

    def __call__(self) -> None:
        self.graph.replay()


def captured(advance: Callable[[], None], changed: Sequence[Tensor], generator: torch.Generator) -> Recorded:
    """`advance` as a CUDA graph, which reads and writes the same memory whenever it is called.

    changed: the tensors that a call changes; they and the generator are left as they were.
    """
    with torch.cuda.device(changed[0].device):
        before, drawn = [x.clone() for x in changed], generator.get_state()
        # What is compiled, tuned or allocated at a first call can't be while a graph is recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            advance()
        torch.cuda.current_stream().wait_stream(side)
        for x, value in zip(changed, before, strict=True):
            x.copy_(value)
        generator.set_state(drawn)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            advance()
    return Recorded(graph, advance)


def narrow(model: Backbone, dtype: torch.dtype) -> None:
    """Keeps the weights of linear maps and of the embedding in `dtype`, in place, since their bytes are what a token costs.

    What acts on single numbers stays as it is, norms and the parameters of decays among it. So do states.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in (*linear_maps(model), *embeddings):
        module.to(dtype)


def compile_step(model: Backbone) -> None:
    """Lets torch.compile fuse the step of every block and the head, in place: one compilation serves all blocks of a kind.

    It takes a minute or two at the first step of every batch size and, for attention, of every size of its cache, so it
    pays for many tokens. A block that is not capturable stays as it is. Weights that are read together lie together from
    now on: they may be loaded anew, but neither moved nor narrowed.
    """
    allow_many_shapes()
    forms = Block.step_, Backbone.answer
    step, answer = (torch.compile(f, fullgraph=True, dynamic=False, options=COMPILED_AS) for f in forms)
    _replace(model, "answer", answer)
    for block in model.blocks:
        if isinstance(block, Block) and block.mixer.capturable:
            join_products(block, partial(_step_once, block))
            _replace(block, "step_", step)


def compile_prompts(model: Backbone) -> None:
    """Lets torch.compile fuse what every block does with a prompt, in place, as `compile_step` does for a token.

    A compilation is for one number of prompts, one length and what they continue, and serves all blocks of a kind. It takes up to
    a minute, at the first of them, so it pays for many prompts of one length.
    """
    allow_many_shapes()
    read = torch.compile(Block.forward, dynamic=False)
    for block in model.blocks:
        if isinstance(block, Block):
            _replace(block, "forward", read)


def _replace(module: nn.Module, method: str, form: Callable[..., Any]) -> None:
    setattr(module, method, types.MethodType(form, module))


def _step_once(block: Block) -> None:
    mixer = block.mixer
    weight = mixer.output_projection.weight
    block.step_(weight.new_zeros(1, weight.shape[0]), mixer.reserve(mixer.init_state(1), 1))


def _check(prompt: Tensor, *, num_tokens: int, temperature: float, top_k: int | None) -> None:
    if not isinstance(prompt, Tensor) or prompt.ndim != 2 or 0 in prompt.shape:
        shape = list(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise ValueError(f"prompt is {shape}, permitted is a tensor of ids [B, T], prompts of one length from 1")
    if num_tokens < 1:
        raise ValueError(f"num_tokens is {num_tokens}, permitted are whole numbers from 1")
    if not temperature >= 0.0:
        raise ValueError(f"temperature is {temperature}, permitted are numbers from 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, permitted are null and whole numbers from 1")
