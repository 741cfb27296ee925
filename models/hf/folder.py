"""A folder with a saved model: config.json, weights in safetensors and tokenizer.json. Nothing here imports transformers.

A folder is read as data: files of Python in it and pickled weights (.bin) are refused or left alone, and nothing is downloaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from conf.settings import Refusal, RequestError

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
MOST_JSON = 2**26
AT_ONCE = 2**24


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder. Raises RequestError where there is none."""
    path = folder / name
    if not path.is_file():
        raise RequestError(f"model.path={folder} has no {name}, permitted are folders that transformers' save_pretrained wrote")
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"model.path={folder}: {name} can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise RequestError(f"model.path={folder}: {name} is not a JSON object")
    return content


def check(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises RequestError for a folder that is not there, or is none of a whole causal model's."""
    if not folder.is_dir():
        raise Refusal(
            "model.path", str(folder), "folders with config.json, *.safetensors and tokenizer.json", fault="is no folder"
        )
    config = read_json(folder, CONFIG)
    if config.get("quantization_config"):
        raise RequestError(
            f"model.path={folder}: its config.json has quantization_config, permitted are weights as they were trained"
        )
    if (folder / "adapter_config.json").exists():
        raise RequestError(
            f"model.path={folder} has adapter_config.json, permitted are folders of a whole model, its adapters merged"
        )
    weights(folder)
    return config


def weights(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them. Raises RequestError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        instead = f"{pickled}, which may run code, and no" if pickled else "no"
        raise RequestError(f"model.path={folder} has {instead} {WEIGHTS}, permitted are weights in safetensors")
    named = read_json(folder, INDEX).get("weight_map")
    names = sorted(set(named.values())) if isinstance(named, dict) and all(isinstance(n, str) for n in named.values()) else []
    for name in names:
        # A name with a folder in it would lead out of the folder.
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise RequestError(f"model.path={folder}: {INDEX} names {name!r}, permitted are .safetensors files in the folder")
    if not names:
        raise RequestError(f"model.path={folder}: {INDEX} names no file")
    return [folder / name for name in names]


def digest(folder: Path) -> str:
    """16 hexadecimal digits over config.json and the files of the weights. Raises RequestError."""
    whole = hashlib.sha256()
    for path in (folder / CONFIG, *weights(folder)):
        try:
            state = path.stat()
            whole.update(f"{path.name} {_digest(path, state.st_size, state.st_mtime_ns, state.st_ino)}\n".encode())
        except OSError as error:
            raise RequestError(f"model.path={folder}: {path.name} can't be read: {error.strerror}") from error
    return whole.hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, *state: int) -> str:
    """state: of the file, which is read once as long as it stays."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(AT_ONCE):
            whole.update(part)
    return whole.hexdigest()
