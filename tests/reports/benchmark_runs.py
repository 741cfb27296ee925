"""Runs of a benchmark with accuracies that are known, and what every figure of them says."""

from __future__ import annotations

from reports.kit.parts import Frames, load_frames


def ask(store, model, test, *, validation=0.5, seed=0, task="mqar", status="done", slices=(), state=1024, macro=None, **settings):
    """A run with its accuracies, or one that has none where it did not finish. slices: of the test split, {"num_pairs": 4}."""
    rows = [store.row("accuracy", test, "test"), *(store.row("accuracy", value, "test", **place) for place, value in slices)]
    validated = [store.row("accuracy", validation, "validation")]
    if macro is not None:
        rows.append(store.row("accuracy_macro", macro, "test"))
        validated.append(store.row("accuracy_macro", 1 - macro, "validation"))
    stages = {"train": validated, "test": rows} if status == "done" else {}
    known = {"protocol": "clean", "task.seq_len": 64} | settings
    own = {"varied": {key: value for key, value in known.items() if value is not None}, "facts": {"state_bytes": state}}
    if status == "missing":
        return store.ask(model, task, seed=seed, varied=own["varied"])
    return store.run(model, task, seed=seed, stages=stages, status=status, **own)


def frames_of(store) -> Frames:
    store.request("quick")
    return load_frames(store.root, "quick")


def assert_named(notes) -> None:
    """Every figure and table says protocol, seeds and how was chosen."""
    (note,) = [note for note in notes if note.startswith("Protocol ")]
    assert "n=" in note and "on the test split" in note
    assert "nothing was chosen" in note or "each arm has the one" in note
