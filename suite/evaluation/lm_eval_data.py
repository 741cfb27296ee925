"""A folder in the place of the Hugging Face hub: lm-eval's tasks read there what they would download.

The folder mirrors the hub, ORG/NAME/SPLIT.jsonl, or ORG/NAME/CONFIG/SPLIT.jsonl where a data set has several. lm-eval's tasks
reach the hub through `datasets.load_dataset` alone, those with classes and functions of their own too, so that this is what
is replaced. Files are read whole and anew: `datasets` would tell them by path and time alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import datasets
import torch
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as READERS
from jinja2 import UndefinedError
from jinja2.meta import find_undeclared_variables
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import env

from suite.evaluation.lm_eval_blame import Blame, quiet
from suite.store.contents import file_digest
from suite.store.throwaway import stamp

SUFFIXES = (".jsonl", ".json", ".parquet")
"""How a file that holds a split may end; the first that is there is read."""
MOST_FIELDS = 12
"""Names of fields that an error lists."""


class MissingData(ValueError):
    """What a task needs is not in the folder, or not in the form that it needs."""


class DataRoot:
    """The folder, and what has been asked of it.

    asked: every file of a split by its name in the folder; None where it is not there. last: the one asked for last.
    needed: fields without which a task can make nothing of a row.
    """

    def __init__(self, folder: str, needed: frozenset[str] = frozenset()) -> None:
        self.folder, self.needed = Path(folder), needed
        self.asked: dict[str, Path | None] = {}
        self.last = ""
        self._flat: dict[str, str | None] = {}

    def load(self, name: str, config: str | None, split: str | None) -> Any:
        """What `datasets.load_dataset` returns of a data set of the hub."""
        splits = Splits(self, self._place(name, config))
        if split is None:
            return splits
        if not re.fullmatch(r"\w+", split):
            raise MissingData(f"{name} is asked for {split!r}, and whole splits alone are read from eval.data_root")
        return splits[split]

    def _place(self, name: str, config: str | None) -> str:
        """The folder of a data set. One without folders of its own configurations stands for a single one of them."""
        place = f"{name}/{config}" if config else name
        if not config or (self.folder / place).is_dir():
            return place
        if any(each.is_dir() for each in (self.folder / name).glob("*")) or not (self.folder / name).is_dir():
            return place
        if self._flat.setdefault(name, config) != config:
            raise MissingData(f"{name} cannot be both {self._flat[name]!r} and {config!r}: give each a folder in it")
        return name

    def find(self, place: str, split: str) -> Path | None:
        """The file of a split; what is asked for is kept."""
        found = next((path for suffix in SUFFIXES if (path := self.folder / place / f"{split}{suffix}").is_file()), None)
        self.last = f"{place}/{found.name}" if found else f"{place}/{split}{SUFFIXES[0]}"
        self.asked[self.last] = found
        return found

    def reason(self, error: BaseException) -> str:
        """Why a task cannot be made of what it asked for last, with the file and the field that are missing."""
        if isinstance(error, MissingData):
            return str(error)
        found = self.asked[self.last]
        if found is None:
            return f"{self.last} is not in eval.data_root"
        columns = list(rows(found, stamp(found)).features)
        has = f"it has {', '.join(columns[:MOST_FIELDS])}"
        absent = error.args[0] if isinstance(error, KeyError) else next(iter(sorted(self.needed.difference(columns))), None)
        if isinstance(absent, str) and absent not in columns:
            return f"{self.last} has no field {absent!r}; {has}"
        if isinstance(error, UndefinedError):
            return f"{self.last} has not all fields: {error}; {has}"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return f"{self.last}: {kind}{' '.join(str(error).split())}"


class Splits(datasets.DatasetDict):  # type: ignore[misc]
    """The splits of a data set, each read when it is asked for.

    One that is not there is empty, with the fields of the others: lm-eval asks for examples that no prompt shows.
    """

    def __init__(self, root: DataRoot, place: str) -> None:
        paths = sorted((root.folder / place).glob("*"))
        super().__init__({path.stem: None for path in paths if path.suffix in SUFFIXES})
        self.root, self.place = root, place

    def __getitem__(self, split: Any) -> Any:
        path = self.root.find(self.place, str(split))
        if path is not None:
            return _named_rows(self.root.last, path)
        other = next(iter(self), None)
        return datasets.Dataset.from_list([]) if other is None else _empty(self.root.folder / self.place, other)

    def items(self) -> ItemsView[str, Any]:
        return dict(zip(self, self.values(), strict=True)).items()

    def values(self) -> ValuesView[Any]:
        return {split: self[split] for split in self}.values()


def _empty(folder: Path, split: str) -> Any:
    """No rows, with the fields of a split where that can be read."""
    path = next(path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file())
    try:
        return rows(path, stamp(path)).select([])
    except MissingData:
        return datasets.Dataset.from_list([])


def _named_rows(name: str, path: Path) -> Any:
    try:
        return rows(path, stamp(path))
    except MissingData as error:
        raise MissingData(f"{name} {error}") from error


@functools.lru_cache(maxsize=64)
def rows(path: Path, state: tuple[int, ...]) -> Any:
    """The rows of a file, all with the same fields. state: its `stamp`; the same one is read once.

    Raises MissingData for a file that is empty, ends within a row, or has a row without a field of the others.
    """
    try:
        if path.suffix == ".parquet":
            with tempfile.TemporaryDirectory() as cache:
                return datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix == ".json" and text.lstrip().startswith("["):
            numbered = list(enumerate(json.loads(text), 1))
        else:
            numbered = list(_lines(text))
        _check_fields(numbered)
        return datasets.Dataset.from_list([row for _, row in numbered])
    except MissingData:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MissingData(f"cannot be read: {' '.join(str(error).split())}") from error


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    # Not by splitlines, which ends a line at characters that a text within JSON may have.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise MissingData(
                    f"has no whole row in line {number}: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
                ) from error


def _check_fields(numbered: list[tuple[int, Any]]) -> None:
    if not numbered:
        raise MissingData("is empty")
    known = dict.fromkeys(field for _, row in numbered if isinstance(row, dict) for field in row)
    for number, row in numbered:
        if not isinstance(row, dict):
            raise MissingData(f"has no row of fields in line {number}")
        if lacking := [field for field in known if field not in row]:
            raise MissingData(f"has no field {lacking[0]!r} in line {number}, which other lines have")


class Reading(contextlib.AbstractContextManager[DataRoot | None]):
    """In the block data sets of the hub are read from a folder; what fails for want of them is a MissingData.

    root: None for the hub itself. Files and folders that a task names by their paths are read as ever.
    """

    def __init__(self, root: DataRoot | str | None) -> None:
        self.root = DataRoot(root) if isinstance(root, str) else root

    def __enter__(self) -> DataRoot | None:
        _roots.append(self.root)
        datasets.load_dataset = load_dataset
        return self.root

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _roots.pop()
        if not _roots:
            datasets.load_dataset = _load_from_hub
        passed = not isinstance(error, Exception) or isinstance(error, MemoryError | torch.OutOfMemoryError)
        if error is not None and not passed and self.root is not None and self.root.asked:
            raise MissingData(self.root.reason(error)) from error


_load_from_hub = datasets.load_dataset
_roots: list[DataRoot | None] = []
"""The folders of open blocks. A module that was imported within one keeps `load_dataset` and is right in the next."""


def load_dataset(path: str, name: str | None = None, *given: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, which reads what the hub would have from the folder of the innermost block."""
    root = _roots[-1] if _roots else None
    if root is None or path in READERS or os.path.exists(path):
        return _load_from_hub(path, name, *given, **options)
    return root.load(path, name or options.get("data_dir"), options.get("split"))


