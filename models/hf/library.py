"""What transformers is asked for: a model of a folder's config.json, and the same with its weights.

This file alone imports transformers, which takes seconds: where a model is built. Code and kernels of others are never run: what
a config.json could choose of them is chosen here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from conf.settings import RequestError, near
from models.hf import folder
from models.installed import version

CAUSAL = "the causal language models of transformers"


@functools.cache
def library() -> Any:
    """transformers, quiet. Raises RequestError where it is not installed."""
    if version("transformers") is None:
        raise RequestError("transformers is missing, which models of Hugging Face need: pip install 'linear-rnn-suite[hf]'")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def refused(place: Path, fault: str, permitted: str) -> RequestError:
    return RequestError(f"model.path={place} {fault}, permitted are {permitted}")


def built(place: Path, dtype: str) -> Any:
    """The model of a folder without its weights, on the device that is chosen outside. Raises RequestError for what is none."""
    kind = folder.check(place).get("model_type")
    transformers = library()
    if kind not in transformers.CONFIG_MAPPING:
        nearest = near(kind, transformers.CONFIG_MAPPING.keys())
        raise refused(place, f"has model_type={kind!r}", f"{CAUSAL} {transformers.__version__}{nearest}")
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        made = transformers.AutoModelForCausalLM.from_config(config, **_chosen(place, config, dtype))
    # What stands in a config.json may be of any kind, and each architecture stumbles over it in its own way.
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, StrictDataclassError) as error:
        if isinstance(error, RequestError):
            raise
        raise refused(place, f"can't be built ({_first_line(error)})", CAUSAL) from error
    if config.is_encoder_decoder:
        raise refused(place, "has an encoder", "models with a decoder alone")
    return made


def loaded(place: Path, config: Any, dtype: str) -> Any:
    """The model with its weights, on the CPU. Raises RequestError where some are missing: transformers would draw them."""
    options = {**_chosen(place, config, dtype), "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        with torch.device("cpu"):
            made, told = library().AutoModelForCausalLM.from_pretrained(place, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise refused(place, f"can't be loaded ({_first_line(error)})", "whole checkpoints") from error
    lacking = sorted({*map(str, told["missing_keys"]), *map(str, told["mismatched_keys"])})
    if lacking:
        raise refused(place, f"lacks {len(lacking)} weights, {lacking[0]} among them", "whole checkpoints")
    return made


def _chosen(place: Path, config: Any, dtype: str) -> dict[str, Any]:
    kind = library().AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None:
        raise refused(place, f"is a {config.model_type}", CAUSAL)
    attention = "sdpa" if kind._supports_sdpa else "eager"
    chosen = {"dtype": getattr(torch, dtype), "attn_implementation": attention, "trust_remote_code": False}
    # The grouped form looks at the numbers of its inputs, of which the meta device has none.
    experts = "batched_mm" if torch.empty(0).device.type == "meta" else "grouped_mm"
    return {**chosen, "experts_implementation": experts} if kind._can_set_experts_implementation() else chosen


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
