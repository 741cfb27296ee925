"""Digests of what lies on this machine: files, folders, and modules with all of the user's that they import and read."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_FILES = 10_000


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, kept within the process until its size, its times or its inode change.

    Raises OSError where it can't be read, and ValueError for what is not a regular file, such as a pipe.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file")
    stat = path.stat()
    return _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@functools.cache
def _file_digest(path: Path, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, without: tuple[str, ...] = ()) -> str:
    """The same of all files below a folder and of their names in it; folders that begin with . or _ are left out.

    without: endings of files that are left out, too. Raises ValueError for a folder of more than MOST_FILES.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in name.parts[:-1])
        if path.is_file() and not hidden and path.suffix not in without:
            found.append((name.as_posix(), file_digest(path)))
        if len(found) > MOST_FILES:
            raise ValueError(
                f"{str(folder)!r} has more than {MOST_FILES:,} files, which decide what is scored: give it a folder of its own"
            )
    return text_digest(repr(found))


def on_this_machine(named: str) -> str | None:
    """The path of a data file of this machine, also where it is an address or lies in an archive; None for one elsewhere."""
    path = named.rpartition("::")[2].removeprefix("file://").removeprefix("local://")
    return None if "://" in path else path


def data_files(named: Any, base: Path) -> Any:
    """What `data_files` of Hugging Face's datasets names (paths, globs, lists, splits), each a list of file digests.

    Addresses stay as they are. Raises ValueError, naming it, for what matches no file or an empty one.
    """
    if isinstance(named, Mapping):
        return {key: value if key == "split" else data_files(value, base) for key, value in named.items()}
    if not isinstance(named, str):
        return [data_files(each, base) for each in named]
    path = on_this_machine(named)
    if path is None:
        return named
    whole = (base / path).absolute()
    # pathlib's glob takes no absolute pattern.
    found = [whole] if whole.exists() else sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
    digests = [file_digest(path) + path.suffix for path in found if not path.is_dir()]
    if not digests or all(digest.startswith(text_digest("")) for digest in digests):
        raise ValueError(f"its data file {named!r} {'is empty' if digests else 'does not exist'}")
    return digests


def module_file(name: str, folder: Path) -> Path | None:
    """The source of a module "a.b" beside a folder's files or on the user's part of sys.path; None for an installed one."""
    installed = (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)
    own = (entry for entry in map(os.path.abspath, sys.path) if not entry.startswith(installed))
    for root in (folder, *(Path(entry) for entry in own if not entry.endswith((".zip", "-packages")))):
        for path in (root / f"{name.replace('.', '/')}.py", root / name.replace(".", "/") / "__init__.py"):
            if path.is_file():
                return path
    return None


def module_digest(module: Path) -> str:
    """Digest of a module's folder, of the user's modules that it imports, and of the files that these name.

    The whole folder but its task YAMLs, since a module may put together the names of what it reads or imports there.
    """
    files = sources([module], module_file)
    found = {file_digest(file) for file in files} | {digest for file in files for digest in _named_data(file)}
    return text_digest(repr([sorted(found), folder_digest(module.parent, without=(".yaml", ".yml"))]))


def sources(roots: Iterable[Path], find: Callable[[str, Path], Path | None]) -> list[Path]:
    """The roots and whatever they import, at any depth, wherever find(dotted name, folder of the importer) has a file."""
    found = dict.fromkeys(path.resolve() for path in roots)
    left, asked = list(found), set[tuple[str, Path]]()
    for path in left:
        for imported in _imported(path, file_digest(path)):
            if imported in asked:
                continue
            asked.add(imported)
            target = find(*imported)
            if target is not None and (whole := target.resolve()) not in found:
                found[whole] = None
                left.append(whole)
    return left


@functools.cache
def _imported(path: Path, content: str) -> tuple[tuple[str, Path], ...]:
    """What a source file imports: see `_imports`. content: its digest."""
    return tuple(dict.fromkeys(_imports(_parsed(path, content), path.parent)))


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a source file; an empty one for what is not Python: importing it will say so."""
    return _parsed(path, file_digest(path))


@functools.cache
def _parsed(path: Path, content: str) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _imports(tree: ast.AST, folder: Path) -> Iterator[tuple[str, Path]]:
    """Dotted names that may be modules, each with the folder from which it is meant."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr):
            yield from _imports(node, folder)
        if isinstance(node, ast.Import):
            yield from ((alias.name, folder) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = folder.joinpath(*[".."] * (node.level - 1))
            names = [node.module, *(".".join(filter(None, (node.module, alias.name))) for alias in node.names)]
            yield from ((name, origin) for name in names if name)


def _named_data(module: Path) -> Iterator[str]:
    """Digests of the files that a module's strings name: by an absolute path, from here, or beside it, folders too."""
    texts = (node.value for node in ast.walk(parsed(module)) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for name in filter(None, texts):
        # Also "/data.json", which is put behind a folder's name.
        beside = module.parent / name.lstrip("/")
        yield from (file_digest(path) for path in {beside, Path(os.path.expanduser(name)).absolute()} if os.path.isfile(path))
        if os.path.isdir(beside) and module.parent in Path(os.path.normpath(beside)).parents:
            yield folder_digest(beside)
