"""A training split that lies whole on a device: the same questions as from batches that are made for every step."""

from __future__ import annotations

import pytest
import torch

from suite.compute.parallel import alone
from suite.compute.resident import MOST_TOKENS, Resident, is_resident
from suite.compute.scoring import TrainingInputs, training_inputs
from suite.plan import plan, task_of
from suite.running.batches import batches
from tests.tasks.composed import build

CPU = torch.device("cpu")
INDICES = [3, 0, 17, 3, 29]


def asked(inputs: TrainingInputs) -> set[tuple[int, int]]:
    """Every question: its place among all tokens, and its answer."""
    places = torch.arange(len(inputs.targets)) if inputs.places is None else inputs.places
    return {(int(place), int(target)) for place, target in zip(places, inputs.targets, strict=True) if target >= 0}


@pytest.mark.parametrize(
    "name", ["mqar", "mad_fuzzy_recall", "mad_compression", "mad_selective_copying", "word_problem_s3", "palindrome"]
)
def test_a_batch_asks_what_the_task_asks(name):
    task = build(name, num_train=30)
    kept, made = Resident.of(task, CPU).batch(torch.tensor(INDICES)), training_inputs(task.batch("train", INDICES))
    assert torch.equal(kept.tokens, made.tokens) and (kept.starts is None) == (made.starts is None)
    assert asked(kept) == asked(made) and len(asked(kept)) == int((made.targets >= 0).sum())


def test_every_batch_of_a_split_has_one_shape():
    """Whatever its examples ask, so that one CUDA graph serves all steps."""
    split = Resident.of(build("mqar", num_train=64, num_pairs=[2, 8]), CPU)
    shapes = {tuple(split.batch(torch.tensor(rows)).map(lambda x: x.shape)) for rows in ([0, 2, 4], [1, 3, 5], [0, 1, 2])}
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("name", "changes", "read", "expected"),
    [
        ("mqar", {"num_train": 100}, 100, True),
        ("mqar", {"num_train": 100}, 99, False),
        ("mqar", {}, 10**9, False),
        ("mqar", {"num_train": MOST_TOKENS // 32 + 1}, 10**9, False),
        ("in_context_regression", {}, 10**9, False),
    ],
)
def test_it_is_kept_where_it_ends_fits_and_is_read_whole(name, changes, read, expected):
    assert is_resident(build(name, **changes), examples_read=read) is expected


def test_a_run_reads_it_from_its_device():
    """On a device that holds no numbers, since one that is no CPU is what it takes."""
    (run,) = plan(["model=gla", "task=mqar", "task.num_train=32", "train.batch_size=8"])
    made = list(batches(run, task_of(run.config), range(3), world=alone(torch.device("meta"))))
    assert [(part.tokens.device.type, part.tokens.shape[0]) for (part,) in made] == [("meta", 8)] * 3