class Looked(NamedTuple):
    """What a task read. files: digests of what its prompts are made of, by name in the folder. missing: why it cannot be
    scored, "" where it can. states: the stamps of all files that were asked for, also of those that are not there.
    """

    files: dict[str, str]
    missing: str
    states: dict[Path, tuple[int, ...]]


_looked: dict[tuple[str, str, str, int | None], Looked] = {}


def looked(manager: TaskManager, task: str, config: Mapping[str, Any], folder: str, num_fewshot: int | None) -> Looked:
    """Loads a task from the folder, its first documents rendered; done again once a file has changed.

    num_fewshot: in place of its own shots, unless those are fixed at 0.
    """
    key = folder, task, json.dumps(config, sort_keys=True, default=str), num_fewshot
    known = _looked.get(key)
    if known is None or any(stamp(path) != state for path, state in known.states.items()):
        # What process_docs makes of a file is known once that has been read.
        root = DataRoot(folder, frozenset() if "process_docs" in config else _fields_in(config))
        files, missing = {}, ""
        try:
            with Blame(task, "cannot be loaded"), quiet(), Reading(root):
                used = _check(manager.load([task])["tasks"][task], num_fewshot, root)
                files = {name: file_digest(path) for name in used if (path := root.asked[name])}
        except ValueError as error:
            missing = str(error)
        states = {path or Path(folder, name): stamp(path or Path(folder, name)) for name, path in root.asked.items()}
        known = _looked[key] = Looked(files, missing, states)
    return known


def _fields_in(config: Mapping[str, Any]) -> frozenset[str]:
    """The fields that the templates of a task name. lm-eval takes the name of one that is not there for the text itself."""
    found: set[str] = set()
    for template in (config.get(key) for key in ("doc_to_text", "doc_to_choice", "doc_to_target")):
        if isinstance(template, str):
            is_name = template.isidentifier()
            found |= {template} if is_name else find_undeclared_variables(env.parse(template)) - env.globals.keys()
    return frozenset(found)


def _check(task: Task, num_fewshot: int | None, root: DataRoot) -> list[str]:
    """The files of which a task's prompts are made.

    Raises MissingData where its templates name fields that its documents lack, and for too few examples.
    """
    fields = list(getattr(task, "features", ()))
    if absent := sorted(_fields_in(task.config.to_dict()).difference(fields)):
        raise MissingData(f"{root.last} has no field {absent[0]!r}; it has {', '.join(fields[:MOST_FIELDS])}")
    own = task.get_config("num_fewshot")
    shots = own if own == 0 or num_fewshot is None else num_fewshot
    if not shots:
        # lm-eval reads the examples all the same, and the documents behind them.
        return sorted(root.asked) if task.config.custom_dataset or not root.last else [root.last]
    root.last = ""
    examples = list(task.fewshot_docs() or ())
    if root.last and len(examples) < shots:
        raise MissingData(
            f"num_fewshot={shots} asks for more than the {len(examples)} examples of {root.last}"
            if root.asked[root.last]
            else f"{root.last} is not in eval.data_root, and num_fewshot={shots} takes examples of it"
        )
    if examples:
        task.doc_to_text(examples[0])
    return sorted(root.asked)
