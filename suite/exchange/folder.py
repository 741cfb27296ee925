"""A folder of an exported model: written whole or not at all, and read as data of a stranger."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from conf.settings import RequestError
from suite.store.foreign import parse_json, reason_of
from tasks.files import read_regular

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MOST_CONFIG = 2**26


def write(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: bytes | None) -> None:
    """A new folder of config.json, model.safetensors and, where there is one, tokenizer.json.

    Raises RequestError for a name that is taken or where no folder can be made, and OSError where it can't be written.
    """
    if os.path.lexists(path):
        raise RequestError(f"path={path} is there already, permitted are names of folders that are made anew")
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files = {CONFIG: f"{json.dumps(dict(config), indent=2)}\n".encode(), WEIGHTS: save(here, {"format": "pt"})}
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        made.mkdir(parents=True)
    except OSError as error:
        raise RequestError(f"path={path} can't be made: {reason_of(error)}") from error
    try:
        for name, content in (*files.items(), *([] if tokenizer is None else [(TOKENIZER, tokenizer)])):
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        made.rename(path)
    finally:
        # Where the name was given, nothing is left under the temporary one.
        shutil.rmtree(made, ignore_errors=True)


def read_config(path: Path) -> dict[str, Any]:
    """Raises RequestError for a folder without a config.json that can be read."""
    try:
        return parse_json(read_regular(path / CONFIG, limit=MOST_CONFIG, follow=True))
    except (OSError, ValueError) as error:
        raise RequestError(f"path={path}: {CONFIG} can't be read: {reason_of(error)}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, on the CPU. Raises RequestError for what is none."""
    try:
        # The file is read and not mapped: one that is cut while it is mapped would end the process.
        return load(read_regular(path / WEIGHTS, limit=os.stat(path / WEIGHTS).st_size, follow=True))
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"path={path}: {WEIGHTS} can't be read: {reason_of(error)}") from error
