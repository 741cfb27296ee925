"""Laws that every report in conf/report and every part in reports/pages keeps, without being listed anywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from invented_runs import FEW, configurations, invent

from conf.groups import options
from reports.kit import save
from reports.kit.build import build_report
from reports.kit.page import Page, Part, part_function, read_page
from reports.kit.parts import Frames, load_frames
from reports.kit.tables import Column
from reports.pages.sweep import scores
from suite.metrics import METRICS
from suite.naming import varying

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "conf" / "report").glob("*.yaml"))
# A report of all runs of some tasks is no experiment's, and has tests of its own.
PAGE = {path.stem: read_page(path) for path in ALL}
REPORTS = [name for name, page in PAGE.items() if page.experiment]
KIT, PAGES = (sorted((ROOT / "reports" / wing).rglob("*.py")) for wing in ("kit", "pages"))
PARTS = [
    f"{path.stem}.{name}"
    for path in PAGES
    for name, function in inspect.getmembers(
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)), inspect.isfunction
    )
    if function.__annotations__.get("return") in ("Drawing", "Table") and function.__module__.endswith(f".{path.stem}")
]


def built(store, page: Page, folder: Path) -> tuple[str, Frames]:
    """The text of a page, and what it is drawn from."""
    frames = load_frames(store.root, page.experiment)
    return build_report(page, frames, folder).read_text(), frames


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch) -> None:
    monkeypatch.setattr(save, "PNG_DPI", 20)


def without_repeated_parts() -> list[str]:
    """As many reports as it takes to draw every part; NAME is the same over a larger grid than NAME_small."""
    parts = {name: {part.type for part in PAGE[name].parts} for name in REPORTS if f"{name}_small" not in REPORTS}
    for name in list(parts):
        if parts[name] <= set().union(*(others for other, others in parts.items() if other != name)):
            del parts[name]
    return list(parts)


def drawn_first(names: list[str]) -> dict[str, tuple[Part, ...]]:
    """By report those of its parts that none before it draws, or one of them."""
    seen, found = set[str](), dict[str, tuple[Part, ...]]()
    for name in names:
        found[name] = tuple(part for part in PAGE[name].parts if part.type not in seen) or PAGE[name].parts[:1]
        seen |= {part.type for part in PAGE[name].parts}
    return found


KEPT = without_repeated_parts()
DRAWN = drawn_first(KEPT)


@pytest.fixture(scope="module", params=[name if name in KEPT else pytest.param(name, marks=pytest.mark.slow) for name in REPORTS])
def name(request: pytest.FixtureRequest) -> str:
    """The scope is the module, so that the tests of one report stand together and invent its runs in one process."""
    return request.param


@pytest.mark.slow
def test_every_report_draws_its_experiment_with_a_csv_beside_every_part(store, tmp_path: Path, name: str) -> None:
    page = PAGE[name]
    invent(store, page.experiment)
    text, _ = built(store, page, tmp_path)
    assert page.name == name
    if name not in options("experiment") and "Nothing to show" in text:
        pytest.skip(f"experiment={page.experiment} has no run for it: what is asked on the command line is drawn")
    assert "Nothing to show" not in text and "not measured" not in text
    for part in page.parts:
        written = {path.suffix for path in tmp_path.glob(f"{part.name}.*")}
        assert written in ({".csv", ".png", ".pdf"}, {".csv", ".md", ".tex"})
        table = pd.read_csv(tmp_path / f"{part.name}.csv")
        assert len(table)
        for metric in set(table.get("metric", ())):
            # What a metric becomes by is no metric of its own.
            assert metric.removesuffix("_difference").removesuffix("_change") in METRICS


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_is_said_and_a_missing_run_is_named(store, tmp_path: Path, name: str) -> None:
    page = msgspec.structs.replace(PAGE[name], parts=DRAWN.get(name, PAGE[name].parts))
    alone = len(configurations(page.experiment, FEW)) == 1
    # A store that has not one of its runs has no report.
    invent(store, page.experiment, seeds=(0, 1) if alone else (0,), skipped=1, most=FEW)
    text, frames = built(store, page, tmp_path)
    assert alone or "n=1 seed each" in text
    assert "1 missing" in text
    cells = frames.cells
    assert cells.loc[cells["status"] == "missing", "arm"].notna().all()


@pytest.fixture(scope="module")
def used() -> set[str]:
    """The parts that a report has."""
    return {part.type for page in PAGE.values() for part in page.parts}


@pytest.fixture(scope="module")
def tests() -> str:
    """The text of every test of reports."""
    return "\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_used_or_tested(part: str, used: set[str], tests: str) -> None:
    name = part.split(".")[1]
    assert part in used or f"{name}(" in tests
    assert part_function(part).__name__ == name


def test_a_part_is_found_by_the_name_of_one_file_alone() -> None:
    stems = [path.stem for path in PAGES if path.stem != "__init__"]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize("path", KIT + PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_pages_import_the_kit_and_the_kit_no_pages(path: Path) -> None:
    names = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("reports.") and not name.startswith("reports.kit")]


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("model.mixer.some_new_value", (1, 2), "some new value {}"),
        ("size.d_model", (64, 128), "d_model {}"),
        ("task.num_pairs", ("[2,4]", "[8]"), "num pairs {}"),
        ("model.mixer.solver.name", ("cg", "chebyshev"), "{} solver"),
        ("model.mixer.output_gate", (True, False), None),
    ],
)
def test_a_value_that_nobody_listed_names_the_runs_that_it_tells_apart(store, key, values, words) -> None:
    for model, value in ((model, value) for model in ("gla", "mesanet") for value in values):
        train = [store.row("nll", 1.0, "validation")]
        # What follows from the value, and what is told of no run.
        others = {"size.mlp_dim": values.index(value), "model.label": str(value), "compute.zone": f"{value}{model}"}
        store.run(model, "language", stages={"train": train}, varied={key: value}, settings=others)
    store.request()
    frames = load_frames(store.root, "quick")
    said = [words.format(value) for value in values] if words else ["output gate", "no output gate"]
    assert set(frames.cells["arm"]) == {f"{model}, {each}" for model in ("GLA", "MESANET") for each in said}
    assert varying(frames.runs) == [key, "compute.zone", "size.mlp_dim"]
    if words and isinstance(values[0], int):
        column = Column(metric="nll", task="language", stage="train", split="validation")
        table = scores(frames, column=column, fact=key, best="fact")
        assert table.header == ("model", *said)


def test_a_request_that_is_older_than_settings_has_those_of_its_runs(store) -> None:
    for lr, seed in ((0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)):
        cell = {"seed": seed, "varied": {"train.lr": lr}}
        if (lr, seed) == (0.2, 1):
            store.ask("mesanet", "language", **cell)
        else:
            store.run("mesanet", "language", stages={}, **cell)
    for cell in store.cells:
        del cell["train.lr"]
    store.ask("mesanet", "language", group="-of-which-nothing-is-known")
    store.request()
    cells = load_frames(store.root, "quick").cells
    # The run that was never begun is another seed of one that was.
    assert cells["train.lr"].tolist()[:4] == [0.1, 0.1, 0.2, 0.2]
    assert cells["arm"].tolist() == [f"MESANET, learning rate {lr}" for lr in (0.1, 0.1, 0.2, 0.2)] + ["MESANET"]
