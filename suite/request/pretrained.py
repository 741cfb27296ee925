"""What a request asks of a model that is read from a folder: its weights' digest, its size, and what goes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.settings import Refusal, RequestError, text
from models.backbone.blocks import Size
from models.build import Model, pretrained
from models.hf import folder
from models.ops.cross_entropy import MAX_SOFT_CAP
from suite.request.schema import Composed
from tasks.language.tokenizer import load_tokenizer
from tasks.task import Task

UNNAMED = "Checkpoint"
"""The label in conf/model/hf.yaml, in whose place the folder's name is put."""
NAMED = {
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "num_blocks": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "mlp_dim": ("intermediate_size", "n_inner", "ffn_dim"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "head_dim": ("head_dim",),
    "logit_soft_cap": ("final_logit_softcapping",),
}
"""What the sizes of a model are called in a config.json."""


def settled(composed: Composed, task: Task) -> Composed:
    """The same with what the folder says; whatever has no such model stays as it is.

    Raises RequestError for what does not go with such a model, and for a model without weights that trains nothing.
    """
    model = composed.config.model
    settings = pretrained(model)
    if settings is None:
        train, name = composed.config.train, composed.config.task.name
        if train.steps == 0 and task.trains:
            raise RequestError(f"train.steps=0 is out of range, permitted with task={name} are whole numbers from 1")
        return composed
    place = Path(settings.path).absolute()
    config = folder.check(place)
    _check(composed, task, place)
    digest = folder.digest(place)
    if settings.digest not in (None, digest):
        raise Refusal("model.checkpoint.digest", settings.digest, f"null, and {digest}, which {place} has")
    changed = settings.replace({"path": str(place), "digest": digest})
    label = place.name if model.label == UNNAMED and place.name else model.label
    size = size_of(config)
    return dataclasses.replace(
        composed,
        config=dataclasses.replace(composed.config, model=_named(model, label, changed), size=size),
        written={
            **composed.written,
            "model": {**composed.written["model"], "label": label, "path": str(place), model.pattern[0]: changed.plain()},
            "size": size.plain(),
        },
    )


def _named(model: Model, label: str, settings: Any) -> Model:
    return dataclasses.replace(model, label=label, mixers=(settings,))


def _check(composed: Composed, task: Task, place: Path) -> None:
    config, model = composed.config, composed.config.model.name
    if len(config.model.pattern) != 1:
        raise Refusal("model.pattern", list(config.model.pattern), f"lists of one, with a whole model such as {model}")
    if config.train.steps:
        raise Refusal("train.steps", config.train.steps, f"0 with model={model}, which is evaluated and not trained: train=none")
    if config.train.autocast != "none":
        raise Refusal("train.autocast", config.train.autocast, f"none with model={model}: model.checkpoint.dtype is in its place")
    if composed.match.by != "none":
        raise Refusal("match.by", composed.match.by, f"none with model={model}, which has the size that it has")
    if getattr(config.task, "reset_at_bos", False):
        raise Refusal("task.reset_at_bos", True, f"false with model={model}, which resets no state")
    if task.tokenizer is None and not hasattr(config.task, "data"):
        raise Refusal("task", config.task.name, f"language with model={model}, which has read text")
    own = place / folder.TOKENIZER
    if not own.is_file():
        raise RequestError(
            f"model.path={place} has no {folder.TOKENIZER}, by which its ids have a meaning; save_pretrained writes it"
        )
    given = None if task.tokenizer is None else task.tokenizer.name
    bos = None if task.tokenizer is None else task.tokenizer.bos
    # The name bytes is no file's.
    if task.tokenizer is None or load_tokenizer(str(own), bos).fingerprint != task.tokenizer.fingerprint:
        said = None if given == "bytes" else given
        raise Refusal("data.tokenizer", said, f"{own}, that of the model, and equal files", fault="is another tokenizer")


def size_of(config: Mapping[str, Any]) -> Size:
    """What a config.json says of the size, under the names that this suite has.

    What is not said there is 0 for the MLP, one head as wide as the model, and for numbers that decide nothing here what is
    neutral: the weights' digest names the run.
    """
    said = {key: next((config[n] for n in names if config.get(n) is not None), None) for key, names in NAMED.items()}
    d_model, heads = said["d_model"], said["num_heads"] or 1
    if not isinstance(d_model, int) or not isinstance(said["num_blocks"], int) or not isinstance(heads, int) or heads < 1:
        raise RequestError(
            f"config.json has hidden_size={text(d_model)}, num_hidden_layers={text(said['num_blocks'])}, permitted are numbers"
        )
    neutral = {
        "num_heads": 1,
        "head_dim": max(1, d_model // heads),
        "mlp_dim": 0,
        "norm_eps": 1e-6,
        "logit_soft_cap": MAX_SOFT_CAP,
    }
    return Size.read({"name": "own", **{key: neutral[key] if value is None else value for key, value in said.items()}}, "size")
