"""Every key of the configuration has a type, and what is not of it is refused by name before anything is written."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import pytest
import yaml
from msgspec import UNSET, Meta

from conf.groups import CONF, options, whole
from conf.paths import UserPath, UserPaths
from conf.settings import Settings, fields, text
from models.build import Labels, Size
from suite.cli import main
from suite.compute.settings import Compute, Train
from suite.evaluation.settings import Eval
from suite.evaluation.stages import read_eval, studies_by_name
from suite.request.compose import compose_one
from suite.request.launch import Launch
from suite.request.overrides import parse
from suite.request.places import Paths
from suite.request.schema import Chosen, Experiment, Match, Protocol
from tasks.language.task import DataSettings

# Between them they have every mixer and every task.
PAIRS = [
    *zip(whole("model"), options("task") * 9, strict=False),
    *(("gla", task) for task in options("task")[len(whole("model")) :]),
    ("mesanet", "language"),
]
SECTIONS = {"size": Size, "train": Train, "compute": Compute, "match": Match, "paths": Paths, "eval": Eval, "data": DataSettings}
SECTIONS |= {"protocol": Protocol, "launch": Launch}
TOP = {"": Chosen, "model": Labels, "experiment": Experiment, **SECTIONS}


class Key(NamedTuple):
    """A key that can be typed, the type that its owner declares, and what has to be typed beside it."""

    name: str
    kind: Any
    beside: tuple[str, ...]


def inner(prefix: str, settings: type[Settings], beside: tuple[str, ...]) -> Iterator[Key]:
    for name, kind in fields(settings).items():
        key = f"{prefix}.{name}" if prefix else name
        yield Key(key, kind, beside)
        # What task.data holds is typed as data.KEY.
        if isinstance(kind, type) and issubclass(kind, Settings) and kind is not DataSettings:
            yield from inner(key, kind, beside)


@functools.cache
def declared() -> tuple[Key, ...]:
    """Every key of conf/ once for each type that it has somewhere."""
    found = [key for prefix, settings in TOP.items() for key in inner(prefix, settings, ())]
    own = (getattr(study, "Settings", Settings) for study in studies_by_name().values())
    found += [key for settings in own for key in inner("eval", settings, ())]
    for model, task in PAIRS:
        beside = (f"model={model}", f"task={task}")
        config = compose_one(beside).config
        for name, mixer in zip(config.model.pattern, config.model.mixers, strict=True):
            found += inner(f"model.{name}", type(mixer), beside)
        found += inner("task", type(config.task), beside)
    once = {(key.name, repr(key.kind)): key for key in reversed(found)}
    return tuple(sorted(once.values(), key=lambda key: (key.name, key.beside)))


def parts(kind: Any) -> tuple[Any, list[Meta]]:
    """A type without its marks, and its range."""
    marks = kind.__metadata__ if get_origin(kind) is Annotated else ()
    return (kind.__origin__ if marks else kind), [mark for mark in marks if isinstance(mark, Meta)]


def permits(kind: Any, value: Any) -> bool:
    """Whether a type permits a value, written down a second time."""
    base, ranges = parts(kind)
    if get_origin(base) in (Union, UnionType):
        return any(permits(each, value) for each in get_args(base) if each is not msgspec.UnsetType)
    if get_origin(base) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(base))
    if get_origin(base) is tuple:
        item, *others = get_args(base)
        fits = isinstance(value, list) and (others == [...] or len(value) == 1 + len(others))
        return fits and all(permits(item, each) for each in value) and all(len(value) >= (r.min_length or 0) for r in ranges)
    if get_origin(base) is dict:
        name, item = get_args(base)
        return isinstance(value, dict) and all(permits(name, key) and permits(item, each) for key, each in value.items())
    if base in (int, float):
        number = type(value) in (int, float) and (base is float or value == value // 1)
        return number and all(_lies_in(value, each) for each in ranges)
    if base is str:
        return isinstance(value, str) and all(re.search(each.pattern, value) for each in ranges if each.pattern)
    if base is UserPath:
        return type(value) in (str, int) and bool(str(value).strip()) and not str(value).startswith("~nobody-of-that-name")
    if base is UserPaths:
        return permits(UserPath, value) or (isinstance(value, list) and bool(value) and all(permits(UserPath, v) for v in value))
    if base in (bool, NoneType):
        return type(value) is base
    assert issubclass(base, Settings), base
    needed = () if UNSET in base.__struct_defaults__ else fields(base)
    known = isinstance(value, dict) and set(value) <= set(fields(base)) and set(needed) <= set(value)
    return known and all(permits(fields(base)[name], each) for name, each in value.items())


def _lies_in(value: float, meta: Meta) -> bool:
    return (
        (meta.ge is None or value >= meta.ge)
        and (meta.gt is None or value > meta.gt)
        and (meta.le is None or value <= meta.le)
        and (meta.lt is None or value < meta.lt)
    )


ANYTHING = ["true", "2.5", "-1", "0", "'8'", "word", "a/b", "''", "null", "nan", "inf", "-inf", "1e300", "9223372036854775808"]
ANYTHING += ["[]", "[8]", "[word]", "[null]", "[[[1]]]", "[{a: [1]}]", "{a: 1}", "cast", "[1,2,3]"]
ANYTHING += ["../../etc/passwd", "~nobody-of-that-name/x"]


def candidates(kind: Any) -> list[str]:
    """Values as they are typed: of all kinds, and those at and beyond the bounds of this type and the types within it."""
    base, ranges = parts(kind)
    found = [*ANYTHING]
    for meta in ranges:
        step = 1 if base is int else 0.5
        found += [text(bound) for bound in (meta.gt, meta.lt) if bound is not None]
        found += [text(meta.ge - step)] if meta.ge is not None else []
        found += [text(meta.le + step if abs(meta.le) < 2**53 else 2 * meta.le)] if meta.le is not None else []
    if get_origin(base) is Literal:
        # A letter too many, and a letter in another case.
        found += [f"{each}x" for each in get_args(base)] + [each.upper() for each in get_args(base) if isinstance(each, str)]
    if get_origin(base) in (Union, UnionType):
        found += [each for part in get_args(base) if part is not msgspec.UnsetType for each in candidates(part)]
    if get_origin(base) is tuple:
        found += [f"[{each}]" for each in candidates(get_args(base)[0])]
    if isinstance(base, type) and issubclass(base, Settings):
        found += [f"{{{name}: {each}}}" for name, each_kind in fields(base).items() for each in candidates(each_kind)]
    return found


@functools.cache
def meant(value: str) -> Any:
    """What a value that is typed stands for, whatever its key."""
    return parse([f"key={value}"])[0].value()


@functools.cache
def written() -> dict[str, Any]:
    """What conf/config.yaml says, read once for all keys."""
    return yaml.safe_load((CONF / "config.yaml").read_text())


def is_filled_in(name: str) -> bool:
    """Whether conf/config.yaml has a null for the key, which something takes the place of before it is read."""
    section, _, own = name.partition(".")
    values = written().get(section)
    return isinstance(values, dict) and own in values and values[own] is None


@functools.cache
def wrong_values(key: Key) -> list[str]:
    found = [value for value in dict.fromkeys(candidates(key.kind)) if not permits(key.kind, meant(value))]
    found = [value for value in found if value != "null" or not is_filled_in(key.name)]
    # A mapping is laid over the one that is there, so that what is left out is not missing.
    return [value for value in found if not value.startswith("{") or not _is_part(key.kind, meant(value))]


def _is_part(kind: Any, value: Any) -> bool:
    base, _ = parts(kind)
    whole = isinstance(base, type) and issubclass(base, Settings) and isinstance(value, dict)
    return whole and all(name in fields(base) and permits(fields(base)[name], each) for name, each in value.items())


@functools.cache
def wrong_requests(seed: int, count: int) -> list[tuple[Key, str]]:
    """A wrong value of every key, and further ones of keys that are drawn, in all so many; half of them of the key's own."""
    drawn, keys, found = random.Random(seed), list(declared()), []
    drawn.shuffle(keys)
    for key in (keys + [drawn.choice(keys) for _ in range(count)])[:count]:
        own = [value for value in wrong_values(key) if value not in ANYTHING]
        found.append((key, drawn.choice(own if own and drawn.random() < 0.5 else wrong_values(key))))
    return found


