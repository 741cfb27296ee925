"""From what was typed to the cells of a sweep: lists of overrides, one a run, composed by Hydra."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from suite.values import SHOWN, RequestError, home, near, settle, text, unknown

CONF = Path(__file__).resolve().parent.parent / "conf"
LAUNCHER = "hydra/launcher"
PATHS = dict.fromkeys(("results", "reports", "cache"), Path)


def options(group: str) -> list[str]:
    """The names in a configuration group, sorted; a base that only others inherit is left out."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")
    if not names:
        raise RequestError(f"there is no configuration in {CONF / group}; install the suite again, or run it from its checkout")
    return names


@functools.cache
def groups() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in CONF.glob("*/")))


def parse(arguments: Sequence[str]) -> list[Override]:
    """Hydra's overrides. Raises RequestError for one that is not of the form key=value or names an unknown group option."""
    overrides = [_parsed(argument) for argument in arguments]
    for override in overrides:
        key, new = override.key_or_group, override.type == OverrideType.ADD
        if not key or override.package or (override.type != OverrideType.CHANGE and not (new and key.startswith("model."))):
            raise RequestError(f"{override.input_line!r} is not of the form key=value; + adds keys of a model alone")
        if is_hydra(override) and key != LAUNCHER and not key.startswith("hydra.launcher."):
            raise unknown("key of Hydra", key, (LAUNCHER, "hydra.launcher.KEY"))
        if key.startswith("hydra.") and not any(each.key_or_group == LAUNCHER for each in overrides):
            raise RequestError(f"{override.input_line} has no meaning without {LAUNCHER}=NAME")
        if key in groups():
            for choice in values(override):
                if choice.strip("'\"") not in options(key):
                    raise unknown(key, choice, options(key))
    return overrides


def _parsed(argument: str) -> Override:
    """An argument as Hydra reads it; one that it can't read, such as a path with a bracket, as if its value were quoted."""
    key, separator, value = argument.partition("=")
    for each in (argument, f"{key}={quoted(value)}") if separator else (argument,):
        with contextlib.suppress(HydraException):
            return OverridesParser.create().parse_override(each)
    raise RequestError(f"{argument!r} is not of the form key=value")


def quoted(value: str) -> str:
    """A text as Hydra's overrides hold it, whatever its characters."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value) + "'"


def values(override: Override) -> list[str]:
    """The values that an override lists, as they are typed: one, or those of a comma list, range or glob."""
    if override.is_sweep_override():
        if isinstance(override.value(), Glob):
            if override.key_or_group not in groups():
                raise RequestError(f"{override.input_line}: permitted is glob for {', '.join(groups())}")
            return override.value().filter(options(override.key_or_group))
        if not override.is_discrete_sweep():
            raise RequestError(f"{override.input_line!r} is a continuous range; list the values with commas")
        return list(override.sweep_string_iterator())
    return [override.input_line.partition("=")[2]]


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration of one cell, every interpolation kept and known to resolve.

    Its paths are settled: ~ is the home folder in each, and the cache has a place. Raises RequestError, naming the key and
    its nearest match.
    """
    config = _composed(tuple(overrides)).copy()
    if OmegaConf.is_dict(config.paths) and config.paths.cache is None:
        shared = os.environ.get("XDG_CACHE_HOME", "")
        # Where nobody is at home, the folder that the command was called in.
        config.paths.cache = os.path.join(shared if os.path.isabs(shared) else f"{home() or '.'}/.cache", "linear-rnn-suite")
    settle(config, {"paths": PATHS})
    return config


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Kept, since composing takes a tenth of a second and the arms of a sweep share their reference."""
    parsed = [override.input_line for override in parse(overrides)]
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            config = compose(config_name="config", overrides=parsed)
        OmegaConf.to_container(config, resolve=True)
    except MissingConfigException as error:
        raise RequestError(str(error).splitlines()[0]) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _wrong_key(parse(overrides)) or RequestError(_first_line(error)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise RequestError(f"{missing[0]} is needed: give {missing[0]}=VALUE")
    return config


def _first_line(error: BaseException) -> str:
    """Where, what went wrong and why, the first line of each: the value is in the one, the reason in the other."""
    told = [str(each).strip() for each in (getattr(error, "full_key", None), error, error.__cause__) if each]
    return ": ".join(dict.fromkeys(text.splitlines()[0] for text in told if text))


def _wrong_key(parsed: Sequence[Override]) -> RequestError | None:
    """The error for the first key that the configuration does not have, or whose value has another shape there."""
    choices = [o.input_line for o in parsed if o.key_or_group in groups()]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose(config_name="config", overrides=choices)
    known = _flat_keys(config)
    for override in parsed:
        key = override.key_or_group
        if override.type != OverrideType.CHANGE or key in groups():
            continue
        if key not in known:
            siblings = sorted(other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0])
            permitted = ", ".join(siblings)
            return RequestError(f"unknown key {key!r}{near(key, [*known, *groups()])} (permitted beside it: {permitted})")
        there = OmegaConf.select(config, key)
        shapes = (dict, DictConfig), (list, ListConfig)
        if any(isinstance(there, shape) != isinstance(override.value(), shape) for shape in shapes if there is not None):
            return RequestError(f"{override.input_line} is out of range, permitted are values such as {text(there)[:SHOWN]}")
    return None


def _flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        if OmegaConf.is_dict(config._get_node(key)) and not OmegaConf.is_missing(config, key):
            keys += _flat_keys(config._get_node(key), f"{prefix}{key}.")
    return keys


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The cells of a request: every combination of its comma lists with the grid of its experiment.

    An override of an axis that the grid lists narrows the grid to those values; a value that the grid doesn't list
    takes the place of the listed ones. Hydra's own keys (hydra/...) are left out.
    """
    overrides = [override for override in parse(arguments) if not is_hydra(override)]
    typed: dict[str, list[str]] = {}
    for override in overrides:
        key = override.input_line.partition("=")[0]
        if key in typed:
            raise RequestError(f"{key} is given twice; several values are a list, {key}=A,B")
        typed[key] = values(override)
    if "experiment.grid" in typed:
        raise RequestError("experiment.grid can't be typed, permitted are its axes, e.g. seed=0,1,2")
    if not typed.get("experiment"):
        return _product(typed)
    experiment, *others = typed.pop("experiment")
    if others:
        raise RequestError(f"experiment={','.join([experiment, *others])} names several; a request is of one experiment")
    cells = [cell for entry in _entries(experiment, typed) for cell in _product({"experiment": [experiment], **entry})]
    return [list(cell) for cell in dict.fromkeys(map(tuple, cells))]


def is_hydra(override: Override) -> bool:
    return override.key_or_group.split("/")[0].split(".")[0] == "hydra"


def _entries(experiment: str, typed: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """The grid's entries, each an axis name to its values, after the typed overrides have narrowed them."""
    grid = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml").experiment.grid)
    entries = [
        {key: [text(v) for v in (value if isinstance(value, list) else [value])] for key, value in e.items()} for e in grid
    ]
    listed = {key: {value for entry in entries for value in entry.get(key, [])} for key in typed}
    narrowed = []
    for entry in entries or [{}]:
        axes = dict(entry)
        for key, asked in typed.items():
            axes[key] = asked if key not in entry else [v for v in asked if v in entry[key] or v not in listed[key]]
        if all(axes.values()):
            narrowed.append(axes)
    return narrowed


def _product(axes: dict[str, list[str]]) -> list[list[str]]:
    return [
        [f"{key}={value}" for key, value in zip(axes, combination, strict=True)]
        for combination in itertools.product(*axes.values())
    ]
