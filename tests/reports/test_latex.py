"""Tables in a paper of two columns: they compile, and nothing is wider than its place."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from invented_runs import invent
from test_tables import HOSTILE

from conf.groups import find
from reports.kit.latex import plan_of, text_width, to_latex
from reports.kit.page import bound_part, read_page
from reports.kit.parts import Entry, Table, load_frames

HEAD = r"\documentclass[twocolumn]{article}\usepackage[utf8]{inputenc}\usepackage{array,booktabs}\begin{document}"
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")


def table(*rows: tuple[str, ...], header: tuple[str, ...] = ("model", "score"), notes: tuple[str, ...] = ()) -> Table:
    entries = [tuple(Entry(text, float(i) if i and text[:1].isdigit() else None) for i, text in enumerate(row)) for row in rows]
    return Table(None, header, tuple(entries), notes)


def wrong(tables: list[Table], folder: Path) -> list[str]:
    """What pdflatex says of boxes that are too wide and of errors."""
    pieces = [f"\\begin{{{place}}}\n{to_latex(each)}\\end{{{place}}}" for each in tables for place in [plan_of(each).place]]
    (folder / "x.tex").write_text("\n\\clearpage\n".join([HEAD, *pieces, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "x.tex"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False)
    return [line for line in made.stdout.splitlines() if re.match(r"Overfull \\hbox|!", line)] + [str(made.returncode)] * (
        made.returncode != 0
    )


@needs_latex
def test_every_table_of_every_report_fits_a_page_of_two_columns(store, tmp_path: Path) -> None:
    tables = []
    for name in ("quick", "small", "efficiency", "parity", "solver_ablation", "length"):
        page = read_page(find("report", name))
        store.cells.clear()
        store.root = tmp_path / name
        invent(store, page.experiment)
        made = load_frames(store.root, page.experiment)
        for part in page.parts:
            if part.type.split(".")[1] in ("lines", "by_position", "by_length") or "figures" in part.type:
                continue
            drawn = bound_part(part)(made)
            tables += [drawn] if isinstance(drawn, Table) else []
    assert len(tables) > 10
    assert wrong(tables, tmp_path) == []


@needs_latex
def test_hostile_and_endless_texts_compile_within_their_place(tmp_path: Path) -> None:
    endless = "x" * 300
    tables = [
        table((HOSTILE, "1"), ("[4pt] begins a row", "2"), ("*", "3"), notes=(HOSTILE, endless)),
        table((endless, "1"), ("b", "2")),
        table(*[(f"model {i}", *["0.123 [0.100, 0.150]"] * 12) for i in range(3)], header=("model", *["score of it"] * 12)),
        table(("a", "word " * 100, "1"), header=("model", "why", "n")),
        table(("a", "1", "word " * 100), header=("model", "n", endless)),
    ]
    assert wrong(tables, tmp_path) == []


def test_a_narrow_table_stands_in_one_column_a_wide_one_in_two_and_a_wider_one_is_broken() -> None:
    plans = [plan_of(table(("gla", *["0.123"] * n), header=("model", *["score"] * n))) for n in (4, 10, 40)]
    assert [(plan.place, len(plan.parts) > 1) for plan in plans] == [("table", False), ("table*", False), ("table*", True)]
    # Every part begins with the names of the models.
    assert all(part[0] == 0 for part in plans[2].parts)
    assert sorted({i for part in plans[2].parts for i in part}) == list(range(41))


def test_the_width_of_a_text_is_that_of_computer_modern() -> None:
    assert text_width("0000", "small") == pytest.approx(4 * 4.625, rel=0.02)
    assert text_width("0000", "footnotesize") == pytest.approx(4 * 4.25, rel=0.02)


def test_notes_stand_apart_and_short_headers_take_the_place_of_long_ones() -> None:
    made = table(("gla", "0.123"), header=("model", "a very long name of a score"), notes=("One seed.",))
    written = to_latex(Table(None, made.header, made.rows, made.notes, ("model", "score")))
    assert "very long" not in written and "score" in written
    assert written.index(r"\end{tabular}") < written.index("One seed.")
