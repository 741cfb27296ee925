"""What a report's YAML says: its parts, and the functions of reports/pages that draw them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from conf.extensions import Module, modules
from conf.groups import find, options
from conf.settings import Line, Name, Refusal, RequestError, Settings, near, unknown
from reports.kit.arguments import read_arguments
from reports.kit.parts import Drawing, Frames, Table

PAGES = Path(__file__).parents[1] / "pages"
PartName = Annotated[str, Meta(pattern=r"^[\w-]+$", description="words of letters, digits, _ and -")]


def words_of(name: str) -> str:
    """A title made of a name: "Loss by share" of loss_by_share."""
    return name.replace("_", " ").replace("-", " ").strip().capitalize() or name


class Part(Settings, kw_only=True):
    """A table or a figure. type: "module.function" of reports/pages. arguments: those of the function.

    Where nothing is said, the title is made of the name, and `read_page` takes the first line of the function's docstring
    for the caption.
    """

    name: PartName
    type: str
    title: Line = ""
    caption: str = ""
    arguments: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.title:
            msgspec.structs.force_setattr(self, "title", words_of(self.name))


class Page(Settings, kw_only=True):
    """A report. experiment: whose latest request it draws; or tasks: all runs of these tasks in the store.

    `read_page` gives the name of the file to what is not named.
    """

    name: Name
    experiment: Name | None = None
    tasks: tuple[Name, ...] = ()
    title: Line = ""
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, description="lists of one part or more")]

    def __post_init__(self) -> None:
        if not self.title:
            msgspec.structs.force_setattr(self, "title", words_of(self.name))
        if (self.experiment is None) != bool(self.tasks):
            raise Refusal("tasks", self.tasks, f"tasks in the place of an experiment, here {self.experiment}")
        names = [part.name for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise Refusal("parts", f"{name}, {name}", "parts of different names")


def read_page(path: Path) -> Page:
    """The report in a YAML file, every part of it checked. Raises RequestError: one line that names the file and the part.

    `defaults` names another report, of which it has the keys that the file does not say itself.
    """
    try:
        values = _loaded(path)
        if (other := values.pop("defaults", None)) is not None:
            if other not in (known := options("report")):
                raise Refusal("defaults", other, ", ".join(known), near(str(other), known))
            values = {key: value for key, value in _loaded(find("report", other)).items() if key != "defaults"} | values
        return _page(values, path.stem)
    except RequestError as error:
        raise RequestError(f"{os.path.relpath(path)}: {error}") from error


def _loaded(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error).split("\n")[0]
        raise RequestError(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise RequestError(f"it can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise RequestError(f"it holds a list, permitted are the keys {', '.join(Page.__struct_fields__)}")
    return {str(key): value for key, value in values.items()}


def _page(values: dict[str, Any], stem: str) -> Page:
    parts = values.get("parts")
    for i, part in enumerate(parts if isinstance(parts, list) else ()):
        if isinstance(part, dict):
            try:
                Part.read(part)
            except RequestError as error:
                raise RequestError(f"part {part.get('name', i + 1)!r}: {error}") from error
    page = Page.read({"name": stem, **({} if "tasks" in values else {"experiment": stem}), **values})
    if page.experiment is not None and page.experiment not in (known := options("experiment")):
        raise Refusal("experiment", page.experiment, ", ".join(known), near(page.experiment, known))
    for task in page.tasks:
        if task not in (known := options("task")):
            raise Refusal("tasks", task, ", ".join(known), near(task, known))
    return msgspec.structs.replace(page, parts=tuple(map(_checked, page.parts)))


def _checked(part: Part) -> Part:
    """The part with a caption. Raises RequestError."""
    bound_part(part, named=True)
    if part.caption:
        return part
    first = (inspect.getdoc(part_function(part.type)) or "").split("\n")[0].replace("`", "")
    return msgspec.structs.replace(part, caption=first)


def bound_part(part: Part, *, named: bool = False) -> Callable[[Frames], Drawing | Table]:
    """The function of a part with its arguments filled in. Raises RequestError for a type or arguments that can't be.

    named: see `read_arguments`; a report that somebody wrote is held to it, one that follows from a store is not.
    """
    try:
        function = part_function(part.type)
        arguments = read_arguments(function, part.arguments, named=named)
    except RequestError as error:
        raise RequestError(f"part {part.name!r}: {error}") from error
    return lambda frames: function(frames, **arguments)


def part_function(type_name: str) -> Callable[..., Drawing | Table]:
    """The function named "module.function" that returns a Drawing or a Table, of a file anywhere in reports/pages, or in
    reports/ of a folder of the user's own.

    Raises RequestError for anything else: a configuration names a part, it can't name arbitrary code.
    """
    module, _, function_name = type_name.rpartition(".")
    found = _modules()
    if module not in found or function_name not in _drawing(found[module].file.read_bytes()):
        known = [f"{name}.{each}" for name, own in found.items() for each in _drawing(own.file.read_bytes())]
        same = [name for name in known if name.startswith(f"{module}.")]
        raise unknown("part type", type_name, same or known)
    function = getattr(importlib.import_module(found[module].name), function_name)
    assert get_type_hints(function)["return"] in (Drawing, Table), f"{type_name} returns no drawing and no table of ours"
    return function


def _modules() -> Mapping[str, Module]:
    """Every module whose functions draw parts, by the last word of its name."""
    found = {}
    for path in sorted(PAGES.rglob("*.py")):
        if path.stem != "__init__":
            found[path.stem] = Module(".".join(("reports.pages", *path.relative_to(PAGES).with_suffix("").parts)), path)
    for own in modules("reports"):
        if (there := found.setdefault(own.file.stem, own)) != own:
            raise RequestError(f"{own.file}: a module {own.file.stem} is there already, {there.file}; give it another name")
    return found


@functools.cache
def _drawing(source: bytes) -> tuple[str, ...]:
    """The functions of a module that return a Drawing or a Table, of its text: nothing is imported."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    names = {each.name: ast.unparse(each.returns).strip("'\"") for each in functions if each.returns}
    return tuple(name for name, kind in names.items() if kind in ("Drawing", "Table"))
