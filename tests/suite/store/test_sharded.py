"""Checkpoints of several ranks: read by any number of them, whole or passed over, and never in the way of the training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from suite.compute.parallel import World
from suite.store.beside import Copies
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.foreign import sealed
from suite.store.keeping import LAST_TWO, Keeping, remove_checkpoints, stored
from suite.store.run_directory import RunDirectory
from suite.store.sharded import Sharded
from tests.suite.store.rank_work import CPU, RUN_ID, assert_equal, made, on_ranks, read, restored, updated, whole, without, write

ALONE = World(0, 1, 0, CPU)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A store with the checkpoints of two ranks after 3 (kept), 5 and 6 (kept) steps; the one after 2 made room."""
    store = tmp_path_factory.mktemp("written")
    on_ranks(2, (write, str(store)))
    return store


@pytest.fixture
def store(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "store"))


def checkpoints(store: Path) -> list[str]:
    folder = store / "runs" / RUN_ID / "checkpoint"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("step-*"))


def loaded(store: Path, keeping: Keeping = LAST_TWO):
    notes: list[str] = []
    model, optimizer = made(1, 1, shards=False)
    checkpoints = Sharded(RunDirectory(store, RUN_ID), ALONE, keeping, notes.append)
    progress, best = restored(checkpoints, model, optimizer)
    return progress, whole(model, optimizer, best), notes


def test_a_failed_save_leaves_the_earlier_ones_and_kept_ones_stay(written):
    assert checkpoints(written) == ["kept/step-000000003", "kept/step-000000006", "step-000000002", "step-000000005"]


def test_two_ranks_wrote_what_one_reads(written, tmp_path):
    """Checkpoints written beside the training hold the state of their own step, not of the steps that went on meanwhile."""
    for step, gone in ((6, ()), (5, (6,)), (3, (5, 6))):
        progress, state, notes = loaded(without(written, tmp_path / str(step), gone))
        assert (progress.step, progress.losses, notes) == (step, (0.5, 1 / 3), [])
        assert_equal(state, written / "expected" / f"{step}.safetensors")


@pytest.mark.slow
def test_two_ranks_wrote_what_four_read(written, tmp_path):
    five, three = without(written, tmp_path / "5", (6,)), without(written, tmp_path / "3", (5, 6))
    on_ranks(4, (read, str(written), True, 6), (read, str(three), True, 3), (read, str(five), False, 5))


def test_each_rank_reads_what_it_wrote_and_one_process_reads_all(written, tmp_path):
    """What one process wrote is read by two, too."""
    store = without(written, tmp_path / "store", (2, 3, 5, 6))
    model, optimizer = made(0, 1, shards=False)
    for step in range(2):
        updated(model, optimizer, step)
    (store / "expected" / "2.safetensors").unlink()
    directory = RunDirectory(store, RUN_ID)
    save_checkpoint(directory, training_state(model, optimizer, None), Progress(step=2, losses=(0.5, 1 / 3)))
    save_file(whole(model, optimizer, None), store / "expected" / "2.safetensors")
    on_ranks(2, (read, str(written), True, 6), (read, str(written), False, 6), (read, str(store), True, 2))


def test_a_process_by_itself_restores_what_ranks_wrote(written):
    notes: list[str] = []
    model, optimizer = made(1, 1, shards=False)
    progress, best = load_checkpoint(RunDirectory(written, RUN_ID), model, optimizer, notes.append)
    assert progress.step == 6 and not notes
    assert_equal(whole(model, optimizer, best), written / "expected" / "6.safetensors")


def kept(store: Path) -> Path:
    return store / "runs" / RUN_ID / "checkpoint" / "kept" / "step-000000006"


