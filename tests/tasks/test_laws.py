"""What every task keeps, over all that stand in conf/task: a new one is tested here without a new test."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

import msgspec
import numpy as np
import pytest
import torch
from msgspec import Meta

import conf.settings
from conf.settings import RequestError, fields, words
from suite.metrics import METRICS
from tasks.build import build_task, read_task, task_types
from tasks.task import IGNORE, Batch, Scored, Task, Tokens, Vectors
from tests.tasks.composed import NAMES, composed, settings
from tests.tasks.language.texts import text_data

# Some that share a block of 256, some that lie at its ends, and one that is far away.
INDICES = [7, 0, 255, 256, 300, 7, 2, 5000]
MANY = 400
# In a split of these laws at most: two blocks of 256.
MOST = 512
# Standard errors that a mean may be away from what it estimates; the seeds are fixed.
ERRORS = 4


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Any]:
    """The `data` of a task that reads a text."""
    folder = tmp_path_factory.mktemp("text")
    documents = [f"Document {i} is about {i * i}, naïvely. " * (1 + i % 5) + "\n" for i in range(1500)]
    (folder / "text.txt").write_text("<|endoftext|>\n".join(documents))
    return text_data(folder / "text.txt", folder / "cache", validation_fraction=0.3)


def values_of(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The values of a YAML, with this text and with no more than MOST examples a split, since all of them are drawn."""
    known = composed(name)
    few = {key: min(known[key], MOST) for key in ("num_train", "num_validation", "num_test") if known.get(key)}
    return known | few | ({"data": data} if "data" in known else {})


@pytest.fixture(scope="session")
def values(data) -> Callable[[str], dict[str, Any]]:
    return lambda name: values_of(name, data)


@pytest.fixture(scope="session")
def make(values) -> Callable[..., Task]:
    """Builds the task of a YAML."""
    return lambda name, seed=0: build_task(read_task(values(name)), seed=seed)


@pytest.fixture(scope="session")
def kept(make) -> Callable[..., Task]:
    """As `make`, once a process: for tests that take from a task what they could take from any other one of its settings."""
    return functools.cache(make)


@pytest.fixture(scope="session")
def kept_digest(kept) -> Callable[[str], str]:
    return functools.cache(lambda name: digest(kept(name)))


def within(made: Task, split: str, indices: list[int]) -> list[int]:
    """The indices, brought into a split that has fewer examples."""
    count = made.num_examples(split)
    return indices if count is None else [i % count for i in indices]


def first(made: Task, split: str, count: int = MANY) -> Batch:
    return made.batch(split, range(min(count, made.num_examples(split) or count)))


def same(one: Batch, other: Batch) -> bool:
    starts = (one.starts is None) == (other.starts is None) and (one.starts is None or torch.equal(one.starts, other.starts))
    permitted = (one.permitted is None) == (other.permitted is None)
    return (
        starts
        and permitted
        and (one.permitted is None or torch.equal(one.permitted, other.permitted))
        and torch.equal(one.tokens, other.tokens)
        and torch.equal(one.targets, other.targets)
        and one.slices == other.slices
    )


def row(batch: Batch, i: int) -> Batch:
    slices = {name: [column[i]] for name, column in batch.slices.items()}
    starts, permitted = (None if part is None else part[i : i + 1] for part in (batch.starts, batch.permitted))
    return Batch(batch.tokens[i : i + 1], batch.targets[i : i + 1], starts, slices, permitted)


def scored(batch: Batch, prediction: torch.Tensor) -> Scored:
    """With the squared error for a loss, or with 1 nat a token."""
    if batch.targets.is_floating_point():
        return Scored(batch, (prediction - batch.targets.double()).square().mean(-1), prediction)
    return Scored(batch, torch.ones(batch.targets.shape), prediction)


def digest(made: Task) -> str:
    """A digest of some examples of every split, and of all that the task says of itself."""
    found = hashlib.sha256(repr((made.version, made.interface, made.fingerprint())).encode())
    for split in made.splits:
        batch = made.batch(split, within(made, split, INDICES))
        found.update(batch.tokens.numpy().tobytes() + batch.targets.numpy().tobytes() + repr(batch.slices).encode())
    return found.hexdigest()