def leaves(value: Any) -> Iterator[Any]:
    """What stands in lists and mappings, empty ones among it, and the names of keys, for which a mapping may be refused."""
    if isinstance(value, dict):
        yield from value
    if value and isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def faults(line: str, key: str, value: str) -> list[str]:
    """What a refusal does not say: that it is one, in one line, of this key and this value, and what is permitted."""
    whole = meant(value)
    shown = {show(each) for each in (whole, *leaves(whole)) for show in (text, repr, str)}
    shown |= {text(int(each)) for each in leaves(whole) if type(each) is float and abs(each) < 2**53}
    told = {
        "one line": line.startswith("error: ") and line.count("\n") == 1,
        "the key": key in line or f"{key.rpartition('.')[0]}={{" in line,
        "the value": any(each[:100] in line for each in shown),
        "what is permitted": "permitted" in line,
    }
    return [name for name, is_told in told.items() if not is_told]


def test_every_key_that_is_declared_is_in_the_configuration_and_has_wrong_values():
    written = {key for beside in {key.beside for key in declared()} for key in leaf_keys(compose_one(beside).written)}
    names = {key.name for key in declared()}
    assert len(names) > 100 and names <= written | {"model.paper"} and all(map(wrong_values, declared()))
    # Rates of learning are a table of the model's own, a grid is read from its file, and task.data is given as data.
    others = {name for name in written - names if not name.startswith(("model.lr", "task.data."))}
    mixers = {f"model.{name}" for model in whole("model") for name in compose_one([f"model={model}"]).config.model.kinds}
    assert others <= {"experiment.grid", *TOP, "task", "model", *mixers}


