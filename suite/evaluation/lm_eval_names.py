"""Which benchmarks lm-eval knows here, and a name for whatever decides what their scores mean.

Imports lm-eval, which takes seconds: import it where it is needed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import lm_eval
import msgspec
import torch
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as READERS
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from conf.settings import text
from suite.store.code_state import definitions
from suite.store.contents import data_files, file_digest, folder_digest, module_digest, module_file, on_this_machine, text_digest
from suite.store.throwaway import keep, load, stamp
from tasks.language.corpus import open_corpus

OFFLINE_TASKS = Path(__file__).resolve().parents[2] / "tasks" / "offline"
SHIPPED = Path(lm_eval.__file__).resolve().parent
"""lm-eval's own folder: its version stands for what lies there."""
SHIPPED_TASKS = (str(SHIPPED / "tasks"),)
MAX_REASON = 400
"""Characters of another library's message that are passed on."""
PLACES = ("data_files", "data_dir", "cache_dir")
"""What says where a data set lies, in its `dataset_kwargs`."""


class Blame(contextlib.AbstractContextManager):
    """Makes whatever a benchmark's code raises in the block, sys.exit too, a ValueError of one line that names the task.

    What ends a process from outside, and memory that is not there, goes through.
    """

    def __init__(self, task: str, what: str) -> None:
        self.task, self.what = task, what

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception | SystemExit) or isinstance(error, MemoryError | torch.OutOfMemoryError):
            return
        message, kind_name = " ".join(str(error).split())[:MAX_REASON], type(error).__name__
        if message.startswith("lm-eval task "):
            return
        reason = message if isinstance(error, ValueError) and message else f"{kind_name}: {message}" if message else kind_name
        raise ValueError(f"lm-eval task {self.task!r} {self.what} ({reason})") from error


def task_versions(tasks: str | Sequence[str], include_path: str | None) -> dict[str, str]:
    """Per name asked for, what decides the meaning of its scores: lm-eval's version, and a digest of its tasks' YAML and of
    what that names on this machine: data files, the user's modules, and the documents of `offline`.

    The YAML holds the tasks' own versions and the names of data sets on the hub. Folders are left out, so that the digest is
    the same on every machine. Raises ValueError, naming the task, for data that is not there, and as evaluate_benchmarks does.
    """
    names = benchmark_names(tasks)
    index = task_manager(names, include_path).task_index
    versions = {}
    for name in names:
        with Blame(name, "cannot be loaded"):
            configurations = [(leaf, _named(leaf, config, index.get(leaf))) for leaf, config in leaves(name, index)]
            digest = text_digest(re.sub(r'"/[^"]*/', '"', json.dumps(configurations, sort_keys=True, default=str)))
        versions[name] = f"{importlib.metadata.version('lm_eval')}-{digest[:8]}"
    return versions


def benchmark_names(tasks: str | Sequence[str]) -> list[str]:
    """The names in a comma list or a sequence. Raises ValueError when there are none."""
    given = tasks.split(",") if isinstance(tasks, str) else tasks
    names = [name.strip() for name in given if name.strip()]
    if not names:
        raise ValueError(f"eval.tasks={text(tasks)} names no benchmark; e.g. eval.tasks=offline")
    return names


def task_manager(names: Sequence[str], include_path: str | None) -> TaskManager:
    """Knows the built-in tasks and include_path; lm-eval's own too, 10 s to index, when a name is in neither."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"eval.include_path={include_path!r} is not a folder of lm-eval task YAMLs")
    folders = tuple(map(str, [OFFLINE_TASKS, *([Path(include_path).resolve()] if include_path else [])]))
    # Any file may be included by a YAML.
    stats = ((path, path.stat()) for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())
    state = tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)
    manager = _indexed(folders, state)
    for further in ((), SHIPPED_TASKS):
        for name, entry in _indexed(further, ()).task_index.items() if further else ():
            manager.task_index.setdefault(name, entry)
        found = [leaf for name in names for leaf in leaves(name, manager.task_index)]
        if all(leaf in manager.task_index for leaf, _ in found):
            return manager
    missing = [leaf for leaf, config in found if config is None]
    if not missing:
        return manager
    near = difflib.get_close_matches(missing[0], manager.task_index) or ["offline"]
    raise ValueError(f"unknown lm-eval task {missing[0]!r}; nearest: {', '.join(near)}")


@functools.lru_cache(maxsize=8)
def _indexed(folders: tuple[str, ...], state: tuple[Any, ...]) -> TaskManager:
    """Read once for every `state` of the folders."""
    with quiet():
        return TaskManager(include_path=list(folders), include_defaults=False)


def leaves(
    member: str | Mapping[str, Any], index: Mapping[str, Any], outer: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The tasks below a task, group or tag, each with its configuration; None for a name that the index lacks.

    A member of a group may be a mapping: a name with overrides, or a task or group that the index lacks, defined in place.
    outer: what the user's groups around it say of all their tasks; None within lm-eval's own, which its version covers.
    """
    overrides = {} if isinstance(member, str) else dict(member)
    name = overrides.get("group") or overrides.get("task") or str(member)
    entry = index.get(name)
    kind = entry.kind.name if entry else None
    if kind == "TAG":
        children = sorted(entry.tags)
    elif kind == "GROUP" or "group" in overrides:
        children = overrides.get("task") or entry.cfg["task"]
        if outer is not None or not _shipped(str(entry.yaml_path if entry else "")):
            whole = {**(entry.cfg if entry else {}), **(outer or {}), **overrides}
            outer = {key: value for key, value in whole.items() if key not in (*GroupConfig.__dataclass_fields__, "tag")}
    else:
        known = entry is not None or overrides
        yield name, {**(entry.cfg if entry else {}), **(outer or {}), **overrides} if known else None
        return
    for child in children:
        yield from leaves(child, index, outer)


