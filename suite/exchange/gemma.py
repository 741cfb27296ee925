"""Models of attention on this suite's backbone as VaultGemma of transformers, which has the same parts, and back.

Both multiply the tied embedding's rows by sqrt(d_model), put RMSNorm before attention, MLP and head and nowhere else, turn the
pairs (x_i, x_{i + K/2}) of queries and keys, and soft-cap the logits. VaultGemma's norms multiply by 1 + weight, so a weight is
written as weight - 1, which is exact from 0.5 to 2 and rounded beyond.
No other architecture of transformers or of flash-linear-attention has all of these: without the soft cap on the logits a model
gives other probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from conf.settings import Refusal, RequestError, text
from models.attention import Attention
from models.ops.cross_entropy import MAX_SOFT_CAP
from suite.request.schema import Config

KIND, WHERE = "vaultgemma", "to=hf"
FIXED = {
    "hidden_activation": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attn_logit_softcapping": None,
}
"""What VaultGemma leaves open and this suite's backbone has so."""
NORMS = {"mixer_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
MATRICES = {
    "mixer.output_projection": "self_attn.o_proj",
    "mlp.gate_projection": "mlp.gate_proj",
    "mlp.up_projection": "mlp.up_proj",
    "mlp.output_projection": "mlp.down_proj",
}
PROJECTIONS = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"


def config_of(config: Config, *, vocab_size: int, bos: int | None) -> dict[str, Any]:
    """VaultGemma's config.json for a run's model. Raises RequestError for a setting that has no counterpart there."""
    size, mixer = config.size, _attention(config)
    if not size.mlp_dim:
        raise Refusal("size.mlp_dim", 0, f"whole numbers from 1 with {WHERE}")
    if mixer.rope_base is None:
        raise Refusal(f"model.{config.model.pattern[0]}.rope_base", None, f"numbers above 0 with {WHERE}")
    if size.d_model % mixer.num_heads:
        raise Refusal("size.num_heads", mixer.num_heads, f"divisors of size.d_model={size.d_model} with {WHERE}")
    kind = "full_attention" if mixer.window is None else "sliding_attention"
    return {
        "architectures": ["VaultGemmaForCausalLM"],
        "model_type": KIND,
        **FIXED,
        "vocab_size": vocab_size,
        "hidden_size": size.d_model,
        "intermediate_size": size.mlp_dim,
        "num_hidden_layers": size.num_blocks,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_heads,
        "head_dim": mixer.key_dim,
        "query_pre_attn_scalar": mixer.key_dim,
        "rms_norm_eps": size.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_base},
        # Where no layer has a window transformers asks for its width all the same.
        "sliding_window": mixer.window or config.task.seq_len,
        "layer_types": [kind] * size.num_blocks,
        "final_logit_softcapping": size.logit_soft_cap,
        "max_position_embeddings": config.task.seq_len,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "pad_token_id": None,
        "dtype": "float32",
    }


def _attention(config: Config) -> Attention.Settings:
    """The settings of the one kind of mixer that all blocks have."""
    for name, mixer in config.model.by_name():
        if not isinstance(mixer, Attention.Settings) or type(mixer) is not Attention.Settings:
            raise Refusal(f"model.{name}.type", mixer.type, f"{Attention.name} with {WHERE}", fault="has no counterpart there")
    first, *others = dict.fromkeys(config.model.mixers)
    if others or not isinstance(first, Attention.Settings):
        raise Refusal("model.pattern", list(config.model.pattern), f"lists of one kind of mixer with {WHERE}")
    return first


