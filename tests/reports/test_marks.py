"""What is marked as best: what seeds tell apart, what is counted, and nothing else."""

from __future__ import annotations

import pytest

from reports.kit.marks import settled
from reports.kit.parts import Table, load_frames
from reports.kit.tables import Column
from reports.pages.sweep import scores
from reports.pages.tables import comparison

BITS = Column(metric="bits_per_byte", task="language", stage="train", split="validation")
SPEED = BITS.replace({"metric": "tokens_per_second", "split": "train"})
COLUMNS = [Column(metric="state_bytes", task="language"), BITS, SPEED]


def language(store, model: str, bits: list[float], *, state: int = 4096, **cell) -> None:
    for seed, value in enumerate(bits):
        rows = [store.row("bits_per_byte", value, "validation"), store.row("tokens_per_second", 100 * value, "train")]
        store.run(model, "language", stages={"train": rows}, facts={"state_bytes": state}, seed=seed, **cell)


def table(store) -> Table:
    store.request()
    return comparison(load_frames(store.root, "quick"), columns=COLUMNS, floors={})


def marked(made: Table, column: int) -> dict[str, str]:
    return {row[0].text: row[column].mark for row in made.rows if row[column].mark}


def test_a_difference_that_pairs_of_seeds_settle_is_marked(store) -> None:
    # The seeds differ by far more than the models do, and both in the same way.
    for model, offset in (("mesanet", 0.0), ("gla", 0.1), ("hawk", 0.2)):
        language(store, model, [2.0 + offset, 3.0 + offset, 4.001 + offset])
    made = table(store)
    assert marked(made, 2) == {"MESANET": "best", "GLA": "second"}
    assert any(note.startswith("Marked is what its seeds tell apart") for note in made.notes)


def test_a_difference_within_the_noise_is_not(store) -> None:
    language(store, "mesanet", [2.0, 2.2, 2.1])
    language(store, "gla", [2.1, 2.0, 2.25])
    made = table(store)
    assert marked(made, 2) == {}
    assert any("language bits per byte (the first two are not told apart)" in note for note in made.notes)


def test_one_seed_marks_what_is_counted_alone_and_says_so(store) -> None:
    language(store, "mesanet", [2.0], state=100)
    language(store, "gla", [2.5], state=200)
    made = table(store)
    assert marked(made, 1) == {"MESANET": "best", "GLA": "second"}
    assert marked(made, 2) == marked(made, 3) == {}
    said = "No best is marked in language bits per byte (one seed each); language training speed [tokens/s] (the clock of"
    assert any(note.startswith(said) for note in made.notes)


def test_a_clock_is_never_marked(store) -> None:
    for model, offset in (("mesanet", 0.0), ("gla", 1.0)):
        language(store, model, [2.0 + offset, 2.01 + offset, 2.02 + offset])
    assert marked(table(store), 3) == {}


def test_values_of_a_tasks_setting_are_not_ranked_against_one_another(store) -> None:
    for pairs, offset in (("[2,4]", 0.0), ("[8]", 5.0)):
        for model, bits in (("mesanet", 2.0), ("gla", 2.5)):
            each = [bits + offset, bits + offset + 0.01, bits + offset + 0.02]
            language(store, model, each, varied={"task.num_pairs": pairs})
    best = {arm for arm, mark in marked(table(store), 2).items() if mark == "best"}
    assert best == {"MESANET, num pairs [2,4]", "MESANET, num pairs [8]"}
    column = BITS
    with pytest.raises(ValueError, match="unknown fact"):
        scores(load_frames(store.root, "quick"), column=column, fact="task.nothing", best="fact")


@pytest.mark.parametrize(
    ("metric", "first", "second", "is_settled"),
    [
        ("accuracy", [0.9, 0.9, 1.0, 1.0], [0.1, 0.2, 0.1, 0.2], True),
        ("accuracy", [0.9, 0.9, 1.0], [0.1, 0.2, 0.1], False),
        ("accuracy", [0.9, 0.9, 1.0, 0.15], [0.1, 0.2, 0.1, 0.2], False),
        ("nll", [1.0, 1.1], [2.0, 2.1, 2.05], True),
        ("nll", [1.0, 1.1], [1.05, 1.15, 1.2], False),
        ("nll", [1.0], [2.0, 2.1], False),
        ("parameters", [1.0], [2.0], True),
        ("latency_ms", [1.0, 1.0], [2.0, 2.0], False),
    ],
)
def test_what_settles_a_comparison(metric: str, first: list[float], second: list[float], is_settled: bool) -> None:
    assert settled({"each": first}, {"each": second}, metric) is is_settled
