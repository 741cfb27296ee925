"""Which benchmarks lm-eval knows here, and a name for whatever decides what their scores mean.

Imports lm-eval, which takes seconds: import it where it is needed.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import msgspec
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as READERS
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from conf.settings import text
from suite.evaluation.lm_eval_blame import Blame, quiet
from suite.evaluation.lm_eval_data import Looked, looked
from suite.store.code_state import definitions
from suite.store.contents import data_files, file_digest, folder_digest, module_digest, module_file, on_this_machine, text_digest
from suite.store.throwaway import keep, load, stamp
from tasks.language.corpus import open_corpus

OFFLINE_TASKS = Path(__file__).resolve().parents[2] / "tasks" / "offline"
PAPER_TASKS = OFFLINE_TASKS.with_name("paper")
OURS = (OFFLINE_TASKS, PAPER_TASKS)
SHIPPED = Path(lm_eval.__file__).resolve().parent
"""lm-eval's own folder: its version stands for what lies there."""
SHIPPED_TASKS = (str(SHIPPED / "tasks"),)
SHELF = ("arc", "babilong", "drop", "fda", "hellaswag", "lambada", "nq_open", "openbookqa", "piqa", "race", "siqa") + (
    *("squad_completion", "super_glue", "swde", "winogrande"),
)
"""Folders of tasks of lm-eval's that are asked for most. All of them take 10 s to index, these 0.1 s."""
PLACES = ("data_files", "data_dir", "cache_dir")
"""What says where a data set lies, in its `dataset_kwargs`."""


def task_versions(
    tasks: str | Sequence[str], include_path: str | None, data_root: str | None = None, num_fewshot: int | None = None
) -> dict[str, str]:
    """Per name asked for, what decides the meaning of its scores: lm-eval's version, and a digest of its tasks' YAML and of
    what that names on this machine: data files, the user's modules, and the documents of `offline`.

    The YAML holds the tasks' own versions and the names of data sets on the hub; of those in data_root the files count too,
    and what is missing there. Folders are left out, so that the digest is the same on every machine. Raises ValueError,
    naming the task, for other data that is not there, and as evaluate_benchmarks does.
    """
    names = benchmark_names(tasks)
    manager = task_manager(names, include_path)
    index, versions = manager.task_index, {}
    for name in names:
        with Blame(name, "cannot be loaded"):
            configurations: list[Any] = [(leaf, _named(leaf, config, index.get(leaf))) for leaf, config in leaves(name, index)]
            if (longest := longest_request(name, index)) is not None:
                configurations.append(longest)
            if data_root is not None:
                read = _read_there(name, manager, data_root, num_fewshot)
                configurations += [(leaf, *each[:2]) for leaf, each in read.items() if any(each[:2])]
            digest = text_digest(re.sub(r'"/[^"]*/', '"', json.dumps(configurations, sort_keys=True, default=str)))
        versions[name] = f"{importlib.metadata.version('lm_eval')}-{digest[:8]}"
    return versions


def data_gaps(names: Sequence[str], manager: TaskManager, data_root: str | None, num_fewshot: int | None) -> dict[str, str]:
    """The tasks below these names that cannot be scored for want of data in data_root, each with a line that says why."""
    if data_root is None:
        return {}
    read = {leaf: each for name in names for leaf, each in _read_there(name, manager, data_root, num_fewshot).items()}
    return {leaf: each.missing for leaf, each in read.items() if each.missing}


def check_data(tasks: str | Sequence[str], include_path: str | None, data_root: str | None, num_fewshot: int | None) -> None:
    """Warns of every task whose data are not in data_root. Raises ValueError where no task is left, and for no such folder."""
    if data_root is not None and not Path(data_root).is_dir():
        raise ValueError(f"eval.data_root={data_root!r} is not a folder")
    names = benchmark_names(tasks)
    manager = task_manager(names, include_path)
    gaps = data_gaps(names, manager, data_root, num_fewshot)
    if gaps and all(leaf in gaps for name in names for leaf, _ in leaves(name, manager.task_index)):
        raise ValueError(next(iter(gaps.values())) + (f"; and {len(gaps) - 1} more of its kind" if len(gaps) > 1 else ""))
    for line in gaps.values():
        warnings.warn(line, stacklevel=2)


def _read_there(name: str, manager: TaskManager, data_root: str, num_fewshot: int | None) -> dict[str, Looked]:
    """What every task below a name reads in data_root, of those that would read the hub."""
    read = {}
    for leaf, config in leaves(name, manager.task_index):
        if config is None or leaf not in manager.task_index:
            continue
        made = str(config.get("custom_dataset", "")).startswith(tuple(f"{folder}{os.sep}" for folder in OURS))
        if not made and not _reads_files(config):
            read[leaf] = looked(manager, leaf, config, data_root, num_fewshot)
    return read


def longest_request(name: str, index: Mapping[str, Any]) -> int | None:
    """How many tokens of a request are read at most in a group that says so itself, as `max_length` of its metadata."""
    group = index.get(name)
    return ((group.cfg or {}).get("metadata") or {}).get("max_length") if group and group.kind.name == "GROUP" else None


def benchmark_names(tasks: str | Sequence[str]) -> list[str]:
    """The names in a comma list or a sequence. Raises ValueError when there are none."""
    given = tasks.split(",") if isinstance(tasks, str) else tasks
    names = [name.strip() for name in given if name.strip()]
    if not names:
        raise ValueError(f"eval.tasks={text(tasks)} names no benchmark; e.g. eval.tasks=offline")
    return names


def task_manager(names: Sequence[str], include_path: str | None) -> TaskManager:
    """Knows the built-in tasks and include_path; lm-eval's own too, 10 s to index, when a name is in neither nor in SHELF."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"eval.include_path={include_path!r} is not a folder of lm-eval task YAMLs")
    folders = tuple(map(str, [*OURS, *([Path(include_path).resolve()] if include_path else [])]))
    # Any file may be included by a YAML.
    stats = ((path, path.stat()) for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())
    state = tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)
    manager = _indexed(folders, state)
    shelf = tuple(os.path.join(folder, name) for folder in SHIPPED_TASKS for name in SHELF)
    for further in ((), shelf, SHIPPED_TASKS):
        for name, entry in _indexed(further, ()).task_index.items() if further else ():
            # A tag or a group may have members elsewhere.
            if further != shelf or entry.kind.name not in ("TAG", "GROUP"):
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
    if module.parent not in OURS:
        return [function, module_digest(module)]
    if key == "custom_dataset" and module.parent == OFFLINE_TASKS:
        return [function, _documents(attribute)]
    made = [function, definitions(module)[attribute].digest]
    if key == "custom_dataset":
        made += sorted(each.digest for each in definitions(PAPER_TASKS / "needles.py").values())
        made += [_documents("prose")] if attribute == "prose" else []
    return made


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