def to_gemma(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This suite's parameters under VaultGemma's names."""
    made = {"model.embed_tokens.weight": tensors["embedding.weight"], "model.norm.weight": tensors["final_norm.weight"] - 1}
    for i in range(_blocks(tensors)):
        own, other = f"blocks.{i}.", f"model.layers.{i}."
        made |= {f"{other}{theirs}.weight": tensors[f"{own}{ours}.weight"] - 1 for ours, theirs in NORMS.items()}
        made |= {f"{other}{theirs}.weight": tensors[f"{own}{ours}.weight"] for ours, theirs in MATRICES.items()}
        parts = tensors[f"{own}mixer.query_key_value_projection.weight"].chunk(3)
        # Parts of one tensor would be written as shared memory.
        made |= {f"{other}{name}.weight": part.clone() for name, part in zip(PROJECTIONS, parts, strict=True)}
    return made


def from_gemma(tensors: Mapping[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """The same the other way, in float32. Raises RequestError where a tensor is missing or is one too many."""
    held = {name: tensor.float() for name, tensor in tensors.items()}
    try:
        made = {"embedding.weight": held.pop("model.embed_tokens.weight"), "final_norm.weight": held.pop("model.norm.weight") + 1}
        for i in range(num_blocks):
            own, other = f"blocks.{i}.", f"model.layers.{i}."
            made |= {f"{own}{ours}.weight": held.pop(f"{other}{theirs}.weight") + 1 for ours, theirs in NORMS.items()}
            made |= {f"{own}{ours}.weight": held.pop(f"{other}{theirs}.weight") for ours, theirs in MATRICES.items()}
            joined = torch.cat([held.pop(f"{other}{name}.weight") for name in PROJECTIONS])
            made[f"{own}mixer.query_key_value_projection.weight"] = joined
    except KeyError as error:
        raise RequestError(f"model.safetensors has no {error.args[0]}, permitted are whole models") from error
    if held.keys() - {"lm_head.weight"}:
        raise RequestError(f"model.safetensors has {min(held)}, which the model of this suite has not")
    return made


def _blocks(tensors: Mapping[str, Tensor]) -> int:
    return sum(name.endswith(".mixer_norm.weight") for name in tensors)


def choices_of(config: Mapping[str, Any]) -> list[str]:
    """What is typed for the model of a VaultGemma's config.json. Raises RequestError for one that is another function."""
    if config.get("model_type") != KIND:
        said = text(config.get("model_type"))
        raise RequestError(
            f"config.json: model_type={said} is no architecture of this suite, permitted is {KIND}; model=hf evaluates any"
        )
    heads, key_dim = config.get("num_attention_heads"), config.get("head_dim")
    rope = config.get("rope_parameters")
    needed = {**FIXED, "num_key_value_heads": heads, "query_pre_attn_scalar": key_dim}
    for key, value in needed.items():
        # transformers' own defaults are others, so what is not said is not equal.
        if key not in config or config[key] != value:
            raise RequestError(f"config.json: {key}={text(config.get(key))} is not this suite's, permitted is {text(value)}")
    kinds = set(config.get("layer_types") or ())
    if len(kinds) != 1 or not kinds <= {"full_attention", "sliding_attention"}:
        raise RequestError(
            f"config.json: layer_types={text(sorted(kinds))} differ, permitted is one of full_attention, sliding_attention"
        )
    if not isinstance(rope, dict) or rope.get("rope_type") != "default" or len(rope) != 2:
        raise RequestError(f"config.json: rope_parameters={text(rope)}, permitted are a rope_theta with rope_type=default")
    cap = config.get("final_logit_softcapping")
    if not isinstance(cap, int | float) or not 0 < cap <= MAX_SOFT_CAP:
        raise RequestError(
            f"config.json: final_logit_softcapping={text(cap)}, permitted are numbers above 0, up to {MAX_SOFT_CAP:g}"
        )
    sizes = {
        "d_model": "hidden_size",
        "num_blocks": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "head_dim": "head_dim",
    }
    sizes |= {"mlp_dim": "intermediate_size", "norm_eps": "rms_norm_eps", "logit_soft_cap": "final_logit_softcapping"}
    typed = [f"size.{ours}={text(config.get(theirs))}" for ours, theirs in sizes.items()]
    window = config.get("sliding_window") if kinds == {"sliding_attention"} else None
    chosen = ["model=transformer"] if window is None else ["model=swa", f"model.mixer.window={text(window)}"]
    return [*chosen, f"model.mixer.rope_base={text(rope.get('rope_theta'))}", "size.name=own", *typed]
