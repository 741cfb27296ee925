"""Paths as a user types them, with ~ for a home folder."""

from __future__ import annotations

import os
import pwd
from typing import ClassVar

NAME = "linear-rnn-suite"


class UserPath(str):
    """A path, in which ~ at the start is put in place."""

    words: ClassVar[str] = "paths (~ a user's home)"

    @classmethod
    def of(cls, value: object) -> UserPath:
        """Raises ValueError for what is no path, and for the home of nobody."""
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ValueError(f"{value!r} is no path")
        path = str(value)
        name, _, rest = path.strip().partition("/")
        if not name.startswith("~"):
            return cls(path)
        folder = home() if name == "~" else os.path.expanduser(name)
        # No folder is made that is named ~.
        if folder in (None, name):
            raise ValueError(f"{name} is the home of nobody")
        return cls(os.path.join(folder, rest))


class UserPaths(tuple[UserPath, ...]):
    """Several paths: a list of them, or a text that separates them by commas."""

    words: ClassVar[str] = UserPath.words

    @classmethod
    def of(cls, value: object) -> UserPaths:
        """Raises ValueError where one of them is no path, or there is none."""
        paths = value if isinstance(value, list | tuple) else str(value).split(",") if type(value) in (str, int) else [value]
        if not paths:
            raise ValueError("no path")
        return cls(map(UserPath.of, paths))


def home() -> str | None:
    """The user's home folder, None where there is none; an empty HOME says nothing."""
    try:
        return os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def cache() -> str | None:
    """The folder of the user for what may be thrown away, None for a user without a home and without such a folder."""
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(shared):
        user = home()
        if user is None:
            return None
        shared = os.path.join(user, ".cache")
    return os.path.join(shared, NAME)
