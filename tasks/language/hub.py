"""Data sets of the Hugging Face hub, streamed by the package `datasets`, which runs no code of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tasks.language.settings import DataSettings
from tasks.language.units import AnyUnit, HubUnit, Part

REMEDY = "it needs the network once; files that are here are read with data.path=FILES"


def hub_units(data: DataSettings) -> list[AnyUnit]:
    """The units of a data set of the hub, its files, which are streamed. Raises ValueError where the hub can't be reached."""
    if data.validation_split is None:
        return list(_units(data, data.train_split, None))
    return [*_units(data, data.train_split, "train"), *_units(data, data.validation_split, "validation")]


def _units(data: DataSettings, split: str | None, part: Part | None) -> Iterator[HubUnit]:
    assert data.repository is not None and split is not None and data.text_field is not None
    shards = _stream(data.repository, data.subset, data.revision, split).num_shards
    for shard in range(shards):
        yield HubUnit(
            part=part,
            size=1,
            repository=data.repository,
            subset=data.subset,
            revision=data.revision,
            split=split,
            shard=shard,
            shards=shards,
            field=data.text_field,
        )


def hub_texts(unit: HubUnit) -> Iterator[str]:
    """The texts of a unit's rows. Raises ValueError where a row has none, or the hub can't be reached."""
    stream = _stream(unit.repository, unit.subset, unit.revision, unit.split)
    if stream.num_shards != unit.shards:
        raise ValueError(
            f"data.repository={unit.repository!r} has changed while it was read; data.revision holds it to one state"
        )
    rows, number = iter(stream.shard(unit.shards, unit.shard, contiguous=True)), 0
    while True:
        with _reached(unit.repository):
            row = next(rows, None)
        if row is None:
            return
        if not isinstance(text := row.get(unit.field), str):
            has = f"there is {type(text).__name__}" if unit.field in row else f"its fields are {', '.join(row)}"
            place = f"row {number} of file {unit.shard}"
            raise ValueError(f"data.repository={unit.repository!r} {place} has no text in the field {unit.field!r}: {has}")
        yield text
        number += 1


def _stream(repository: str, subset: str | None, revision: str | None, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        said = f"data.repository={repository!r} needs the package datasets: pip install 'linear-rnn-suite[data]'"
        raise ValueError(said) from error
    with _reached(repository):
        return datasets.load_dataset(repository, subset, split=split, revision=revision, streaming=True)


@contextlib.contextmanager
def _reached(repository: str) -> Iterator[None]:
    """Turns what a library says of the network, or of a name that is nowhere, into one line."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are what the hub's client raises, whichever that is in this version, where a connection breaks.
    broken: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        yield
    except broken as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data.repository={repository!r} can't be read: {reason}; {REMEDY}") from error
