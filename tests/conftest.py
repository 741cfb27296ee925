"""One thread for every test: results do not depend on the machine, and workers do not fight for cores.

What Hydra does again for every composition, of which there are a thousand, is done once or not at all.
"""

import gc
import os
import pickle
from typing import IO, Any

import pytest
from hydra._internal import defaults_list
from omegaconf import OmegaConf

from conf.extensions import VARIABLE

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def parse_once() -> None:
    """Has OmegaConf parse each text of YAML once a process: Hydra reads all of conf/ again for every composition."""
    # Pickled, which is five times as fast to copy.
    parse, parsed = OmegaConf.load, dict[str, bytes]()

    def load(file_: str | os.PathLike[str] | IO[Any]) -> Any:
        if isinstance(file_, str | os.PathLike):
            with open(file_, encoding="utf-8") as opened:
                return load(opened)
        place, text = file_.tell(), file_.read()
        if text not in parsed:
            file_.seek(place)
            parsed[text] = pickle.dumps(parse(file_))
        return pickle.loads(parsed[text])

    OmegaConf.load = load


def map_seldom() -> None:
    """Has Hydra map its choices for interpolations only where a list of defaults has one: a fifth of all composing."""
    map_choices = defaults_list._create_interpolation_map

    def mapped(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        return map_choices(overrides, defaults, self_added) if any(each.is_interpolation() for each in defaults) else None

    defaults_list._create_interpolation_map = mapped


parse_once()
map_seldom()
# Torch and pandas hold so many objects that looking for garbage among them took a tenth of all time.
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def nothing_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a test names by extend= is named for that test alone."""
    monkeypatch.setenv(VARIABLE, os.environ.get(VARIABLE, ""))


def pytest_collection_finish() -> None:
    """What collecting has imported is there to the end: whoever looks for garbage passes over it."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked gpu needs a CUDA device, whichever way it was chosen."""
    import torch

    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))
