"""Which values a request may have: the type of every key of the configuration.

Those of a mixer's and a task's own settings are the annotations of their constructors, which check the ranges themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf

from models.backends import BACKENDS
from models.build import mixer_settings
from models.ops.cross_entropy import MAX_SOFT_CAP
from models.ops.solvers import SolverSettings
from suite.machine.devices import select_device
from suite.request.match import QUANTITIES
from suite.request.overrides import PATHS, RequestError, options
from suite.values import Limit, above_zero, between, fit, settle
from tasks.build import task_settings

NAME = Annotated[str, Limit("of letters, digits, ., _ and -", lambda name: re.fullmatch(r"\w[\w.-]*", name) is not None)]
BELOW_ONE = Annotated[float, Limit("from 0 to below 1", lambda value: 0 <= value < 1)]
COUNT = between(int, 1, 2**31 - 1)
# Settings laid over those that a model's solver has.
SOLVER = get_type_hints(SolverSettings)
DATA = {
    "name": NAME,
    "path": Path | Sequence[Path] | None,
    "tokenizer": Path | None,
    "cache": Path,
    "validation_fraction": BELOW_ONE,
}
SIZE = {
    "name": NAME,
    **dict.fromkeys(("d_model", "num_heads", "head_dim"), between(int, 1, 2**20)),
    "num_blocks": between(int, 1, 2**10),
    "mlp_dim": between(int, 1, 2**24),
    "norm_eps": above_zero(1),
    "logit_soft_cap": above_zero(MAX_SOFT_CAP),
}
TRAIN = {
    **dict.fromkeys(("steps", "warmup_steps"), between(int, 0, 2**31 - 1)),
    "batch_size": between(int, 1, 2**20),
    "lr": above_zero(1e38),
    "weight_decay": between(float, 0, 1e6),
    "betas": Annotated[Sequence[BELOW_ONE], Limit("of two", lambda betas: len(betas) == 2)],
    "eps": above_zero(1),
    "final_lr_fraction": between(float, 0, 1),
    "gradient_clip": above_zero(1e38),
    "autocast": Literal["none", "bfloat16"],
}
EVAL = {
    "stages": Sequence[str],
    "tasks": Sequence[str] | str,
    "include_path": Path | None,
    "num_fewshot": between(int, 0, 10**6) | None,
    "fewshot_seed": between(int, 0, 2**32 - 1),
    "limit": COUNT | None,
    "batch_size": between(int, 1, 2**20),
    "max_length": between(int, 2, 2**31 - 1) | None,
    "study_tokens": COUNT,
    "solvers": Sequence[TypedDict("Solver", SOLVER, total=False)],
    "decoders": Sequence[TypedDict("Decoder", {**SOLVER, "decode": str, "refresh": COUNT | None}, total=False)],
    **dict.fromkeys(("length_factors", "timed_lengths", "prompt_lengths", "decode_batch_sizes"), Sequence[COUNT]),
    "run_lengths": Sequence[between(int, 0, 2**31 - 1)],
}
COMPUTE = {
    "device": Literal["auto", "cpu", "cuda"],
    "jobs": Literal["auto"] | between(int, 1, 4096),
    "prefetch": Literal["auto"] | between(int, 0, 4096),
    "threads": between(int, 1, 4096),
    **dict.fromkeys(("log_seconds", "checkpoint_seconds"), between(float, 0, 1e9)),
    "compile": bool,
    "cuda_graph": Literal["auto"] | bool,
    "wait": bool,
    "activation_checkpointing": Literal["none", "blocks"],
}
KINDS: dict[str, Any] = {
    "seed": between(int, 0, 2**32 - 1),
    "backend": Literal["auto", *BACKENDS],
    "experiment": {"name": NAME | None, "grid": Any},
    "paths": PATHS,
    "size": SIZE,
    "data": DATA,
    "train": TRAIN,
    "eval": EVAL,
    "compute": COMPUTE,
}
TYPED = Annotated[Mapping[str, Any], Limit("with a type", lambda settings: "type" in settings)]
LABELS = {"name": NAME, "version": COUNT}
MODEL = {
    **LABELS,
    "label": str,
    "paper": str,
    "pattern": Annotated[Sequence[str], Limit("of one mixer or more", bool)],
    "lr": Mapping[str, Mapping[str, above_zero(1e38)]],
}


def kinds(config: Mapping[str, Any]) -> dict[str, Any]:
    """The type of every key of a resolved configuration. Raises RequestError for a mixer or task that there is not."""
    model, task = (fit(key, config[key], Mapping[str, Any]) for key in ("model", "task"))
    mixers = {key: _constructed(f"model.{key}", mixer, mixer_settings) for key, mixer in model.items() if key not in MODEL}
    # A model's file may do without its paper, or without learning rates.
    labels = {key: kind for key, kind in MODEL.items() if key in model}
    own = _constructed("task", task, task_settings)
    own = {**own, **LABELS, **({"data": DATA} if "data" in own else {})}
    match = {"by": Literal["none", *QUANTITIES], "reference": Literal[*options("model")], "tolerance": between(float, 0, 1)}
    return {**KINDS, "match": match, "model": {**labels, **mixers}, "task": own}


def _constructed(key: str, config: Any, settings: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """The types of what a class takes that the configuration names as its type."""
    type_name = fit(f"{key}.type", fit(key, config, TYPED)["type"], str)
    try:
        return {"type": str, **settings(type_name)}
    except ValueError as error:
        raise RequestError(f"{key}.type: {error}") from error


def check_values(config: DictConfig) -> None:
    """Raises RequestError for a value of another type or range, naming it and what is permitted; makes 8 of 8.0, or 8.0 of 8."""
    settle(config, kinds(OmegaConf.to_container(config, resolve=True)))
    if config.train.warmup_steps > config.train.steps:
        raise RequestError(f"train.warmup_steps={config.train.warmup_steps} is out of range, permitted are 0 to train.steps")
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("compute.device=cuda, but there is no CUDA device here; permitted are auto, cpu")
    for name in config.model.pattern:
        if name in MODEL or name not in config.model:
            mixers = ", ".join(key for key in config.model if key not in MODEL)
            raise RequestError(f"model.pattern={config.model.pattern} has {name!r}, permitted are {mixers}")
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