def altered(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def renamed(store: Path, name: str) -> None:
    """A manifest that says where its files are in its own way, and is whole."""
    path = kept(store) / "manifest.json"
    content = json.loads(path.read_text().replace("rank-00001.safetensors", name))
    content.pop("digest")
    path.write_text(json.dumps(sealed(content)))
    (kept(store) / "rank-00001.safetensors").rename(kept(store) / name)


def linked(path: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def of_another_run(store: Path) -> None:
    path = kept(store) / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("digest")
    path.write_text(json.dumps(sealed({**content, "run_id": "f" * 12})))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is cut": (lambda s: os.truncate(kept(s) / "rank-00001.safetensors", 500), "is not whole (it has 500 bytes"),
    "a file is gone": (lambda s: (kept(s) / "rank-00000.safetensors").unlink(), "rank-00000.safetensors"),
    "a byte is another": (lambda s: altered(kept(s) / "rank-00001.safetensors"), "rank-00001.safetensors"),
    "the manifest is another": (lambda s: altered(kept(s) / "manifest.json", 200), "manifest.json"),
    "the manifest is gone": (lambda s: (kept(s) / "manifest.json").unlink(), "manifest.json"),
    "a file is a link": (lambda s: linked(kept(s) / "rank-00001.safetensors"), "link"),
    "the folder is a link": (lambda s: linked(kept(s)), "link"),
    "a name leads out": (lambda s: renamed(s, "../../aside.safetensors"), "is no name"),
    "it is of another run": (of_another_run, "belongs to run 'ffffffffffff'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_named_and_passed_over(damage, store):
    spoil, word = DAMAGES[damage]
    spoil(store)
    progress, state, notes = loaded(store)
    assert progress.step == 5 and len(notes) == 1
    assert "step-000000006" in notes[0] and word in notes[0] and "going on from what was before it" in notes[0]
    assert_equal(state, store / "expected" / "5.safetensors")
    model, optimizer = made(1, 1, shards=False)
    again: list[str] = []
    assert load_checkpoint(RunDirectory(store, RUN_ID), model, optimizer, again.append)[0].step == 5 and again == notes


def test_a_checkpoint_of_another_model_is_passed_over(store):
    """Its names, both ways: one tensor more, and one less."""
    for more in (torch.nn.Linear(33, 1, bias=False), torch.nn.Sequential(torch.nn.Linear(33, 1), torch.nn.Linear(1, 1))):
        notes: list[str] = []
        model = torch.nn.Sequential(torch.nn.Linear(5, 33), torch.nn.Tanh(), more)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters())
        checkpoints = Sharded(RunDirectory(store, RUN_ID), ALONE, LAST_TWO, notes.append)
        assert restored(checkpoints, model, optimizer) == (Progress(), None) and len(notes) == 4
        assert all("is not of this model" in note for note in notes)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_of_the_optimiser_that_is_not_whole_is_passed_over(store):
    model, optimizer = made(0, 1, shards=False)
    updated(model, optimizer, 0)
    last = list(model.parameters())[-1]
    held = optimizer.state.pop(last)
    directory = RunDirectory(store, RUN_ID)
    save_checkpoint(directory, training_state(model, optimizer, None), Progress(step=9, losses=(1.0,)))
    for load in (lambda *a: loaded(store), lambda *a: (*load_checkpoint(directory, model, optimizer, a[0].append), a[0])):
        progress, _, notes = load([])
        assert progress.step == 6 and "step-000000009.safetensors is not of this model" in (notes[0] if notes else "")
    assert held.keys() == optimizer.state[last].keys()


def test_half_written_checkpoints_are_removed_and_links_are_left(store, tmp_path):
    (half := kept(store).with_name("step-000000009.abc.tmp")).mkdir()
    (half / "rank-00000.safetensors").write_bytes(bytes(9))
    (outside := tmp_path / "outside").mkdir()
    (outside / "file").write_bytes(b"")
    (link := half.with_name("step-000000010.abc.tmp")).symlink_to(outside)
    assert loaded(store)[0].step == 6
    assert not half.exists() and link.is_symlink() and (outside / "file").exists()


def test_written_beside_the_training_and_waited_for_are_the_same_bytes(tmp_path):
    """The second save waits for the first, and the state is the one at the call."""
    digests = []
    for blocking in (True, False):
        model, optimizer = made(0, 1, shards=False)
        updated(model, optimizer, 0)
        checkpoints = Sharded(RunDirectory(tmp_path / str(blocking), RUN_ID), ALONE, LAST_TWO, print)
        for step in (1, 2):
            checkpoints.save(training_state(model, optimizer, None), Progress(step=step, losses=(1.0,)), blocking=blocking)
            updated(model, optimizer, step)
        checkpoints.look()
        folder = tmp_path / str(blocking) / "runs" / RUN_ID / "checkpoint"
        digests.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")})
    assert digests[0] == digests[1] and len(digests[0]) == 4
    tensors = load_file(tmp_path / "False" / "runs" / RUN_ID / "checkpoint" / "step-000000001" / "rank-00000.safetensors")
    assert {"model.0.weight", "optimizer.0.weight.exp_avg", "optimizer.0.weight.exp_avg_sq", "optimizer.0.weight.step"} <= set(
        tensors
    )


def test_a_copy_is_of_the_call():
    """What a step changes meanwhile does not reach what is being written."""
    weights = {"weight": torch.ones(3)}
    copies = Copies().of(weights)
    weights["weight"].add_(1.0)
    assert copies["weight"].tolist() == [1.0, 1.0, 1.0]


def test_a_damaged_newer_one_does_not_cost_the_new_one(tmp_path):
    """With one checkpoint at a time, what is saved after going back is not the one that makes room."""
    keeping = Keeping(last=1, every=None)
    directory = RunDirectory(tmp_path, RUN_ID)
    model, optimizer = made(0, 1, shards=False)
    updated(model, optimizer, 0)
    checkpoints = Sharded(directory, ALONE, keeping, print)
    (directory.checkpoints / "step-000000009").mkdir(parents=True)
    checkpoints.save(training_state(model, optimizer, None), Progress(step=4, losses=(1.0,)), blocking=True)
    assert [path.name for path in stored(directory)] == ["step-000000004"]
    save_checkpoint(directory, training_state(model, optimizer, None), Progress(step=5, losses=(1.0,)), keeping)
    assert [path.name for path in stored(directory)] == ["step-000000005.safetensors"]


def test_only_kept_ones_stay_after_the_end(store):
    remove_checkpoints(RunDirectory(store, RUN_ID))
    assert checkpoints(store) == ["kept/step-000000003", "kept/step-000000006"]
