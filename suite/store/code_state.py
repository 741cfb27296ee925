"""The state of the code that makes a run's numbers: 12 hexadecimal digits that change with what it does.

A digest over the syntax trees of the definitions that the run's training reaches by their names: its mixers, ops and
backbone, its task, the training step and loop. Comments, docstrings, imports, files and their order stay outside. Nothing is
imported or executed. The first 6 digits are of what a CPU runs with backend=torch, the last 6 of what the run's backend adds.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from conf.extensions import folders, modules
from suite.store.contents import module_file, parsed, sources, text_digest
from suite.store.throwaway import keep, load, stamp

if TYPE_CHECKING:
    # Whoever only reads results does without torch, which configurations import.
    from suite.request.schema import Config

ROOT = Path(__file__).resolve().parents[2]
OPS, BACKENDS = ROOT / "models" / "ops", ROOT / "models" / "backends"
KERNELS = BACKENDS / "__init__.py"
TABLE = Path(__file__).with_name("code_states.json")
"""Per model and task of conf/ the states with equal golden losses: lists of them, the newest last."""
TRAINING: tuple[str, ...] = (
    *("running/train", "running/trainee", "running/batches", "running/book", "running/health", "running/selection"),
    *("compute/step", "compute/accumulation", "compute/scoring", "compute/optimization", "compute/muon", "compute/order"),
    *("compute/acceleration", "compute/interface", "compute/resident"),
)


MOST_KEPT = 1000


class KeptStates(msgspec.Struct):
    """States by mixers, task and backend, and the source files of which they were made."""

    sources: list[tuple[str, tuple[int, ...]]]
    states: dict[str, str]


class Definition(NamedTuple):
    """What a name stands for in a module: its digest, and the names that it mentions."""

    digest: str
    mentions: frozenset[str]


def code_state(config: Config) -> str:
    """The state of the code that trains a run of this settled configuration; worked out once a process."""
    return recorded(config)["states"][0]


def recorded(config: Config) -> dict[str, Any]:
    """What a run keeps of the code that trains it: its state, and of what it is the state."""
    mixers, task, backend = sorted({mixer.type for mixer in config.model.mixers}), config.task.type, config.backend
    return {"states": [_state(tuple(mixers), task, backend)], "mixers": mixers, "task": task, "backend": backend}


def age(record: Any) -> str:
    """Whether a run's record is of "today"'s code or of "another" state, or "unknown" where there is none."""
    try:
        now = _kept_state(tuple(map(str, record["mixers"])), str(record["task"]), str(record["backend"]))
        # Where there is none, its mixer or its task is no more.
        return "today" if now and all(same_state(str(state), now) for state in record["states"]) else "another"
    except (TypeError, KeyError):
        return "unknown"


def same_state(one: str, other: str) -> bool:
    """Whether two states give equal numbers: they are equal, or the golden losses have shown it."""
    equal = one[:6] == other[:6] or any({one[:6], other[:6]} <= group for group in _declared())
    return equal and one[6:] == other[6:]


@functools.cache
def _declared() -> list[set[str]]:
    return [set(group) for groups in json.loads(TABLE.read_text()).values() for group in groups]


@functools.cache
def _kept_state(mixers: tuple[str, ...], task: str, backend: str) -> str:
    """`_state` for whoever only looks, "" where there is none; kept between processes until a source file changes."""
    name = f"{text_digest(str(ROOT))[:32]}.states"
    key, now = json.dumps([mixers, task, backend]), _sources()
    kept = load(name, KeptStates)
    states = kept.states if kept and kept.sources == now else {}
    if key not in states:
        try:
            states[key] = _state(mixers, task, backend)
        except (OSError, ValueError):
            return ""
        if len(states) <= MOST_KEPT:
            keep(name, KeptStates(now, states))
    return states[key]


def _sources() -> list[tuple[str, tuple[int, ...]]]:
    """Every source file that may be reached, with its stamp."""
    roots = (*(ROOT / package for package in ("models", "tasks", "suite")), *folders())
    return [(str(path), stamp(path)) for root in roots for path in sorted(root.rglob("*.py"))]


@functools.cache
def _state(mixers: tuple[str, ...], task: str, backend: str) -> str:
    plain, whole = (_reached(mixers, task, libraries) for libraries in (None, backend))
    return "".join(_digest(sorted(part))[:6] for part in (plain, whole - plain))


def _reached(mixers: tuple[str, ...], task: str, backend: str | None) -> set[str]:
    """Digests of all that training reaches by name; backend: whose kernels are among it, None for no one's."""

    extended = folders()

    def find(name: str, importer: Path) -> Path | None:
        is_ours, is_own = name.startswith(("models.", "tasks.")), any(folder in importer.parents for folder in extended)
        if not (is_ours or is_own):
            return None
        stem = ROOT / name.replace(".", "/")
        path = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
        if path is None and is_own:
            return module_file(name, importer)
        if path is None or not is_ours:
            return None
        return path if backend or path == KERNELS or BACKENDS not in path.parents else None

    classes = [_declaring("models", "name", mixer) for mixer in mixers] + [_declaring("tasks", "type", task)]
    roots = [*(ROOT / "suite" / f"{name}.py" for name in TRAINING), *(path for path, _ in classes)]
    ops = {(path.parent if path.stem == "__init__" else path).stem for path in sources(roots, find) if OPS in path.parents}
    rows = _kernels(backend, ops) if backend else []
    functions = [function.split(":") for row in rows for function in (row["computes"], row.get("in_place")) if function]
    pool: dict[str, list[Definition]] = {}
    for path in sources([*roots, *(BACKENDS / f"{module.replace('.', '/')}.py" for module, _ in functions)], find):
        for name, definition in definitions(path).items():
            pool.setdefault(name, []).append(definition)
    # The whole table would tie every run to every kernel: a run's own rows stand for it.
    pool.pop("KERNELS", None)
    digests = {_digest(sorted(row.items())) for row in rows}
    names = ["train", *(name for _, name in classes), *(name for _, name in functions)]
    for name in names:
        for definition in pool.pop(name, ()):
            digests.add(definition.digest)
            names += definition.mentions & pool.keys()
    return digests


