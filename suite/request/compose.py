"""From the cells of a request to typed settings. Hydra composes each option of a group once, however many cells have it.

A configuration is made of sections, the keys at its top. A section depends on the options and values that a cell has for
it, and through interpolations on other sections; each is composed, resolved and checked once for all cells that agree on
these.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.groups import CONF, groups, options, search_path
from conf.paths import NAME, cache
from conf.settings import Refusal, RequestError, Settings, fields, flat, near
from models.build import Model, Size, read_model
from suite.compute.settings import Compute, Train
from suite.request.launch import Launch
from suite.request.length import Length, asked, settled, steps_of
from suite.request.overrides import Assignment, assignment, quoted
from suite.request.places import Paths
from suite.request.rates import default_rate
from suite.request.references import mentioned, resolved
from suite.request.schema import Chosen, Composed, Config, Experiment, Match, Protocol
from tasks.build import read_task
from tasks.language.task import DataSettings

KINDS = {
    "protocol": Protocol,
    "match": Match,
    "paths": Paths,
    "size": Size,
    "data": DataSettings,
    "train": Train,
    "compute": Compute,
    "launch": Launch,
}
READERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "experiment": lambda section: Experiment.read({"name": section["name"]}, "experiment"),
    **{name: functools.partial(kind.read, key=name) for name, kind in KINDS.items()},
    "task": read_task,
    "model": read_model,
    # Read by the evaluations, which know what belongs to each of them.
    "eval": dict,
}
ELSEWHERE = {
    "run": "evaluate, generate and show",
    "force": "evaluate",
    "step": "evaluate",
    "prompt": "generate",
    "tokens": "generate",
    "where": "list and report",
    "sort": "list",
    "show": "check",
    "on": "check",
}
"""Keys of other verbs."""
UNTYPED = ("model.lr.", "task.data.")
"""Sections that nobody types: a model's own table of learning rates, and what data= fills."""
WITHOUT = tuple(f"~hydra/{group}" for each in HydraConf().defaults for group, option in each.items() if option)
"""Hydra's own groups, such as its logging and its help: no section of ours reads one, and they take a third of a composition."""
SINGLE = tuple(fields(Chosen))
Variant = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A section's name, and the choices and assignments of a cell that make it."""