def test_every_task_has_its_yaml_and_every_yaml_its_task():
    assert {composed(name)["type"] for name in NAMES} == set(task_types())


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_of_the_type_and_version_of_its_yaml(name, kept):
    made = kept(name)
    assert (type(made).type, made.version) == (composed(name)["type"], composed(name)["version"])
    assert {"train", "validation"} <= set(made.splits) <= {"train", "validation", "test"}
    assert made.num_examples("validation") > 0 and made.seq_len == made.settings.seq_len


@pytest.mark.parametrize("name", NAMES)
def test_an_example_depends_on_neither_its_batch_nor_the_order_of_calls(name, make, kept):
    made = kept(name)
    whole = {split: made.batch(split, within(made, split, INDICES)) for split in made.splits}
    again = make(name)
    for split in reversed(made.splits):
        for place, index in reversed(list(enumerate(within(made, split, INDICES)))):
            assert same(again.batch(split, [index]), row(whole[split], place)), (split, index)


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_change_no_example_and_are_left_as_they_are(name, make, kept_digest):
    set_global_generators(1)
    expected = kept_digest(name)
    set_global_generators(2)
    before = global_generators()
    assert digest(make(name)) == expected
    after = global_generators()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def set_global_generators(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def global_generators() -> tuple[torch.Tensor, list[int], tuple[Any, ...]]:
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.slow
def test_the_seed_of_hashes_changes_no_example(data, kept_digest):
    """Tests of golden examples find it too, in processes of other seeds, but for a task that reads a text."""
    code = "import sys; from tests.tasks.test_laws import digests; print(digests(eval(sys.argv[1])))"
    # This process has another one, mostly drawn at its start.
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command, environment = [sys.executable, "-c", code, repr(data)], {**os.environ, "PYTHONHASHSEED": seed}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip() == repr([kept_digest(name) for name in NAMES])


def digests(data: dict[str, Any]) -> list[str]:
    """The digest of every task, for another process."""
    return [digest(build_task(read_task(values_of(name, data)), seed=0)) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_examples_unless_they_are_read(name, kept):
    batches = [[first(kept(name, seed), split, 8).tokens for split in kept(name).splits] for seed in (0, 1)]
    of_data = kept(name).fingerprint() != ""
    assert all(torch.equal(one, other) == of_data for one, other in zip(*batches, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_two_splits_have_an_example_in_common_under_any_seed(name, kept):
    """Examples of several lengths differ in their beginnings."""
    tokens = {split: [first(kept(name, seed), split).tokens for seed in range(2)] for split in kept(name).splits}
    shortest = min(part.shape[1] for parts in tokens.values() for part in parts)
    seen = [{example.numpy().tobytes() for part in parts for example in part[:, :shortest]} for parts in tokens.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) and all(seen)


@pytest.mark.parametrize("name", NAMES)
def test_batches_keep_to_the_interface(name, kept):
    made = kept(name)
    for split in made.splits:
        batch = first(made, split)
        assert batch.asked.shape == batch.tokens.shape[:2] and batch.asked.any()
        assert {len(column) for column in batch.slices.values()} <= {len(batch.tokens)}
        if isinstance(made.interface, Tokens):
            assert batch.tokens.dtype == batch.targets.dtype == torch.int64
            for ids in (batch.tokens, batch.targets[batch.asked]):
                assert ids.min() >= 0 and ids.max() < made.interface.vocab_size
        else:
            assert isinstance(made.interface, Vectors) and batch.tokens.dtype == batch.targets.dtype == torch.float32
            assert batch.tokens.isfinite().all() and batch.targets.isfinite().all()
            assert (batch.tokens.shape[2], batch.targets.shape[2]) == (made.interface.input_dim, made.interface.output_dim)


@pytest.mark.parametrize("name", NAMES)
def test_every_measurement_is_of_a_metric_that_has_a_row_and_within_its_bounds(name, kept):
    made = kept(name)
    for split in made.splits:
        batch = first(made, split, made.num_examples(split) or MANY)
        one = [scored(batch, torch.zeros_like(batch.targets))]
        positions = made.measure_positions(split, iter(one))
        assert bool(positions) == made.measures_positions
        rows = [
            *made.measure(split, iter(one)),
            *positions,
            *made.references(split, reach=3),
            *made.references(split, reach=None),
        ]
        assert rows
        for each in rows:
            low, high = METRICS[each.metric].bounds
            assert low <= each.value <= high and math.isfinite(each.value) and each.split == split and each.count > 0, each
            # References on a split without end are of as many examples as the task likes.
            partial = made.num_examples(split) is None or each.slice.keys() & batch.slices.keys()
            assert each.examples is None or partial or len(each.examples) == len(batch.tokens), each
            assert each.groups is None or len(each.groups) == len(each.examples), each


@pytest.mark.parametrize("name", NAMES)
def test_the_best_answer_reaches_what_is_stated(name, kept):
    """The best answer of ids is always right; for vectors its error is the stated floor, below every other stated answer."""
    made = kept(name)
    if not hasattr(made, "oracle"):
        pytest.skip("it has no oracle: nobody can know all that is asked")
    for split in made.splits[1:]:
        batch = first(made, split, made.num_examples(split))
        measured = made.measure(split, [scored(batch, made.oracle(batch))])
        if isinstance(made.interface, Tokens):
            assert {each.value for each in measured if each.metric == "accuracy"} == {1.0}
            continue
        known = {(each.metric, *each.slice.items()): each.value for each in made.references(split, reach=None)}
        for each in measured:
            assert each.value == pytest.approx(known["bayes_error", *each.slice.items()], abs=1e-9)
        overall = {metric: known[metric,] for metric, *place in known if not place}
        assert len(overall) > 1 and min(overall, key=overall.__getitem__) == "bayes_error"


@pytest.mark.parametrize("name", NAMES)
def test_guessing_scores_what_is_stated(name, kept):
    """Guesses are drawn from the choices of an example; of vectors the guess is 0."""
    made = kept(name)
    if made.fingerprint():
        pytest.skip("what guessing scores on a text depends on the text")
    generator = np.random.default_rng(0)
    for split in made.splits:
        batch = first(made, split, made.num_examples(split) or MANY)
        if isinstance(made.interface, Vectors):
            error = scored(batch, torch.zeros_like(batch.targets)).loss.mean(1)
            assert abs(error.mean() - made.guessing_loss) < ERRORS * error.std() / math.sqrt(len(error))
            continue
        guesses = torch.full_like(batch.targets, IGNORE)
        for guess, choices, asked in zip(guesses.numpy(), made.choices(batch), batch.asked.numpy(), strict=True):
            guess[asked] = generator.choice(choices, size=asked.sum())
        is_right = made.right(batch, guesses)
        right = [each[asked].numpy() for each, asked in zip(is_right, batch.asked, strict=True)]
        chances = [each for each in made.references(split, reach=None) if each.metric == "chance"]
        assert chances and made.guessing_loss == math.log(made.vocab_size)
        for chance in chances:
            columns = [batch.slices[key] for key in chance.slice]
            chosen = [i for i in range(len(right)) if all(c[i] == v for c, v in zip(columns, chance.slice.values(), strict=True))]
            hits = np.concatenate([right[i] for i in chosen])
            error = math.sqrt(chance.value * (1 - chance.value) / len(hits))
            assert abs(hits.mean() - chance.value) < ERRORS * error, chance


@pytest.mark.parametrize("name", NAMES)
def test_planning_draws_nothing(name, make, monkeypatch):
    """What a plan asks of a task is known from its settings, or from its data."""

    def drawing(*args, **kwargs):
        raise AssertionError("something is drawn")

    for kind in ("Philox", "Generator", "PCG64", "default_rng"):
        monkeypatch.setattr(np.random, kind, drawing)
    made = make(name)
    assert made.interface and made.version and made.seq_len and made.guessing_loss > 0
    assert {split: made.num_examples(split) for split in made.splits}["validation"] and made.fingerprint() is not None
    groups = made.groups("validation")
    assert groups is None or len(groups) == made.num_examples("validation")
    assert isinstance(made.trains, bool) and isinstance(made.measures_positions, bool)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_can_be_resized_keeps_its_data(name, kept):
    made = kept(name)
    made.check()
    other = made.resized(seq_len=2 * made.seq_len, examples=3)
    if other is not None:
        assert other.fingerprint() == made.fingerprint() != "" and other.interface == made.interface
        assert first(other, "validation").tokens.shape == (3, 2 * made.seq_len)
    assert made.tokenizer is None or made.tokenizer.bos < made.tokenizer.vocab_size == made.vocab_size


def numbers(
    kind: Any, wrap: Callable[[Any], Any] = lambda value: value
) -> Iterator[tuple[type, list[Meta], Callable[[Any], Any]]]:
    """Every type of numbers in a declared type, with its limits, and what makes a value of the field of one number."""
    base, marks = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    if base in (int, float):
        yield base, [mark for mark in marks if isinstance(mark, Meta)], wrap
    for part in get_args(base):
        if get_origin(base) is tuple:
            yield from numbers(part, lambda value: wrap([value]))
        else:
            yield from numbers(part, wrap)


def nested(kind: type[conf.settings.Settings], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field, those of nested settings too, with its declared type."""
    for field, declared in fields(kind).items():
        if isinstance(declared, type) and issubclass(declared, conf.settings.Settings):
            yield from nested(declared, (*path, field))
        else:
            yield (*path, field), declared


def changed(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**values, head: changed(values[head], tuple(rest), value) if rest else value}


def ends(kind: type, metas: list[Meta]) -> Iterator[tuple[Any, Any]]:
    """For every limit the last value that is permitted and the first one that is not."""

    def beyond(value: Any, towards: float) -> Any:
        return value + (1 if towards > 0 else -1) if kind is int else math.nextafter(value, towards)

    for meta in metas:
        for limit, towards in ((meta.ge, -math.inf), (meta.le, math.inf)):
            if limit is not None:
                yield limit, beyond(limit, towards)
        for limit, towards in ((meta.gt, math.inf), (meta.lt, -math.inf)):
            if limit is not None:
                yield beyond(limit, towards), limit


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_both_limits_and_keeps_to_them(name, values):
    """A value at a limit may still be refused by a rule over several fields, which has words of its own."""
    known, kind = values(name), type(read_task(values(name)))
    found = [(path, declared, *number) for path, declared in nested(kind) for number in numbers(declared)]
    assert {path[-1] for path, *_ in found} >= {"version", "seq_len"}
    for path, declared, number, metas, wrap in found:
        limits = list(ends(number, metas))
        assert len(limits) == 2, f"{path} has no upper or no lower limit"
        for permitted, refused in limits:
            with pytest.raises(RequestError, match=f"task.{'.'.join(path)}.*out of range"):
                read_task(changed(known, path, wrap(refused)))
            try:
                read_task(changed(known, path, wrap(permitted)))
            except RequestError as error:
                assert words(declared) not in str(error), error


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_by_keyword_frozen_hashable_and_without_defaults(name, values):
    one, other = read_task(values(name)), read_task(values(name))
    assert one == other and hash(one) == hash(other) and one.read(one.plain()) == one
    with pytest.raises(AttributeError):
        one.seq_len = 1
    with pytest.raises(TypeError):
        type(one)(*(getattr(one, field) for field in fields(type(one))))
    kinds = [
        type(one),
        *(kind for kind in fields(type(one)).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)),
    ]
    for kind in kinds:
        assert all(field.required for field in msgspec.structs.fields(kind)), f"{kind} has a default value"
        assert kind.__struct_config__.frozen and kind.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "parity.Party"}, "unknown task.type 'parity.Party'; did you mean parity.Parity?"),
        ({"type": None}, "task.type=null is out of range, permitted are "),
        ({"seqlen": 4}, "unknown key 'task.seqlen'; did you mean task.seq_len?"),
        ({"seq_len": "long"}, "task.seq_len=long is not a whole number, permitted are whole numbers from 1"),
        ({"seq_len": 40.5}, "task.seq_len=40.5 is not a whole number"),
        ({"seq_len": True}, "task.seq_len=true is not a whole number"),
    ],
)
def test_what_is_no_setting_is_named_with_what_is_permitted(change, message):
    with pytest.raises(RequestError) as caught:
        settings("parity", **change)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
