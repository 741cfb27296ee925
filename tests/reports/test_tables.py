"""What the main table prints, on numbers chosen so that every rule shows."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from reports.kit.latex import to_latex
from reports.kit.parts import NoData, Table, load_frames
from reports.kit.render import scientific, signed, to_html, to_markdown
from reports.kit.tables import Column, outcome_notes, per_run
from reports.pages.tables import comparison
from tests.reports.conftest import write

COLUMNS = [
    Column(metric="parameters", task="language"),
    Column(metric="bits_per_byte", task="language", stage="train", split="validation"),
    Column(metric="accuracy", task="mqar", stage="test", split="test", bound="reachable_accuracy"),
]
FLOORS = {"bits_per_byte": ["unigram_bits_per_byte", "trigram_bits_per_byte"], "accuracy": ["chance"]}
PLACES = (("test", "test"), ("solver", "validation"))
HOSTILE = '<script>alert("x")</script> \\input{/etc/passwd} $x$ 50%_a|b'


def language(store, model: str, bits: float, **cell) -> None:
    rows = [store.row("bits_per_byte", bits, "validation"), store.row("unigram_bits_per_byte", 4.5, "validation")]
    store.run(model, "language", stages={"train": [*rows, store.row("trigram_bits_per_byte", 2.9, "validation")]}, **cell)


def recall(store, model: str, accuracy: float, *, reachable: float = 1.0, **cell) -> None:
    rows = [store.row("accuracy", accuracy, "test")]
    rows += [store.row("chance", 1 / pairs, "test", num_pairs=pairs) for pairs in (4, 8)]
    store.run(model, "mqar", stages={"test": [*rows, store.row("reachable_accuracy", reachable, "test")]}, **cell)


def made(store) -> Table:
    store.request()
    return comparison(load_frames(store.root, "quick"), columns=COLUMNS, floors=FLOORS)


def texts(table: Table) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_one_seed_prints_no_interval(store) -> None:
    language(store, "transformer", 2.25)
    recall(store, "transformer", 0.5)
    table = made(store)
    assert table.header == ("model", "parameters", "language bits per byte", "MQAR accuracy", "seeds")
    assert texts(table)["TRANSFORMER"] == ["1,000", "2.250", "0.500", "n=1"]
    assert "One seed each (n=1): differences between models may be chance." in table.notes


def test_seeds_print_their_t_interval(store) -> None:
    for seed, bits in enumerate((2.0, 2.1, 2.2)):
        language(store, "mesanet", bits, seed=seed)
    # 4.302653 * 0.1 / sqrt(3)
    assert texts(made(store))["MESANET"] == ["1,000", "2.100 ±\N{NO-BREAK SPACE}0.248", "n=3"]


def test_floors_have_rows_of_their_own(store) -> None:
    language(store, "mesanet", 2.0)
    recall(store, "mesanet", 0.5)
    table = texts(made(store))
    assert table["unigram floor"] == ["", "4.500", "", ""]
    assert table["trigram floor"] == ["", "2.900", "", ""]
    assert table["chance"] == ["", "", "0.188", ""]


def test_best_and_second_by_the_metrics_direction_and_as_printed(store) -> None:
    for model, bits, accuracy in (("mesanet", 2.1, 0.9), ("gla", 2.2, 0.95), ("hawk", 2.3, 0.8), ("mamba2", 2.3, 0.8001)):
        for seed in range(4):
            language(store, model, bits, seed=seed)
            recall(store, model, accuracy, seed=seed)
    marks = {row[0].text: [cell.mark for cell in row[1:4]] for row in made(store).rows}
    assert marks["MESANET"] == ["", "best", "second"]
    assert marks["GLA"] == ["", "second", "best"]
    assert marks["HAWK"] == ["", "", ""]
    assert marks["MAMBA2"] == ["", "", ""]
    assert marks["unigram floor"] == ["", "", ""]


def test_what_did_not_finish_is_named_and_counted(store) -> None:
    language(store, "mesanet", 2.0)
    store.ask("mesanet", "mqar")
    language(store, "gla", 2.1)
    store.run("gla", "mqar", stages={}, status="diverged", reason="loss is nan at step 7")
    language(store, "hawk", 2.1, seed=0)
    store.run("hawk", "language", stages={}, status="out_of_memory", seed=1)
    store.run("mamba2", "language", stages={})
    table = made(store)
    assert texts(table)["MESANET"][2] == "missing"
    assert texts(table)["GLA"][2] == "diverged"
    assert texts(table)["MAMBA2"][1] == "not measured"
    assert texts(table)["HAWK"] == ["1,000", "2.100 (n=1;\N{NO-BREAK SPACE}out of memory)", "not asked", "n=2"]
    assert table.notes[0] == "7 runs asked for: 4 done, 1 missing, 1 diverged, 1 out of memory."
    assert "diverged: GLA, mqar, seed 0 (loss is nan at step 7)." in table.notes
    assert "missing: MESANET, mqar, seed 0." in table.notes


def test_a_window_shows_what_it_could_answer_at_best(store) -> None:
    recall(store, "swa4", 0.2, reachable=0.25)
    assert texts(made(store))["SWA4"][0] == "0.200 (≤\N{NO-BREAK SPACE}0.250)"


def test_arms_that_differ_in_more_than_the_seed_are_not_averaged(store) -> None:
    language(store, "mesanet", 2.0, size="tiny")
    language(store, "mesanet", 1.8, size="small")
    language(store, "gla", 2.0, group="-lr1")
    language(store, "gla", 1.5, group="-lr2")
    assert {arm: row[1] for arm, row in texts(made(store)).items() if "floor" not in arm} == {
        "GLA, gla-tiny-language-lr1": "2.000",
        "GLA, gla-tiny-language-lr2": "1.500",
        "MESANET, small": "1.800",
        "MESANET, tiny": "2.000",
    }


def test_rows_stand_in_one_order_whatever_was_asked_first(store) -> None:
    for model in ("mesanet", "zeta", "swa64", "gla", "swa4", "transformer"):
        language(store, model, 2.0)
    assert [row[0].text for row in made(store).rows][:6] == ["TRANSFORMER", "SWA4", "SWA64", "GLA", "MESANET", "ZETA"]


def test_runs_of_other_tasks_are_not_in_it(store) -> None:
    language(store, "mesanet", 2.0)
    store.run("mesanet", "mqar", stages={}, status="diverged", varied={"size.head_dim": 4})
    recall(store, "gla", 0.5, varied={"size.head_dim": 8})
    store.request()
    table = comparison(load_frames(store.root, "quick"), columns=COLUMNS[:2], floors={})
    assert list(texts(table)) == ["MESANET"]
    assert table.notes[0] == "1 run asked for: 1 done."


def test_a_column_may_be_of_one_size_and_one_slice(store) -> None:
    for size, accuracy in (("tiny", 0.5), ("small", 0.7)):
        rows = [store.row("accuracy", accuracy + pairs / 100, "test", num_pairs=pairs) for pairs in (4, 8)]
        store.run("mesanet", "mqar", size=size, stages={"test": rows})
    # The whole split is no stand-in for a slice, nor another slice.
    store.run("gla", "mqar", size="small", stages={"test": [store.row("accuracy", 0.9, "test"), rows[0]]})
    store.request()
    column = COLUMNS[2].replace({"size": "small", "slice": "num_pairs=8"})
    table = comparison(load_frames(store.root, "quick"), columns=[column], floors={})
    assert texts(table) == {"GLA": ["not measured", "n=1"], "MESANET, small": ["0.780", "n=1"]}


def test_tasks_that_nobody_asked_for_are_no_data(store) -> None:
    language(store, "mesanet", 2.0)
    store.request()
    with pytest.raises(NoData, match="mqar"):
        comparison(load_frames(store.root, "quick"), columns=COLUMNS[2:], floors={})


def test_a_command_in_a_note_can_be_copied_from_markdown() -> None:
    command = "python -m suite run 'eval.tasks=[a_b]' model=mesanet"
    note = f"A_b is filled by: {command} (2 trainings); {command}; python -m suite run model=`<b>`"
    said = to_markdown(Table(pd.DataFrame(), ("model",), (), notes=(note,))).splitlines()[-1]
    hostile = "python -m suite run model=\\`&lt;b&gt;\\`"
    assert said == f"A\\_b is filled by: `{command}` (2 trainings); `{command}`; {hostile}"


def test_hostile_strings_are_escaped_everywhere(store) -> None:
    language(store, "mesanet", 2.0, label=HOSTILE)
    table = made(store)
    assert "<script" not in to_html(table) and "&lt;script&gt;" in to_html(table)
    assert "<script" not in to_markdown(table)
    latex = to_latex(table)
    assert r"\textbackslash{}input\{/etc/passwd\} \$x\$ 50\%\_a\textbar{}b" in latex
    assert not re.search(r"\\input", latex)
    # A cell of Markdown ends at its own borders: the label's | is not one.
    assert len(re.findall(r"(?<!\\)\|", to_markdown(table).splitlines()[2])) == len(table.header) + 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "+0.123"), (-0.12345, "−0.123"), (-0.0001, "+0.000"), (float("nan"), "+nan")]
)
def test_a_difference_has_its_sign(value: float, text: str) -> None:
    assert signed(value, 3) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23e-5, "1.2e-5"), (1e-4, "1e-4"), (-3e-12, "−3e-12"), (3.0, "3.0"), (76.4, "76"), (4e7, "4e7"), (float("inf"), "inf")],
)
def test_a_number_of_any_size_is_short(value: float, text: str) -> None:
    assert scientific(value) == text


def test_renderings_mark_best_and_second(store) -> None:
    for seed in (0, 1):
        language(store, "mesanet", 2.0, seed=seed)
        language(store, "gla", 2.1, seed=seed)
    table = made(store)
    assert "<b>2.000</b>" in to_html(table) and "<u>2.100</u>" in to_html(table)
    assert r"\textbf{2.000}" in to_latex(table) and r"\underline{2.100}" in to_latex(table)
    assert "**2.000**" in to_markdown(table) and "*2.100*" in to_markdown(table)
    assert 'data-sort="2.1"' in to_html(table)
    assert r"\begin{tabular}{@{}lrrr@{}}" in to_latex(table)
    assert to_markdown(table).splitlines()[1] == "| --- | ---: | ---: | ---: |"


def test_studies_that_another_experiment_asked_for_of_the_same_run_are_left_out(store) -> None:
    rows = [store.row("nll", 1.0, "validation", max_steps=5)]
    folder = store.run("mesanet", "language", stages={"solver": rows, "lm_eval": [store.row("accuracy", 0.5, "test")]})
    other = [store.row("nll", 2.0, "validation", max_steps=7)]
    write(folder / "eval" / "solver-11111111.json", schema=1, stage="solver", settings={}, rows=other)
    store.request("before_there_were_studies")
    store.cells[0]["studies"] = ["solver-00000000"]
    store.request("asks")
    assert set(load_frames(store.root, "before_there_were_studies").results["value"]) == {0.5, 1.0, 2.0}
    assert set(load_frames(store.root, "asks").results["value"]) == {0.5, 1.0}


def test_arms_on_different_texts_are_named_with_their_text(store) -> None:
    for model, digest in (("mesanet", "a1"), ("gla", "b2")):
        rows = [store.row("bits_per_byte", 2.0, "validation")]
        store.run(model, "language", stages={"train": rows}, facts={"data_fingerprint": 32 * digest})
    store.request()
    (note,) = (note for note in outcome_notes(load_frames(store.root, "quick").cells) if "several texts" in note)
    assert note.endswith("no comparison: stdlib a1a1a1 (MESANET); stdlib b2b2b2 (GLA).")


def test_of_two_evaluations_over_as_much_that_counts_which_more_runs_have(store) -> None:
    for model, evaluations in (("mesanet", (0, 1)), ("gla", (0,))):
        folder = store.run(model, "language", stages={})
        for number in evaluations:
            rows = [store.row("accuracy", 0.5 + number / 10, "test", benchmark="recall", shots=1)]
            path = folder / "eval" / f"lm_eval-{8 * str(number)}.json"
            write(path, schema=1, stage="lm_eval", settings={"fewshot_seed": number}, rows=rows)
    store.request()
    assert load_frames(store.root, "quick").results["value"].tolist() == [0.5, 0.5]


def test_what_is_not_known_of_the_whole_is_the_mean_of_its_parts_and_not_of_settings_or_of_ranges(store) -> None:
    by_pairs = [store.row("chance", value, "test", num_pairs=pairs) for pairs, value in ((4, 0.25), (8, 0.125))]
    overlap = [store.row("chance", 0.5, "test", position_low=low, position_high=8) for low in (0, 4)]
    solver = [store.row("chance", 0.5, "validation", max_steps=steps) for steps in (1, 2)]
    store.run("mesanet", "mqar", stages={"test": by_pairs, "solver": solver})
    store.run("gla", "mqar", stages={"test": [*by_pairs, *overlap], "solver": solver[:1]})
    store.request()
    frames = load_frames(store.root, "quick")
    test, solved = (Column(metric="chance", task="mqar", stage=stage, split=split) for stage, split in PLACES)
    assert set(per_run(frames, test, "chance")) == {0.1875} and len(per_run(frames, test, "chance")) == 2
    # At one setting of a study it is the run's.
    assert per_run(frames, solved, "chance").to_dict() == {"gla-tiny-mqar-0": 0.5}
