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
from suite.devices import select_device
from suite.match import QUANTITIES
from suite.request import PATHS, RequestError, options
from suite.values import Limit, above_zero, fit, real, settle, whole
from tasks.build import task_settings

NAME = Annotated[str, Limit("of letters, digits, ., _ and -", lambda name: re.fullmatch(r"\w[\w.-]*", name) is not None)]
BELOW_ONE = Annotated[float, Limit("from 0 to below 1", lambda value: 0 <= value < 1)]
COUNT = whole(1, 2**31 - 1)
# Settings laid over those that a model's solver has.
SOLVER = get_type_hints(SolverSettings)
DATA = TypedDict(
    "DATA",
    {"name": NAME, "path": Path | Sequence[Path] | None, "tokenizer": Path | None, "validation_fraction": BELOW_ONE, "cache": Path},
)
KINDS: dict[str, Any] = {
    "experiment": {"name": NAME | None, "grid": Any},
    "seed": whole(0, 2**32 - 1),
    "backend": Literal["auto", *BACKENDS],
    "match": {"by": Literal["none", *QUANTITIES], "reference": str, "tolerance": real(0, 1)},
    "paths": PATHS,
    "size": {
        "name": NAME,
        "d_model": whole(1, 2**20),
        "num_blocks": whole(1, 2**10),
        "num_heads": whole(1, 2**16),
        "head_dim": whole(1, 2**16),
        "mlp_dim": whole(1, 2**24),
        "norm_eps": above_zero(1),
        "logit_soft_cap": above_zero(MAX_SOFT_CAP),
    },
    "data": DATA,
    "train": {
        "steps": whole(0, 2**31 - 1),
        "batch_size": whole(1, 2**20),
        "warmup_steps": whole(0, 2**31 - 1),
        "lr": above_zero(1e6),
        "weight_decay": real(0, 1e6),
        "betas": Annotated[Sequence[BELOW_ONE], Limit("of two", lambda betas: len(betas) == 2)],
        "eps": above_zero(1),
        "final_lr_fraction": real(0, 1),
        "gradient_clip": above_zero(1e38),
        "autocast": Literal["none", "bfloat16"],
    },
    "eval": {
        "stages": Sequence[str],
        "tasks": Sequence[str] | str,
        "include_path": Path | None,
        "num_fewshot": whole(0, 10**6) | None,
        "limit": COUNT | None,
        "fewshot_seed": whole(0, 2**32 - 1),
        "batch_size": whole(1, 2**20),
        "max_length": whole(2, 2**31 - 1) | None,
        "study_tokens": COUNT,
        "solvers": Sequence[SOLVER],
        "decoders": Sequence[{**SOLVER, "decode": str, "refresh": COUNT | None}],
        "length_factors": Sequence[COUNT],
        "run_lengths": Sequence[whole(0, 2**31 - 1)],
        "timed_lengths": Sequence[COUNT],
        "prompt_lengths": Sequence[COUNT],
        "decode_batch_sizes": Sequence[COUNT],
    },
    "compute": {
        "device": Literal["auto", "cpu", "cuda"],
        "jobs": Literal["auto"] | whole(1, 4096),
        "threads": whole(1, 4096),
        "log_seconds": real(0, 1e9),
        "checkpoint_seconds": real(0, 1e9),
        "prefetch": Literal["auto"] | whole(0, 4096),
        "compile": bool,
        "cuda_graph": Literal["auto"] | bool,
        "activation_checkpointing": Literal["none", "blocks"],
        "wait": bool,
    },
}
LABELS = {"name": NAME, "version": COUNT}
MODEL = {
    **LABELS,
    "label": str,
    "paper": str,
    "pattern": Annotated[Sequence[str], Limit("of one mixer or more", bool)],
    "lr": Mapping[str, Mapping[str, above_zero(1e6)]],
}


def kinds(config: Mapping[str, Any]) -> dict[str, Any]:
    """The type of every key of a resolved configuration. Raises RequestError for a mixer or task that there is not."""
    model, task = (fit(key, config[key], Mapping[str, Any]) for key in ("model", "task"))
    mixers = {key: _constructed(f"model.{key}", mixer, mixer_settings) for key, mixer in model.items() if key not in MODEL}
    tasks = _constructed("task", task, task_settings)
    own = {**tasks.__annotations__, **LABELS, **({"data": DATA} if "data" in tasks.__annotations__ else {})}
    match = {**KINDS["match"], "reference": Literal[*options("model")]}
    return {**KINDS, "match": match, "model": {**MODEL, **mixers}, "task": TypedDict("task", own)}


def _constructed(key: str, config: Any, settings: Callable[[str], Mapping[str, Any]]) -> Any:
    """The record of what a class takes that the configuration names as its type."""
    type_name = fit(f"{key}.type", fit(key, config, Mapping[str, Any]).get("type"), str)
    try:
        return TypedDict(key, {"type": str, **settings(type_name)})
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


def is_whole(value: object, low: int) -> bool:
    """Whether value is a whole number of at least `low`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