def leaf_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, those of the mappings among them."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from leaf_keys(value, f"{prefix}{name}.")


@pytest.mark.parametrize("first", range(0, 420, 60))
def test_a_wrong_value_of_any_key_is_refused_in_one_line_by_name(first, capsys):
    bad = []
    for key, value in wrong_requests(seed=0, count=420)[first : first + 60]:
        status = main(["check", *key.beside, f"{key.name}={value}"])
        said = capsys.readouterr().err
        bad += [(*key, value, said, found)] if (found := faults(said, key.name, value)) or status != 2 else []
    assert not bad


def test_a_wrong_request_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for key, value in wrong_requests(seed=1, count=40):
        assert main(["run", *key.beside, f"{key.name}={value}"]) == 2, (key, value)
        assert not faults(capsys.readouterr().err, key.name, value), (key, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "task"), PAIRS)
def test_what_is_composed_of_defaults_is_of_its_types_and_equal_to_them(model, task):
    composed = compose_one([f"model={model}", f"task={task}"])
    read_eval(composed.evaluation)
    config, written = composed.config, composed.written
    sections = {"size": config.size, "task": config.task, "train": config.train, "compute": composed.compute}
    assert all(settings.replace({}) == settings and settings.plain() == written[name] for name, settings in sections.items())


@pytest.mark.parametrize("group", ["size", "train", "eval", "compute", "data"])
def test_every_file_of_a_group_composes_and_is_of_its_types(group):
    for name in options(group):
        composed = compose_one([f"{group}={name}", *(["data.path=x.txt"] if group == "data" and name != "stdlib" else [])])
        shared, _ = read_eval(composed.evaluation)
        assert list(shared.stages) == composed.written["eval"]["stages"]


