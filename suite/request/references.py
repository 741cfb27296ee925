"""What a section of a configuration takes over from others: ${section.key}.

OmegaConf finds it. References of two forms, which most are, are looked up here: OmegaConf would make objects of every value of
every section that one names, which takes fifty times as long, and a sweep or a match asks for hundreds of sections.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from conf.settings import flat

# In a YAML file ${share_of:0.05,${train.steps}}: a warm-up of so many steps, however many there are.
OmegaConf.register_new_resolver("share_of", lambda share, whole: round(share * whole), replace=True)
WHOLE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""A text that stands for what is there, of any type."""
SELECTED = re.compile(r"\$\{oc\.select:(\w+(?:\.\w+)*),([\w.+-]+)\}")
"""A text that stands for what is there, or for another value where nothing is; the place may end in a WHOLE."""
NOTHING, NO_WAY = object(), object()
"""What a mapping on the way to a place lacks; what lies beyond a text, a number or a list, which OmegaConf has to find."""


def mentioned(section: Any) -> frozenset[str]:
    """Every word of the references in a section, among which are the sections that they name."""
    return frozenset(word for value in _references(section) for word in re.findall(r"\w+", value))


def resolved(name: str, sections: Mapping[str, Any]) -> Any:
    """The section of this name with what its references stand for in `sections`, its own among them.

    Raises OmegaConfBaseException.
    """
    section = _filled(sections[name], sections)
    if not _references(section):
        return section
    whole: Any = OmegaConf.to_container(OmegaConf.create({**sections, name: section}), resolve=True)
    return whole[name]


def _references(section: Any) -> list[str]:
    return [str(value) for _, value in flat({"": section}) if isinstance(value, str | list) and "${" in str(value)]


def _filled(value: Any, sections: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """The value with what its references stand for, but for those that stay for OmegaConf. within: those that it stands in."""
    if isinstance(value, dict):
        return {key: _filled(each, sections, within) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, sections, within) for each in value]
    if not isinstance(value, str) or "${" not in value or value in within:
        return value
    if found := WHOLE.fullmatch(value):
        place = _filled(_place(found[1], sections), sections, (*within, value))
        return value if place in (NOTHING, NO_WAY, "???") or _references(place) else place
    place, comma, default = value.rpartition(",")
    if found := SELECTED.fullmatch(WHOLE.sub(lambda inner: _word(inner, sections), place) + comma + default):
        selected = _place(found[1], sections)
        return _value(found[2]) if selected is NOTHING else selected if type(selected) in (int, float) else value
    return value


def _place(path: str, sections: Mapping[str, Any]) -> Any:
    """What stands at a place, or NOTHING or NO_WAY."""
    place: Any = sections
    for part in path.split("."):
        if not isinstance(place, dict):
            return NO_WAY
        if part not in place:
            return NOTHING
        place = place[part]
    return place


def _word(reference: re.Match[str], sections: Mapping[str, Any]) -> str:
    """The word that a reference within a text stands for; the reference itself where it stands for anything else."""
    place = _place(reference[1], sections)
    return place if isinstance(place, str) and re.fullmatch(r"\w+", place) else reference[0]


@functools.cache
def _value(text: str) -> Any:
    """The value of a text as OmegaConf reads it: a number where it is one."""
    return OmegaConf.create({"value": f"${{oc.select:nothing,{text}}}"}).value
