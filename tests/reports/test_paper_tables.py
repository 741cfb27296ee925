"""The tables of a published study beside a store: what stands in a cell, what is chosen, and what fills what is blank."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from published_runs import NAMES, STUDY, add_model, many_runs

from conf.settings import RequestError
from reports.kit.beside import beside
from reports.kit.build import build_report
from reports.kit.fills import fills, hours_of, training_flops, weights_of
from reports.kit.page import bound_part, read_page
from reports.kit.parts import Frames, Table, no_frames
from reports.kit.render import to_markdown
from reports.kit.stored import stored
from reports.kit.study import CELL, numbers_of, printed_rows
from reports.pages.paper.paper_settings import configured_rate, costs, learning_rates
from reports.pages.paper.paper_tables import printed_table
from suite import reporting
from suite.cli import main
from suite.reporting import page_of, stored_frames

PAGE = page_of("paper")
TABLES = [part for part in PAGE.parts if not part.type.startswith("figures_")]
TEXTS = {"SLIM": "slimpajama", "WIKI": "wikitext", "PG19": "pg19", "GOV": "govreport", "QASP": "qasper"}


def frames(store) -> Frames:
    return stored_frames(store.root, PAGE)


def nothing() -> Frames:
    return no_frames({"experiment": None, "created": "", "overrides": [], "where": "task=language", "page": "paper"})


def cell(table: Table, model: str, column: str, *, size: str = "400M", tokens: str = "15B") -> str:
    """The text of a cell."""
    (row,) = [row for row in table.rows if [entry.text for entry in row[:3]] == [size, tokens, model]]
    return row[table.header.index(column)].text.replace("\N{NO-BREAK SPACE}", " ")


def drawn(name: str, found: Frames) -> Table:
    (part,) = [part for part in PAGE.parts if part.name == name]
    made = bound_part(part)(found)
    assert isinstance(made, Table)
    return made


@pytest.mark.parametrize("name", [part.name for part in TABLES if part.type == "paper_tables.printed_table"])
def test_an_empty_store_has_every_printed_number_and_the_commands_that_fill_the_table(name: str) -> None:
    if name.startswith("other_"):
        pytest.skip("nothing is printed of other sizes")
    table = drawn(name, nothing())
    assert len(table.rows) and table.data["published"].notna().any() and table.data["mean"].isna().all()
    said = " ".join(table.notes)
    assert "are blank here" in said and "python -m suite run task=language recipe=mesanet_" in said
    assert "FLOPs" in said and "hours" in said
    printed = table.data["published"].dropna()
    texts = [entry.text.replace("\N{NO-BREAK SPACE}", " ") for row in table.rows for entry in row[3:]]
    assert sum(text.startswith("– / ") and not text.endswith("/ – / –") for text in texts) == len(printed)


def test_the_page_of_an_empty_store_is_drawn_and_its_tables_are_written_as_csv_and_latex(tmp_path: Path) -> None:
    index = build_report(PAGE, nothing(), tmp_path)
    assert "The store has no run for this report." in index.read_text()
    for part in TABLES:
        if part.type == "paper_tables.printed_table" and not part.name.startswith("other_"):
            assert {*CELL, "mean", "published", "difference"} <= set(pd.read_csv(tmp_path / f"{part.name}.csv"))
            assert r"\toprule" in (tmp_path / f"{part.name}.tex").read_text()


@pytest.mark.slow
def test_the_page_of_an_empty_store_is_drawn_by_the_command_line_without_torch(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    line = ["report", "paper", f"paths.results={tmp_path}/store", f"paths.reports={tmp_path}/reports"]
    code = f"import sys; from suite.cli import main; print(main({line}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "(0 runs)" in done.stdout and done.stdout.endswith("0 False\n")


def test_a_folder_that_is_not_there_is_still_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "paper", f"paths.results={tmp_path / 'nothing'}"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_where_nothing_was_run_yet_the_report_is_drawn_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "build_report", lambda page, found, folder, sheet: folder)
    folder, found = reporting.draw(["paper"])
    assert folder.parts[-1] == "paper" and found.cells.empty
    with pytest.raises(RequestError, match="is no folder"):
        reporting.draw(["quick"])


def test_a_cell_is_ours_over_seeds_and_what_is_printed_and_the_difference(store) -> None:
    for seed, value in enumerate((13.4, 13.5, 13.6)):
        add_model(store, "mesanet", seed=seed, nll=2.6, perplexities={("slimpajama", 2048): value})
    add_model(store, "gla", nll=2.6, perplexities={("slimpajama", 2048): 14.0})
    table = printed_table(frames(store), study="mesanet", table="10", sizes=["400M"])
    # 4.302653 standard errors of 0.1 / sqrt 3.
    assert cell(table, "MESANET", "SLIM") == "13.50 ± 0.25 / 13.44 / +0.06"
    assert cell(table, "GLA", "SLIM") == "14.00 / 13.69 / +0.31"
    assert cell(table, "Mamba2", "SLIM") == "– / 14.45 / –"
    assert cell(table, "MESANET", "SLIM", tokens="50B") == "– / 12.34 / –"


def test_averages_are_of_runs_that_have_all_their_columns(store) -> None:
    scores = dict.fromkeys((NAMES[name] for name in STUDY.split["global"]), 0.5)
    add_model(store, "mesanet", scores=scores | {"hellaswag": 0.3, "piqa": 0.6})
    table = printed_table(frames(store), study="mesanet", table="14", sizes=["400M"])
    assert cell(table, "MESANET", "AVG-global").startswith("45.00 / ")
    assert cell(table, "MESANET", "AVG-local").startswith("– / ")
    aggregates = printed_table(frames(store), study="mesanet", table="3")
    assert "MESANET" not in {row[2].text for row in aggregates.rows if row[1].text == "15B"}


def test_of_several_rates_of_a_model_that_of_the_best_validation_counts(store) -> None:
    for lr, nll, value in ((1e-3, 2.7, 15.0), (2e-3, 2.6, 14.0), (4e-3, 2.8, 13.0)):
        add_model(store, "gla", lr=lr, nll=nll, perplexities={("slimpajama", 2048): value})
    made = frames(store)
    table = printed_table(made, study="mesanet", table="10", sizes=["400M"])
    assert cell(table, "GLA", "SLIM").startswith("14.00 / ")
    assert any("GLA (3 settings)" in note for note in table.notes)
    rates = learning_rates(made, study="mesanet")
    assert cell(rates, "GLA", "ours") == "0.002" and cell(rates, "GLA", "rates tried") == "3"


def test_a_perplexity_on_the_validation_split_stands_in_where_no_other_is(store) -> None:
    folder = add_model(store, "gla", nll=float(np.log(13.0)))
    config = (folder / "run.json").read_text()
    (folder / "run.json").write_text(config.replace('"data": "stdlib"', '"data": "slimpajama"'))
    table = printed_table(frames(store), study="mesanet", table="10", sizes=["400M"])
    assert cell(table, "GLA", "SLIM") == "13.00 / 13.69 / −0.69"
    assert "On the validation split of the training: SLIM." in table.notes


def test_lm_evals_own_accuracy_stands_in_where_the_papers_scoring_is_not_stored(store) -> None:
    folder = add_model(store, "gla", scores={"piqa": 0.66})
    (path,) = folder.glob("eval/lm_eval-*.json")
    path.write_text(path.read_text().replace("accuracy_per_token", "accuracy"))
    table = printed_table(frames(store), study="mesanet", table="14", sizes=["400M"])
    assert cell(table, "GLA", "PIQA").startswith("66.00 / ")
    assert any("no run has the paper's scoring: PIQA" in note for note in table.notes)


def test_scores_on_other_documents_are_named(store) -> None:
    for model in ("gla", "mesanet", "hawk"):
        folder = add_model(store, model, scores={"piqa": 0.66})
    (path,) = folder.glob("eval/lm_eval-*.json")
    path.write_text(path.read_text().replace('"count": 10', '"count": 7'))
    notes = printed_table(frames(store), study="mesanet", table="14", sizes=["400M"]).notes
    (note,) = [note for note in notes if note.startswith("piqa, 0-shot")]
    assert note.endswith("settings of the benchmark than most, which can't be compared: HAWK (7 documents).")


def test_shots_and_contexts_are_columns_of_their_own(store) -> None:
    scores = {"cycle_letters_10shot": 0.05, "niah_noise_4096": 0.9, "wmt14_fr_en_5shot": 7.5}
    add_model(store, "mesanet", size="1b", tokens="50B", scores=scores)
    found = frames(store)
    assert cell(drawn("table_17", found), "MESANET", "cycle letters, 10-shot", size="1B", tokens="50B").startswith("5.00 / ")
    assert cell(drawn("table_18", found), "MESANET", "FR-EN, 5-shot", size="1B", tokens="50B").startswith("7.50 / ")
    assert cell(drawn("table_19", found), "MESANET", "NIAH noise, 4,096 tokens", size="1B", tokens="50B").startswith(
        "90.00 / 95.10 ± 3.9"
    )


def test_sizes_that_the_paper_does_not_have_stand_in_tables_of_their_own(store) -> None:
    add_model(store, "mesanet", size="small", tokens=246_000_000, scores={"piqa": 0.55})
    table = drawn("other_reasoning", frames(store))
    assert [entry.text for entry in table.rows[0][:3]] == ["small", "246M", "MESANET"]
    assert cell(table, "MESANET", "PIQA", size="small", tokens="246M") == "55.00 / – / –"
    assert "small" not in {row[0].text for row in drawn("table_14_400m", frames(store)).rows}


def test_a_model_that_the_paper_does_not_have_is_shown_beside_its_own(store) -> None:
    add_model(store, "kda", perplexities={("slimpajama", 2048): 13.0})
    table = printed_table(frames(store), study="mesanet", table="10", sizes=["400M"])
    assert cell(table, "KDA", "SLIM") == "13.00 / – / –"


def test_what_is_trained_but_not_measured_is_evaluated_and_what_is_neither_is_trained(store) -> None:
    folder = add_model(store, "mesanet", nll=2.6)
    table = printed_table(frames(store), study="mesanet", table="10", sizes=["400M"])
    trained, evaluated = ([note for note in table.notes if f"python -m suite {verb} " in note] for verb in ("run", "evaluate"))
    assert len(trained) == 2 and "model=transformer" in trained[0] and "mesanet," not in trained[0].partition(" data=")[0]
    assert len(evaluated) == 1 and f"run={folder.name}" in evaluated[0] and "nothing is trained" in evaluated[0]
    # The csv says it of every blank cell.
    data = table.data.set_index(["train_tokens", "model"])["filled_by"]
    assert data["15B", "mesanet"].str.startswith(f"python -m suite evaluate run={folder.name} ").all()
    assert (
        data["15B", "gla"]
        .str.startswith("python -m suite run task=language recipe=mesanet_15b size=400m model=transformer")
        .all()
    )


def test_what_rows_repeat_of_their_run_is_what_every_store_has(store) -> None:
    add_model(store, "gla", nll=2.6)
    found = frames(store)
    assert not [name for name in found.results if "." in name] and "train.lr" in found.runs
    assert set(found.results["arm"]) == set(found.cells["arm"])


def test_a_training_costs_six_flops_a_weight_and_token() -> None:
    # Counted layer by layer in the paper's sizes: 145.9, 433.1 and 936.0 million.
    assert [round(weights_of(size) / 1e6, 1) for size in ("140m", "400m", "1b")] == [145.9, 433.1, 936.0]
    assert training_flops(STUDY, "1B", "50B") == pytest.approx(6 * 936.0e6 * 50e9, rel=1e-3)
    assert hours_of(0.4 * 989e12 * 3600) == 1.0


def test_a_command_is_read_by_a_shell_as_it_is_meant() -> None:
    blank = pd.DataFrame({"size": ["1B"], "train_tokens": ["50B"], "model": ["gla"], "run_ids": [""]})
    (fill,) = fills(STUDY, blank, STUDY.tables["12"].evaluation)
    words = shlex.split(fill.command)
    assert words[:4] == ["python", "-m", "suite", "run"] and "eval.contexts=[32768]" in words and "size=1b" in words


@pytest.mark.parametrize("size", ["400M", "1B"])
def test_the_printed_aggregates_are_the_means_of_the_printed_tables(size: str) -> None:
    numbers = numbers_of("mesanet")
    table = printed_rows("mesanet", "3")
    for column, members in STUDY.tables["3"].averages.items():
        theirs = table[(table["size"] == size) & (table["dataset"] == column)].set_index("model")["value"]
        shots = table.loc[table["dataset"] == column, "shots"].iloc[0]
        own = numbers[(numbers["size"] == size) & (numbers["train_tokens"] == "50B") & numbers["dataset"].isin(members)]
        own = own[(own["metric"] != "perplexity") & (np.isnan(shots) | (own["shots"] == shots))]
        means = own.groupby("model")["value"].mean().reindex(theirs.index)
        # Scrambles are printed to a tenth.
        assert means.to_numpy() == pytest.approx(theirs.to_numpy(), abs=0.06 if column == "scramble" else 0.011)


def test_the_configuration_has_the_printed_rates() -> None:
    table = learning_rates(nothing(), study="mesanet")
    assert len(table.rows) == 54 and table.notes[0] == "The configuration has every printed rate."
    assert configured_rate(STUDY, "400M", "15B", "swa64") == 1e-3
    assert np.isnan(configured_rate(STUDY, "small", "15B", "mesanet"))


def test_formulas_of_a_head_have_the_numbers_that_the_suite_counts(store) -> None:
    table = costs(nothing(), study="mesanet")
    rows = {row[0].text: [entry.text for entry in row] for row in table.rows}
    assert rows["MesaNet"][1:5] == ["2 n²", "32,768", "6 n² + 2 k n²", "1,081,344"]
    add_model(store, "mesanet")
    measured = costs(frames(store), study="mesanet")
    assert measured.header[-2:] == ("400M: state", "400M: most forward FLOPs per token")
    assert [entry.text for entry in measured.rows[-1][-2:]] == ["4,096", "5,000"]


def test_a_table_is_markdown_that_shows_its_three_numbers(store) -> None:
    add_model(store, "gla", perplexities={("slimpajama", 2048): 14.0})
    text = to_markdown(printed_table(frames(store), study="mesanet", table="10", sizes=["400M"]))
    assert "| 14.00 / 13.69 / +0.31 |" in text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"tasks": ["languages"]}, "language"), ({"tasks": ["language"], "experiment": "quick"}, "tasks"), ({"tasks": []}, "tasks")],
)
def test_a_page_is_of_tasks_or_of_an_experiment(tmp_path: Path, changed: dict, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"parts": [{"name": "x", "type": "tables.settings", "arguments": {"facts": []}}], **changed}))
    with pytest.raises(RequestError, match=said):
        read_page(path)


def test_one_run_counts_once_however_often_it_is_asked(store) -> None:
    add_model(store, "gla", perplexities={("slimpajama", 2048): 14.0, ("pg19", 2048): 15.0})
    found = frames(store)
    data = beside(found, "mesanet", "10", sizes=["400M"], models=["gla"])
    assert list(data.loc[data["mean"].notna(), "n"]) == [1, 1]
    assert stored(found, "mesanet") is stored(found, "mesanet")


@pytest.mark.slow
def test_all_tables_of_ten_thousand_runs_take_seconds(tmp_path: Path) -> None:
    made = many_runs(10_000)
    start = time.process_time()
    for part in TABLES:
        try:
            bound_part(part)(made)
        except ValueError as nothing_there:
            assert "no run" in str(nothing_there)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(("tokens", "title"), [(15.0e9, "15B"), (14.9e9, "15B"), (14.0e9, None), (50.3e9, "50B"), (1.0, None)])
def test_tokens_are_the_papers_to_a_hundredth(tokens: float, title: str | None) -> None:
    assert STUDY.tokens_of(tokens) == title
    assert STUDY.size_of("140m") == STUDY.size_of("145m") == "145M" and STUDY.size_of("tiny") is None