def _shipped(path: str) -> bool:
    return path.startswith(f"{SHIPPED}{os.sep}")


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether all that a task reads are files of this machine, through a reader of datasets."""
    named = json.dumps((config.get("dataset_kwargs") or {}).get("data_files"), default=str)
    return _reads_files(config) and all(on_this_machine(text) is not None for text in re.findall(r'"([^"]*)"', named))


def _reads_files(config: Mapping[str, Any]) -> bool:
    source = config.get("dataset_path")
    return "custom_dataset" not in config and isinstance(source, str) and (source in READERS or os.path.exists(source))


def _named(task: str, config: Mapping[str, Any], entry: Any) -> dict[str, Any]:
    """The configuration of a task with a digest in place of whatever it names on this machine. entry: the task's in the index."""
    with Blame(task, "cannot be loaded"):
        is_own = entry is None or not _shipped(str(entry.yaml_path))
        named = {key: _content(key, value, is_own) for key, value in config.items()}
        if not _reads_files(config):
            return named
        source, given = config["dataset_path"], config.get("dataset_kwargs") or {}
        files, reader = given.get("data_files"), source if source in READERS else ""
        base = Path("" if reader else source, given.get("data_dir") or "").expanduser()
        if base == Path() and not files:
            raise ValueError(f"dataset_path={source!r} needs data_files")
        content = data_files(files, base) if files else folder_digest(base) if base.is_dir() else file_digest(base)
        if content == files:
            return named
        rest = {key: each for key, each in (named.get("dataset_kwargs") or {}).items() if key not in PLACES}
        return {**named, "dataset_path": reader, "dataset_kwargs": {**rest, "content": content}}


def _content(key: str, value: Any, is_own: bool) -> Any:
    """A value of a configuration, with a digest beside every function and file of the user's that it names by its path.

    is_own: whether the task is the user's. Folders are cut off what begins with one; his words, which may, are kept from that.
    """
    if isinstance(value, Mapping):
        return {key: _content(key, each, is_own) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_content(key, each, is_own) for each in value]
    if not isinstance(value, str) or not os.path.isabs(value) or _shipped(value):
        return value
    if os.path.isfile(value):
        return file_digest(Path(value))
    # What lm-eval makes of `!function module.name`.
    folder, _, function = value.rpartition("/")
    name, _, attribute = function.rpartition(".")
    module = module_file(name, Path(folder)) if name else None
    if module is None:
        is_place = key in ("dataset_path", *PLACES) or (name.isidentifier() and os.path.isdir(folder))
        return value if is_place or not is_own or "/" not in value[1:] else f"text {value}"
    if module.parent != OFFLINE_TASKS:
        return [function, module_digest(module)]
    return [function, _documents(attribute) if key == "custom_dataset" else definitions(module)[attribute].digest]


class KeptDocuments(msgspec.Struct):
    """Digests of what generators of the `offline` tasks yield, by function, and a digest of what decides them."""

    decided_by: str
    digests: dict[str, str]


@functools.cache
def _documents(function: str) -> str:
    """A digest of what the generator of the `offline` tasks yields on this Python.

    Kept between processes until a source file changes: reading the standard library takes seconds.
    """
    name, now = f"{text_digest(str(OFFLINE_TASKS))[:32]}.documents", _decided_by()
    kept = load(name, KeptDocuments)
    digests = kept.digests if kept and kept.decided_by == now else {}
    if function not in digests:
        splits = getattr(importlib.import_module("tasks.offline.data"), function)()
        digests[function] = text_digest(json.dumps({name: split.to_list() for name, split in splits.items()}, sort_keys=True))
        keep(name, KeptDocuments(now, digests))
    return digests[function]


def _decided_by() -> str:
    """A digest that changes with the standard library and with every source file of `tasks`."""
    sources = [(str(path), stamp(path)) for path in sorted(OFFLINE_TASKS.parent.rglob("*.py"))]
    return text_digest(repr((open_corpus(None).digest, sources)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back lm-eval's log and its progress bars; errors still reach the caller as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
