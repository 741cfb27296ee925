"""Which values a request may have, for every number that is not a model's or a task's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from models.ops.cross_entropy import MAX_SOFT_CAP
from suite.devices import select_device
from suite.request import RequestError

WHOLE_FROM = {
    "size.d_model": 1,
    "size.num_blocks": 1,
    "size.mlp_dim": 1,
    "task.seq_len": 1,
    "train.steps": 0,
    "train.batch_size": 1,
    "train.warmup_steps": 0,
    "seed": 0,
    "compute.threads": 1,
    "eval.batch_size": 1,
    "eval.study_tokens": 1,
}
# Beside the numbers, these may be left open.
OPEN_WHOLE_FROM = {
    "compute.jobs": ("auto", 1),
    "compute.prefetch": ("auto", 0),
    "eval.limit": (None, 1),
    "eval.max_length": (None, 2),
    "eval.num_fewshot": (None, 0),
}
ABOVE_ZERO = ("train.lr", "train.eps", "train.gradient_clip", "size.norm_eps", "size.logit_soft_cap")
FROM_ZERO = (
    "train.weight_decay",
    "train.final_lr_fraction",
    "match.tolerance",
    "compute.log_seconds",
    "compute.checkpoint_seconds",
)
# Real numbers whose ranges the task and the mixers check themselves; those that there are become floats.
REAL = ("task.noise", "task.drift")
REAL_OF_A_MIXER = (
    "forget_gate_init",
    "input_gate_init",
    "forget_cap",
    "regularizer_floor",
    "regularizer_init",
    "regularizer_ratio",
    "alpha_init",
    "solver.tolerance",
)
LISTS_OF_WHOLE_FROM = {
    "eval.length_factors": 1,
    "eval.run_lengths": 0,
    "eval.timed_lengths": 1,
    "eval.prompt_lengths": 1,
    "eval.decode_batch_sizes": 1,
}
LISTS_OF_SETTINGS = ("eval.solvers", "eval.decoders")
NAMES = {
    "train.autocast": ("none", "bfloat16"),
    "compute.device": ("auto", "cpu", "cuda"),
    "compute.compile": (False, True),
    "compute.cuda_graph": ("auto", False, True),
    "compute.activation_checkpointing": ("none", "blocks"),
}
MAX_SEED = 2**32 - 1


def check_values(config: DictConfig) -> None:
    """Raises RequestError for a value outside its range, naming it and what is permitted; makes floats of real numbers."""
    for key, low in WHOLE_FROM.items():
        _check_whole(config, key, low)
    for key, (left_open, low) in OPEN_WHOLE_FROM.items():
        if OmegaConf.select(config, key) != left_open:
            _check_whole(config, key, low)
    for key in ABOVE_ZERO:
        _check_number(config, key, "above 0", lambda value: value > 0)
    for key in FROM_ZERO:
        _check_number(config, key, "from 0", lambda value: value >= 0)
    for key, low in LISTS_OF_WHOLE_FROM.items():
        _check_list(config, key, f"whole numbers from {low}", lambda value, low=low: is_whole(value, low))
    for key in LISTS_OF_SETTINGS:
        _check_list(config, key, "settings {key: value}", OmegaConf.is_dict)
    for key, names in NAMES.items():
        value = OmegaConf.select(config, key)
        # By type too: 1 equals true, and is none.
        if not any(type(value) is type(name) and value == name for name in names):
            permitted = ", ".join(str(name).lower() for name in names)
            raise RequestError(f"{key}={value} is unknown, permitted are {permitted}")
    if config.seed > MAX_SEED:
        raise RequestError(f"seed={config.seed} is out of range, permitted are whole numbers from 0 to {MAX_SEED}")
    if config.size.logit_soft_cap > MAX_SOFT_CAP:
        cap = config.size.logit_soft_cap
        raise RequestError(f"size.logit_soft_cap={cap} is out of range, permitted are numbers up to {MAX_SOFT_CAP:g}")
    if config.train.warmup_steps > config.train.steps:
        raise RequestError(f"train.warmup_steps={config.train.warmup_steps} is out of range, permitted are 0 to train.steps")
    betas = config.train.betas
    if not (OmegaConf.is_list(betas) and len(betas) == 2 and all(isinstance(b, float) and 0 <= b < 1 for b in betas)):
        raise RequestError(f"train.betas={betas} is out of range, permitted are two numbers from 0 to below 1")
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("compute.device=cuda, but there is no CUDA device here; permitted are auto, cpu")
    for key in (*REAL, *(f"model.{name}.{key}" for name in config.model.pattern or () for key in REAL_OF_A_MIXER)):
        _make_float(config, key)
    if not config.model.pattern:
        raise RequestError("model.pattern is empty, permitted is a list of one mixer or more")
    check_graph(config)


def check_graph(config: Mapping[str, Any]) -> None:
    """Raises RequestError for a CUDA graph of a training step that is another one every time, or of a CPU's."""
    if config["compute"]["cuda_graph"] is not True:
        return
    model = config["model"]
    if any(model[name].get("random_steps") is not None for name in model["pattern"]):
        raise RequestError("compute.cuda_graph=true, permitted with random_steps are auto and false: every step is another one")
    if select_device(config["compute"]["device"]).type != "cuda":
        raise RequestError("compute.cuda_graph=true, permitted on a CPU are auto and false")


def _check_whole(config: DictConfig, key: str, low: int) -> None:
    value = OmegaConf.select(config, key)
    if not is_whole(value, low):
        raise RequestError(f"{key}={value} is out of range, permitted are whole numbers from {low}")


def is_whole(value: object, low: int) -> bool:
    """Whether value is a whole number of at least `low`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_list(config: DictConfig, key: str, permitted: str, is_permitted: Callable[[Any], bool]) -> None:
    value = OmegaConf.select(config, key)
    if not (OmegaConf.is_list(value) and all(is_permitted(entry) for entry in value)):
        raise RequestError(f"{key}={value} is out of range, permitted is a list of {permitted}")


def _check_number(config: DictConfig, key: str, permitted: str, is_permitted: Callable[[float], bool]) -> None:
    value = OmegaConf.select(config, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and is_permitted(value)):
        raise RequestError(f"{key}={value} is out of range, permitted are numbers {permitted}")
    _make_float(config, key)


def _make_float(config: DictConfig, key: str) -> None:
    """1 and 1.0 are one number, and must give a run one name."""
    value = OmegaConf.select(config, key)
    if isinstance(value, int) and not isinstance(value, bool):
        OmegaConf.update(config, key, float(value))
