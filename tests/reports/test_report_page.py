"""The whole page: every file is written, nothing is loaded from elsewhere, and nothing in a store is trusted."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pandas as pd
import pytest

from conf.groups import find
from reports.kit.build import build_report
from reports.kit.commands import commands_of
from reports.kit.page import part_function, read_page
from reports.kit.parts import load_frames, with_settings

QUICK = read_page(find("report", "quick"))
HOSTILE = '"><script src=//evil.example/x.js></script>$\\frac{'


def fill(store, *, label: str | None = None) -> None:
    """Two models on both tasks, one of them without its recall."""
    for model in ("transformer", "mesanet"):
        of = {"benchmark": "recall", "shots": 0}
        language = {
            "train": [store.row("bits_per_byte", 2.0, "validation"), store.row("tokens_per_second", 5.0, "train")],
            "position": [
                store.row("nll", 1.0, "validation", examples=[1.0, 2.0], position_low=low, position_high=2 * low)
                for low in (1, 2)
            ],
            "lm_eval": [store.row("accuracy", 0.5, "test", examples=[0.0, 1.0], **of), store.row("chance", 0.25, "test", **of)],
        }
        store.run(model, "language", stages=language, curve=[(1, 3.0), (2, 2.0)], label=label and label + model)
    store.run("mesanet", "mqar", stages={"test": [store.row("accuracy", 0.9, "test")]}, label=label and label + "mesanet")
    store.ask("transformer", "mqar", label=label and label + "transformer")
    store.request()


def test_every_file_is_written_and_linked(store, tmp_path: Path) -> None:
    fill(store)
    index = build_report(QUICK, load_frames(store.root, "quick"), tmp_path / "report")
    assert index == tmp_path / "report" / "index.html"
    text = index.read_text()
    for part in QUICK.parts:
        is_table = part.type in ("tables.comparison", "tables.settings", "matched.costs", "benchmarks.verdicts")
        kinds = (".csv", ".md", ".tex") if is_table else None
        for suffix in kinds or (".png", ".pdf", ".csv"):
            assert (tmp_path / "report" / f"{part.name}{suffix}").stat().st_size > 0
            assert f'href="{part.name}{suffix}"' in text
    assert "2 models on language, mqar, n=1 seed each; 4 runs asked for on 2026-11-22 12:00: 3 done, 1 missing." in text
    assert "python -m suite run experiment=quick seed=0,1" in text
    assert "python 3.11.7; torch 2.13. Report:" in text


@pytest.mark.usefixtures("no_pictures")
def test_the_page_stands_alone(store, tmp_path: Path) -> None:
    fill(store)
    text = build_report(QUICK, load_frames(store.root, "quick"), tmp_path).read_text()
    assert text.count('src="data:image/svg+xml;base64,') == 4
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert "@import" not in text and "url(" not in text


def test_the_same_store_gives_the_same_page(store, tmp_path: Path) -> None:
    fill(store)
    pages = [build_report(QUICK, load_frames(store.root, "quick"), tmp_path / name) for name in ("a", "b")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_hostile_labels_reach_nobody(store, tmp_path: Path) -> None:
    fill(store, label=HOSTILE)
    text = build_report(QUICK, load_frames(store.root, "quick"), tmp_path).read_text()
    # The data and our own script, which alone may run.
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "script-src 'sha256-" in text and "default-src 'none'" in text
    assert "&lt;script src=//evil.example/x.js&gt;" in text


@pytest.mark.usefixtures("no_pictures")
def test_a_part_without_data_says_so_and_leaves_no_old_files(store, tmp_path: Path) -> None:
    (tmp_path / "training.png").write_text("of an earlier report")
    store.run("mesanet", "language", stages={"train": [store.row("bits_per_byte", 2.0, "validation")]})
    store.request()
    text = build_report(QUICK, load_frames(store.root, "quick"), tmp_path).read_text()
    assert "Nothing to show: no run of language, mqar has logged its training." in text
    assert not (tmp_path / "training.png").exists()


def test_an_experiment_that_was_never_asked_for(store, tmp_path: Path) -> None:
    fill(store)
    with pytest.raises(ValueError, match="no results under .* for experiment 'small'"):
        load_frames(store.root, "small")


def test_where_a_run_was_evaluated_twice_the_longer_evaluation_counts(store) -> None:
    folder = store.run("mesanet", "mqar", stages={"test": [store.row("accuracy", 0.9, "test")]})
    shorter = (folder / "eval" / "test-00000000.json").read_text().replace("0.9", "0.1").replace('"count": 10', '"count": 5')
    (folder / "eval" / "test-ffffffff.json").write_text(shorter)
    store.request()
    assert load_frames(store.root, "quick").results["value"].tolist() == [0.9]


@pytest.mark.parametrize(
    "type_name", ["os.system", "figures", "build.build_report", "figures.no_such", "..figures.x", "parts.Table"]
)
def test_a_configuration_names_parts_and_nothing_else(type_name: str) -> None:
    with pytest.raises(ValueError, match="part type"):
        part_function(type_name)


def test_the_command_is_quoted() -> None:
    request = {"experiment": "quick", "overrides": ["experiment=quick", "paths.results=/home/me", "data.path=a b; rm -rf /"]}
    assert commands_of(request) == ["python -m suite run experiment=quick 'data.path=a b; rm -rf /'"]


def test_hundreds_of_settings_are_filled_from_other_seeds_without_a_warning():
    names = [f"train.x{i}" for i in range(300)]
    asked = pd.DataFrame({"run_id": ["a", "b"], "group_id": ["g", "g"]})
    runs = pd.DataFrame(
        {"run_id": ["a"], "group_id": ["g"], "status": ["done"], "backend": ["torch"], **dict.fromkeys(names, [3])}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.PerformanceWarning)
        cells = with_settings(asked, runs)
        cells["arm"] = "one"
    assert (cells[names] == 3).all(axis=None) and cells["backend"].tolist() == ["torch", "torch"]
    assert cells["status"].isna().tolist() == [False, True]