def _kernels(backend: str, ops: set[str]) -> list[dict[str, Any]]:
    """What the table of kernels says of these ops: the rows of a backend, and those chosen by the tensors of a call."""
    calls = (node for node in ast.walk(parsed(KERNELS)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Kernel")
    rows = [{word.arg: getattr(word.value, "value", "") for word in call.keywords} for call in calls]
    return [row for row in rows if row["op"] in ops and (row["backend"] in backend.split("+") or "suits" in row)]


def _declaring(package: str, attribute: str, value: str) -> tuple[Path, str]:
    """The file and the name of the class that says `attribute = value`. Raises ValueError where none does."""
    files = (*sorted((ROOT / package).rglob("*.py")), *(own.file for own in modules(package)))
    # Files that spell the value come first: to parse all of a package takes a third of a second.
    for path in sorted(files, key=lambda path: value.encode() not in path.read_bytes()):
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and (attribute, value) in _constants(node):
                return path, node.name
    raise ValueError(f"no class of {package} declares {attribute} = {value!r}")


def _constants(node: ast.ClassDef) -> set[tuple[str, Any]]:
    simple = (each for each in node.body if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant))
    return {(name.id, each.value.value) for each in simple for name in each.targets if isinstance(name, ast.Name)}


@functools.cache
def definitions(path: Path) -> dict[str, Definition]:
    """What stands at the top of a source file, by the names that it binds; read once a process."""
    shapes: dict[str, str] = {}
    for node in parsed(path).body:
        for name in _bound(node):
            shapes[name] = shapes.get(name, "") + repr(_shape(node))
    return {name: Definition(_digest(shape), frozenset(re.findall(r"'([A-Za-z_]\w*)'", shape))) for name, shape in shapes.items()}


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    stored = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return stored | {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.ClassDef)}


def _shape(node: Any) -> Any:
    """A syntax tree as nested lists, without places, imports, docstrings and what is empty (which differs by Python)."""
    if isinstance(node, list):
        return [_shape(each) for each in node if not isinstance(each, ast.Import | ast.ImportFrom) and not _is_text(each)]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _shape(value)) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment"))
    return [type(node).__name__, *((name, value) for name, value in fields if value is not None and value != [])]


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
