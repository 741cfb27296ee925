"""Tables of launches: how the kernels of flash-linear-attention run, laid down so that a first use tries nothing.

A kernel that Triton tunes lists dozens of launches (warps, stages, sizes of blocks), and a first use compiles and times each:
minutes an op. A table has one for every kernel. The YAML files beside this module are such tables, each for GPUs of one
compute capability and for the versions that it was made with; `python -m suite tune` makes another.

Nothing of fla or Triton is imported here: `models.backends.fla_launches` hands the launches to the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from msgspec import Meta

from conf.settings import Line, Natural, RequestError, Settings, within

FOLDER = Path(__file__).parent
VARIABLE, NONE = "LRS_LAUNCHES", "none"
"""The environment names a table by its path, in place of those of the folder, or none: then fla tunes, and nothing is said."""
PERMITTED = f"permitted are {NONE} and a file that `python -m suite tune` made"
PACKAGES = ("fla-core", "triton")
MOST_BYTES = 2**20

Number = Annotated[int, within(0, 2**20)]
Value = bool | Number | Annotated[str, Meta(max_length=40)]


class Entry(Settings, kw_only=True):
    """One launch of a kernel.

    where: the values of the kernel's key (key and value dim, chunk size, dtype of its first tensor) that it is for; all that
    are not named are any, and {} is every call that no entry before it is for. launch: num_warps, num_stages and the sizes of
    blocks, as the kernel calls them. measured: whether it was the fastest on `card`, or only chosen.
    """

    where: Mapping[str, Value]
    launch: Mapping[str, Value]
    measured: bool


class Table(Settings, kw_only=True):
    """card: on which it was made. capability: of the GPUs that it is for. versions: that it holds with. made: the day.

    kernels: "module:name" of a kernel, to its entries, of which the first that is for a call counts.
    """

    card: Line
    capability: tuple[Natural, Natural]
    versions: Mapping[str, Line]
    made: Line
    kernels: Mapping[str, tuple[Entry, ...]]

    def obstacle(self, versions: Mapping[str, str | None], capability: tuple[int, int]) -> str | None:
        """Why it holds for nothing on this machine; None where it does."""
        for name in PACKAGES:
            # A build of one's own has a name behind its number.
            found, meant = (each.get(name) or "not installed" for each in (versions, self.versions))
            if found.partition("+")[0] != meant.partition("+")[0]:
                return f"whose {name} is {found} and not {meant}"
        if capability != self.capability:
            return "whose compute capability is {}.{} and not {}.{}".format(*capability, *self.capability)
        return None


def chosen(entries: tuple[Entry, ...], key: Mapping[str, object]) -> Entry | None:
    """The first entry that is for a call with this key; None where none is."""
    return next((entry for entry in entries if all(key.get(name) == value for name, value in entry.where.items())), None)


def read(path: Path) -> Table:
    """A table from its file. Raises RequestError."""
    try:
        text = path.read_bytes()[: MOST_BYTES + 1]
        values = yaml.safe_load(text) if len(text) <= MOST_BYTES else None
    except (OSError, yaml.YAMLError, UnicodeError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{VARIABLE}={path} can't be read ({said}), {PERMITTED}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{VARIABLE}={path} is no table of launches, {PERMITTED}")
    return Table.read(_plain(values), str(path))


def named() -> str | None:
    """What the environment says of the table: its path, NONE, or nothing."""
    return os.environ.get(VARIABLE) or None


def check() -> None:
    """Raises RequestError for a table that the environment names and that is none."""
    path = named()
    if path not in (None, NONE):
        read(Path(path))


def find(versions: Mapping[str, str | None], capability: tuple[int, int], card: str) -> Table | str:
    """The table for a machine, one made on its very card before one of its compute capability; else why there is none.

    Raises RequestError for a table that the environment names and that is none.
    """
    path = named()
    tables = {each: read(each) for each in ([Path(path)] if path else sorted(FOLDER.glob("*.yaml")))}
    obstacles = {each: table.obstacle(versions, capability) for each, table in tables.items()}
    fitting = [table for each, table in tables.items() if obstacles[each] is None]
    if fitting:
        return min(fitting, key=lambda table: table.card != card)
    said = [f"{each.name} is not for this machine, {reason}" for each, reason in obstacles.items()]
    return "; ".join(said) or "there is no table"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What YAML reads as a date is a text here."""
    return {**values, "made": str(values.get("made"))}
