"""What a results store may hold, read with limits: it may be damaged, or come from a stranger. Imports no torch.

A file is regular, of bounded size, reached without a link below the store, and whole: what is written today carries a
digest of its content, and what was written before digests were is read as it stands.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec
import yaml

from suite.canonical import canonical_json, digest
from suite.machine.ranks import is_follower
from tasks.files import read_regular

MOST_JSON, MOST_YAML, MOST_LOG = 2**26, 2**17, 2**28
MOST_DEPTH, MOST_DIGITS, LONGEST_TEXT = 32, 19, 2000
_NESTED = frozenset((dict, list))
_AS_ZERO = bytes.maketrans(b"-123456789", b"0000000000")

# Terminals obey control characters; the others turn, hide or break a line, or are half a character.
_EFFECT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]")


def inert(text: object) -> str:
    """A text on one line that has no effect on what shows it: control characters as escapes, bounded in length."""
    shown = str(text)[: LONGEST_TEXT + 1]
    shown = shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"
    return _EFFECT.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), shown)


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: object) -> None:
    """Prints an inert line for people. Whoever read along may be gone: the work goes on without them.

    In a process that another one speaks for nothing is printed.
    """
    if is_follower():
        return
    try:
        print(inert(text), file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Lets nothing that is still written to a stream fail: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reason_of(error: BaseException) -> str:
    """What an exception says, on one line, with its type in front where the words alone do not tell."""
    if isinstance(error, OSError) and error.strerror:
        # The name of a temporary tells nobody anything.
        told = error.filename and not os.path.basename(error.filename).endswith(".tmp")
        return f"{error.strerror} ({error.filename})" if told else error.strerror
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return said if said and isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def check_no_link(path: Path, root: Path) -> None:
    """Raises OSError where `path`, or a folder on the way to it from the store `root`, is a link: it may lead anywhere."""
    for place in (path, *path.parents):
        if place == root:
            return
        if place.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, which may lead out of the store", str(place))
    raise OSError(errno.EXDEV, "it lies outside the store", str(path))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest by which a reader knows that it is whole."""
    return {**content, "digest": digest(content, 16)}


def read_json(path: Path, root: Path, run_id: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of a store, without its digest. Raises OSError, and ValueError for what is not whole.

    run_id: whose it has to be, where it says whose it is.
    """
    check_no_link(path, root)
    content = parse_json(read_regular(path, limit=MOST_JSON))
    written = content.pop("digest", None)
    if written is not None and written != digest(content, 16):
        raise ValueError("its content is not what was written")
    if run_id is not None and content.get("run_id", run_id) != run_id:
        raise ValueError(f"it belongs to run {content['run_id']!r}")
    return content


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object of numbers that a float64 can hold. Raises ValueError."""
    try:
        content = _parsed(data)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level: list[Any] = [content]
    for _ in range(MOST_DEPTH):
        inside = (each.values() if type(each) is dict else each for each in level)
        level = [each for each in itertools.chain.from_iterable(inside) if type(each) in _NESTED]
    if level:
        raise ValueError("it is nested too deeply")
    return content


def _parsed(data: bytes) -> Any:
    """What JSON says, in a fraction of the time where it is strict and no number of it is long. Raises ValueError."""
    if b"0" * (MOST_DIGITS + 1) not in data.translate(_AS_ZERO):
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            # The other one says what is wrong, and where.
            pass
    content = json.loads(data.decode(), parse_int=_whole, parse_float=_real, parse_constant=_real)
    # Half a character can be written as an escape, and then can't be written again.
    if re.search(rb"\\u[dD][89a-fA-F]", data):
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of it has {len(digits)} digits")
    return int(digits)


def _real(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"a number of it is {text[:20]}")
    return value


def read_yaml(path: Path, root: Path) -> dict[str, Any]:
    """The mapping in a YAML file of a store. Raises OSError, and ValueError for what a configuration never holds."""
    check_no_link(path, root)
    return parse_yaml(read_regular(path, limit=MOST_YAML))


def parse_yaml(data: bytes) -> dict[str, Any]:
    """A mapping without aliases, interpolations and deep nesting. Raises ValueError."""
    try:
        content = _Loader(data).get_single_data()
        text = canonical_json(content)
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error)) from error
    except (ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's readers of numbers and characters raise whatever they stumble over, and JSON holds no dates.
        raise ValueError("it has a value that no configuration holds") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("it is not a mapping")
    if "${" in text:
        raise ValueError("it is not resolved")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses what grows without bound while it is read."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has aliases")
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def checked_line(row: Mapping[str, Any], run_id: str) -> str:
    """A line of a log, with a check that it is whole and of this run."""
    return json.dumps({**row, "check": digest([run_id, dict(row)], 8)}, allow_nan=False) + "\n"


def parse_line(line: bytes, run_id: str) -> dict[str, Any]:
    """The row of a line of a log; one that was written before lines had a check is taken as it stands. Raises ValueError."""
    row = parse_json(line)
    if row.pop("check", None) not in (None, digest([run_id, row], 8)):
        raise ValueError("its content is not what was written")
    if not isinstance(row.get("step"), int):
        raise ValueError("it has no step")
    return row


def read_lines(path: Path, root: Path) -> list[bytes]:
    """The lines of a log, none where there is no log. Raises OSError and ValueError."""
    if not os.path.lexists(path):
        return []
    check_no_link(path, root)
    return read_regular(path, limit=MOST_LOG).split(b"\n")
