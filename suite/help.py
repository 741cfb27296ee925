"""What a verb takes, read from the groups of the configuration and from the types of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conf.groups import groups, options
from conf.settings import Settings, fields, text, words
from models.build import Size
from suite.compute.settings import Compute, Train
from suite.evaluation.settings import Eval
from suite.evaluation.stages import stage_names, studies_by_name
from suite.generate import UNSAID, Generate
from suite.request.compose import compose_one
from suite.request.launch import Launch
from suite.request.overrides import read_request
from suite.request.places import Paths
from suite.request.schema import Chosen, Composed, Match, Protocol
from tasks.language.task import DataSettings

Sections = list[tuple[str, type[Settings]]]


def keys_of(verb: str, arguments: Sequence[str]) -> str:
    """Every key that a verb takes, with its value and what is permitted, a line each.

    arguments: choices and values, e.g. model=mesanet, whose keys then are shown. Raises RequestError.
    """
    composed = compose_one(read_request(arguments if verb in ("run", "check") else []).cells[0])
    chosen = [group for group in groups() if group != "report"] if verb in ("run", "check") else []
    lines = [f"  {group}={'|'.join(options(group))}" for group in chosen]
    defaults = {**composed.written, **UNSAID} if verb == "generate" else composed.written
    for prefix, kind in _sections(verb, composed):
        section = defaults
        for part in prefix.split(".") if prefix else ():
            section = section[part]
        lines += [f"  {key}={value}  ({permitted})" for key, value, permitted in _described(prefix, kind, section)]
    if verb in ("run", "check", "evaluate"):
        lines.append(f"  eval.stages are {', '.join(stage_names())}")
    return "\n".join(lines)


def _sections(verb: str, composed: Composed) -> Sections:
    place: Sections = [("compute", Compute), ("paths", Paths)]
    if verb in ("report", "list", "status", "show", "export", "import", "doctor", "tune"):
        return [] if verb in ("doctor", "tune") else place[1:]
    if verb == "generate":
        return [("", Generate), ("", Chosen), *place]
    studies = [study.Settings for study in studies_by_name().values() if hasattr(study, "Settings")]
    evaluation: Sections = [("eval", kind) for kind in (Eval, *studies)]
    if verb == "evaluate":
        return [*evaluation, *place]
    config = composed.config
    mixers = dict.fromkeys((f"model.{name}", type(mixer)) for name, mixer in config.model.by_name())
    data: Sections = [("size", Size), ("task", type(config.task)), ("data", DataSettings), ("train", Train)]
    compared: Sections = [("match", Match), ("protocol", Protocol)]
    return [("", Chosen), *mixers, *data, *compared, *evaluation, *place, ("launch", Launch)]


def _described(prefix: str, kind: type[Settings], section: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The dotted key, the value and what is permitted of every field, those of inner settings among them."""
    for name, field in fields(kind).items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(field, type) and issubclass(field, Settings):
            yield from _described(key, field, section[name])
        else:
            yield key, text(section[name]) if name in section else name.upper(), words(field)