NAMED = [
    ("task=mqar", "task.noise=true", "task.noise"),
    ("task=in_context_regression", "task.noise=true", "task.noise=true is not a number, permitted are numbers"),
    ("task=language", "task.reset_at_bos=cast", "task.reset_at_bos=cast is not true or false, permitted are true, false"),
    (
        "model=mesanet",
        "model.mixer.signed_decay=[a]",
        "model.mixer.signed_decay=[a] is not true or false, permitted are true, false",
    ),
    ("model=gla", "model.mixer.chunk_size=2.5", "model.mixer.chunk_size=2.5 is not a whole number, permitted are whole numbers"),
    ("model=gla", "model.mixer.value_dim=[1]", "model.mixer.value_dim=[1] is not a whole number, permitted are whole numbers"),
    ("model=gla", "model.mixer.type=1.0", "model.mixer.type=1.0 is not a word, permitted are "),
    (
        "model=gla",
        "model.mixer.type=mixer.SequenceMixer",
        "model.mixer.type: unknown mixer type 'mixer.SequenceMixer'",
    ),
    ("model=gla", "model.pattern=1.5", "model.pattern=1.5 is not a list, permitted are lists of one mixer or more"),
    ("model=gla", "model.pattern=[name]", "model.pattern=[name] has 'name', permitted are mixer"),
    ("model=gla", "+model.mixer.d_model=3", "unknown key 'model.mixer.d_model'"),
    ("model=gla", "+model.other=3", "model.other=3 is out of range"),
    ("model=gla", "model.name=../../etc/passwd", "model.name=../../etc/passwd is out of range, permitted are words of letters"),
    ("model=gla", "eval.stages=0.5", "eval.stages=0.5 is not a list, permitted are lists"),
    ("model=gla", "size.norm_eps=glob(*)", "size.norm_eps=glob(*)"),
    ("model=gla", "train.batch_size=9223372036854775808", "permitted are whole numbers from 1 to 1048576"),
    ("model=gla", "train.final_lr_fraction=3e9", "=3000000000 is out of range, permitted are numbers from 0 to 1"),
    ("model=gla", "train.autocast=bflot16", "did you mean bfloat16?"),
    ("model=gla", "experiment.name=../x", "experiment.name=../x is out of range"),
    ("model=gla", "experiment.grid=[]", "experiment.grid can't be typed"),
    ("model=gla", "eval.solvers=[{max_steps: 2.5}]", "eval.solvers[0].max_steps=2.5 is not a whole number"),
    ("model=gla", "paths=3", "paths=3 is out of range"),
    ("model=gla", "train.lr=${nope}", "train.lr: Interpolation key 'nope' not found"),
    ("model=gla", "size@other=tiny", "'size@other=tiny' is not of the form key=value"),
    ("model=gla", "=3", "'=3' is not of the form key=value"),
    ("model=gla", "model.lr=3", "model.lr=3 is out of range, permitted are mappings from tasks"),
    ("model=gla", "model.lr.mqar.tiny=0", "model.lr.mqar.tiny=0 is out of range, permitted are numbers above 0"),
    ("model=gla", "train.warmup_steps=99999", "train.warmup_steps=99999 is out of range, permitted are 0 to train.steps="),
    ("model=gla", "match.reference=glaa", "did you mean gla?"),
    ("model=gla", "match.tolerance=1.5", "match.tolerance=1.5 is out of range, permitted are numbers from 0 to 1"),
    ("model=gla", "seed=-1", "seed=-1 is out of range, permitted are whole numbers from 0 to 4294967295"),
    (
        "model=gla",
        "backend=flaa",
        "backend=flaa is unknown, permitted are auto, torch, fla, ",
    ),
    ("model=gla", "compute.cuda_graph=1", "compute.cuda_graph=1 is unknown, permitted are auto, true, false"),
    (
        "model=gla",
        "eval.decoders=[{refresh: 0}]",
        "eval.decoders[0].refresh=0 is out of range, permitted are whole",
    ),
    ("task=mqar", "task.seq_len=31", "task.seq_len=31 is out of range, permitted are even numbers of at least"),
    ("task=mqar", "task.num_pairs=[]", "task.num_pairs=[] is out of range, permitted are lists of whole numbers from 1"),
    ("task=mqar", "task.type=0", "task.type=0 is out of range, permitted are depo, efficiency.Efficiency, "),
    ("task=mqar", "task.type=mqar.mqar", "unknown task.type 'mqar.mqar'; did you mean mqar.MQAR?"),
    ("task=parity", "task.test_seq_len=1", "task.test_seq_len=1 is out of range, permitted are whole numbers from seq_len"),
    ("model=mesanet", "model.mixer.refresh=4", "model.mixer.refresh=4 is out of range, permitted are null with decode=solver"),
    ("model=mesanet", "model.mixer.solver.name=cgg", "model.mixer.solver.name=cgg is unknown, permitted are cg, "),
    ("model=mesanet", "model.mixer.solver={max_stepz: 3}", "did you mean model.mixer.solver.max_steps?"),
    ("model=hawk_mesa", "size.num_heads=7", "model.hawk.num_heads=7 is out of range, permitted are divisors of the width 80"),
    ("model=gated_kalmanet", "model.mixer.solver.initial=previous_token", "permitted are zero, diagonal, query"),
    ("data=text", "seed=0", "data.path is needed: give data.path=VALUE"),
    ("model=gla", "model.label=a\nb", "model.label='a\\nb' is out of range"),
    ("model=gla", "model.label=''", "model.label='' is out of range"),
]


@pytest.mark.parametrize(("first", "argument", "said"), NAMED)
def test_the_line_names_the_key_the_value_and_what_is_permitted(first, argument, said, capsys):
    assert main(["check", first, argument]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
