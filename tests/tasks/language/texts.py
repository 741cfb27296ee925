"""Settings of texts as conf/data/ has them, with some values changed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.language.settings import DataSettings

DATA = Path(__file__).parents[3] / "conf" / "data"


@functools.cache
def written(name: str) -> Mapping[str, Any]:
    """What conf/data says of a text, over what it says of those from which it begins; parsed once for all tests."""
    content = yaml.safe_load((DATA / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {}
    for base in content.pop("defaults", ()):
        merged |= written(base) if base != "_self_" else {}
    return merged | content


def text_data(path: object, cache: object, *, name: str = "text", **changes: Any) -> dict[str, Any]:
    """Values of `data` for files, a fifth of which is held out, with one process."""
    given = {"path": None if path is None else str(path), "cache": str(cache), "validation_fraction": 0.2, "workers": 1}
    return {**copy.deepcopy(written(name)), **given, **changes}


def read(path: object, cache: object, *, name: str = "text", **changes: Any) -> DataSettings:
    return DataSettings.read(text_data(path, cache, name=name, **changes), "data")