class Composer:
    """Composes the cells of one request. cells: all of them, by which it is decided how the options are composed."""

    def __init__(self, cells: Sequence[Sequence[str]]) -> None:
        combinations = {tuple(_choices(cell)) for cell in cells}
        single = {choice for combination in combinations for choice in combination}
        # Composing an option alone pays once there are more combinations than options.
        self._separately = len(combinations) > len(single) + 1
        self._plain: dict[Variant, Any] = {}
        self._mentioned: dict[Variant, frozenset[str]] = {}
        self._read: dict[tuple[Variant, ...], tuple[Any, Any]] = {}

    def compose(self, cell: Sequence[str], size: Mapping[str, int] | None = None, *, steps: int | None = None) -> Composed:
        """The settings of a cell, with some values of `size` changed. Raises RequestError.

        steps: those of a training whose length is given in FLOPs; without them they stay to be settled, see `Composed.flops`.
        """
        changed = {f"size.{key}": value for key, value in (size or {}).items()}
        choices, assigned = _choices(cell), [each for each in map(assignment, cell) if not each.is_choice] + _assignments(changed)
        names = list(_composed(()))
        if lost := [each for each in assigned if each.section not in names]:
            raise self._unknown(lost[0], choices)
        variants = {name: self._variant(name, choices, assigned) for name in names}
        if "path" in (self._plain[variants["model"]] or ()) and not any(each.startswith("train=") for each in choices):
            # What is read from a folder is not trained.
            variants["train"] = self._variant("train", choices := [*choices, "train=none"], assigned)
        train = self._train(variants)
        length = asked(train, {each.key for each in assigned})
        if not length.is_plain:
            seq_len = self._section("task", variants)[0].seq_len
            counted = steps_of(length, train["batch_size"], seq_len) if steps is None else steps
            variants["train"] = self._variant("train", choices, assigned + _assignments(settled(length, counted)))
        read = {name: self._section(name, variants) for name in (*SINGLE, *READERS)}
        chosen = Chosen.read({name: read[name][0] for name in SINGLE})
        made = {name: read[name][0] for name in READERS}
        config = Config(made["model"], made["size"], made["task"], made["train"], chosen.backend, chosen.seed)
        written = {name: _written(*read[name]) for name in names}
        flops = length.flops if steps is None else None
        if flops is not None:
            written["train"] |= {"steps": None, "flops": flops}
        return Composed(
            config=config,
            experiment=made["experiment"].name,
            protocol=made["protocol"],
            match=made["match"],
            paths=made["paths"],
            compute=made["compute"],
            launch=made["launch"],
            data=made["data"],
            evaluation=made["eval"],
            default_rate=default_rate(self._plain[variants["model"]], self._plain[variants["train"]], config.size.name),
            written=written,
            flops=flops,
        )

    def _train(self, variants: Mapping[str, Variant]) -> Mapping[str, Any]:
        """The section train, resolved as far as the length of a training asks."""
        train, asks = self._plain[variants["train"]], ("batch_size", *Length.__struct_fields__)
        if not any(isinstance(train.get(key), str) for key in asks):
            return train
        whole = OmegaConf.create({each: self._plain[variants[each]] for each in {"train", *self._needed("train", variants)}})
        try:
            return {**train, **{key: OmegaConf.select(whole, f"train.{key}") for key in asks}}
        except OmegaConfBaseException as error:
            raise RequestError(f"train: {_first_line(error)}") from error

    def _variant(self, name: str, choices: Sequence[str], assigned: Sequence[Assignment]) -> Variant:
        own = [each for each in assigned if each.section == name]
        choices = _touching(name, tuple(choices)) if self._separately else tuple(choices)
        variant = name, choices, tuple(each.typed for each in own)
        if variant not in self._plain:
            section = copy.deepcopy(_composed(variant[1])[name])
            for each in own:
                section = self._assigned(section, each, choices)
            if name == "paths" and isinstance(section, dict) and section["cache"] is None:
                # Where nobody is at home, in the folder of the command.
                section["cache"] = cache() or os.path.join(".", ".cache", NAME)
            self._plain[variant], self._mentioned[variant] = section, mentioned(section)
        return variant

    def _assigned(self, section: Any, each: Assignment, choices: Sequence[str]) -> Any:
        """The section with a value in its place, which must be there unless it is new."""
        *outer, last = each.key.split(".")[1:] or [""]
        if not last:
            return _merged(section, each.value)
        place = section
        for part in outer:
            if each.is_new and isinstance(place, dict):
                place.setdefault(part, {})
            place = place.get(part) if isinstance(place, dict) else None
        # Evaluations know their own keys: one that conf/eval/NAME.yaml alone holds may be given beside any other.
        if not isinstance(place, dict) or not (each.is_new or last in place or each.section == "eval"):
            raise self._unknown(each, choices)
        if each.is_new and last in place:
            raise RequestError(f"+{each.key} is there already, permitted is {each.typed[1:]}")
        place[last] = _merged(place.get(last), each.value)
        return section

    def _unknown(self, each: Assignment, choices: Sequence[str]) -> RequestError:
        known = [key for name, section in _composed(tuple(choices)).items() for key in _keys(name, section)]
        if each.key in ELSEWHERE:
            return RequestError(f"{each.typed!r} is for {ELSEWHERE[each.key]}; permitted are keys of {', '.join(_composed(()))}")
        siblings = sorted(key for key in known if key.rpartition(".")[0] == each.key.rpartition(".")[0])
        # A name without its section is that of its section: lr for train.lr.
        ending = [key for key in known if key.rpartition(".")[2] == each.key and f"{key}." not in UNTYPED]
        nearest = f"; did you mean {' or '.join(ending)}?" if ending else near(each.key, [*known, *groups()])
        beside = f"beside it: {', '.join(siblings)}" if siblings else f"are keys of {', '.join(_composed(tuple(choices)))}"
        # One of several models, tasks or trainings may lack what the others have.
        whose = "".join(f" of {choice}" for choice in choices if choice.startswith(f"{each.section}="))
        return RequestError(f"unknown key {each.key!r}{whose}{nearest} (permitted {beside})")

    def _section(self, name: str, variants: Mapping[str, Variant]) -> tuple[Any, Any]:
        """A section as its type, and as plain values."""
        read = self._needed(name, variants)
        key = (variants[name], *(variants[each] for each in sorted(read - {name})))
        if key not in self._read:
            plain = self._plain[variants[name]]
            self._check_given(name, plain, variants)
            if read:
                try:
                    plain = resolved(name, {each: self._plain[variants[each]] for each in {name, *read}})
                except OmegaConfBaseException as error:
                    raise RequestError(f"{name}: {_first_line(error)}") from error
            if name in READERS and not isinstance(plain, dict):
                raise Refusal(name, plain, ", ".join(options(name) if name in groups() else ["mappings"]))
            self._read[key] = (READERS[name](plain) if name in READERS else plain), plain
        return self._read[key]

    def _check_given(self, name: str, plain: Any, variants: Mapping[str, Variant]) -> None:
        """Raises RequestError for a value that whoever types a section's option has to give."""
        for place in (place for place, value in flat({name: plain}) if value == "???"):
            if name == "data" and not self._mentioned[variants["task"]]:
                task = self._plain[variants["task"]]["name"]
                raise RequestError(f"data={plain['name']}: task={task} reads no text; permitted with it is data=stdlib")
            raise RequestError(f"{place} is needed: give {place}=VALUE")

    def _needed(self, name: str, variants: Mapping[str, Variant]) -> set[str]:
        """The sections that a section's interpolations name, and those that these name in turn; empty where it has none."""
        found, left = set[str](), [name] if self._mentioned[variants[name]] else []
        while left:
            found.add(each := left.pop())
            left += self._mentioned[variants[each]] & variants.keys() - found
        return found


def compose_one(overrides: Sequence[str]) -> Composed:
    """The settings of a single cell. Raises RequestError."""
    return Composer([overrides]).compose(overrides)


def _assignments(values: Mapping[str, Any]) -> list[Assignment]:
    """Values that the suite itself gives, by their dotted keys, as if they were typed."""
    return [Assignment(f"{key}={value}", key, value, False, False) for key, value in values.items()]


def _choices(cell: Sequence[str]) -> list[str]:
    return [f"{each.key}={each.value}" for each in map(assignment, cell) if each.is_choice]


def _composed(choices: tuple[str, ...]) -> dict[str, Any]:
    """Hydra's composition of these options, interpolations kept; their order says nothing."""
    return _composed_beside(search_path(), tuple(sorted(choices)))


@functools.cache
def _composed_beside(own: tuple[Path, ...], choices: tuple[str, ...]) -> dict[str, Any]:
    """own: the user's own folders of options."""
    places = [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in own)}]"] if own else []
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            return OmegaConf.to_container(compose(config_name="config", overrides=[*WITHOUT, *places, *choices]))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_first_line(error)) from error


@functools.cache
def _touching(name: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices that make a section: the experiment, the section's own, and options that change it under this experiment."""
    experiment = tuple(choice for choice in choices if choice.startswith("experiment="))
    # The section's own may be what is composed anyway, but for another option: train=language with task=mqar.
    touching = (each for each in choices if each.startswith(f"{name}=") or name in _touched(experiment, each))
    return (*experiment, *(each for each in touching if each not in experiment))


@functools.cache
def _touched(experiment: tuple[str, ...], choice: str) -> frozenset[str]:
    """The sections that an option changes; an experiment, and the training that follows a task, lie outside its own."""
    before, after = _composed(experiment), _composed((*experiment, choice))
    return frozenset(name for name in after if after[name] != before[name])


def _first_line(error: BaseException) -> str:
    """Where, what went wrong and why, the first line of each: the value is in the one, the reason in the other."""
    told = [str(each).strip() for each in (getattr(error, "full_key", None), error, error.__cause__) if each]
    return ": ".join(dict.fromkeys(line.splitlines()[0] for line in told if line))


def _merged(there: Any, value: Any) -> Any:
    if not (isinstance(there, dict) and isinstance(value, dict)):
        return value
    return {**there, **{key: _merged(there.get(key), each) for key, each in value.items()}}


def _keys(name: str, section: Any) -> list[str]:
    """The dotted keys of a section, those of its inner mappings among them."""
    inner = section.items() if isinstance(section, dict) else ()
    return [name, *(key for part, each in inner for key in _keys(f"{name}.{part}", each))]


def _written(read: Any, plain: Any) -> Any:
    """A section as config.yaml holds it: every value of its type. read: a section of several parts has them as members."""
    if isinstance(read, Settings):
        return {**plain, **read.plain()}
    return {**plain, **{name: mixer.plain() for name, mixer in read.by_name()}} if isinstance(read, Model) else plain
