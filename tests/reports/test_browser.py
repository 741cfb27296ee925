"""The page of a report and that over a store, opened in a headless Chromium as a reader does."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.kit import save
from reports.kit.build import build_report
from reports.kit.index import build_index
from reports.kit.page import Page
from reports.kit.parts import load_frames

pytestmark = pytest.mark.browser
COLUMN = {"metric": "bits_per_byte", "task": "language", "stage": "train", "split": "validation"}
SCORES = {"type": "sweep.scores", "arguments": {"column": COLUMN, "fact": "train.lr", "best": "fact"}}
CURVES = {"type": "sweep.curves", "arguments": {"columns": [COLUMN], "fact": "train.lr"}}
COMPARISON = {
    "type": "tables.comparison",
    "arguments": {"columns": [{"metric": "parameters", "task": "language"}, COLUMN], "floors": {}},
}
TRAINING = {"type": "figures.training_curves", "arguments": {"tasks": ["language"], "smoothing": 0.0}}
PARTS = {"curves": CURVES, "scores": SCORES, "comparison": COMPARISON, "training": TRAINING}
PAGE = {
    "name": "rates",
    "title": "Learning <rates>",
    "experiment": "quick",
    "parts": [{"name": name, "title": name, "caption": f"The {name}.", **part} for name, part in PARTS.items()],
}
TAG = '"><img src=x onerror=alert(1)>'
EVIL = "</script><script>alert(1)</script>'\"&lt;\u2028\u202e javascript:alert(1) " + "long" * 300


def fill(store, *, label: str = "", evil: str = "") -> None:
    """Three models at three learning rates with three seeds; the first says what else it is given."""
    for i, model in enumerate(("gla", "hawk", "mesanet")):
        for lr in (1e-3, 2e-3, 4e-3):
            for seed in range(3):
                value = 2 + 0.1 * i + 0.01 * seed + 20 * lr
                first = i == seed == 0
                settings = {"size.d_model": 64, "train.note": evil if i == 0 else "plain"}
                store.run(
                    model,
                    "language",
                    seed=seed,
                    label=(label if i == 0 else "") or model.upper(),
                    varied={"train.lr": lr} | ({"model.mixer.way": label} if label and i == 0 else {}),
                    settings=settings,
                    stages={"train": [store.row("bits_per_byte", value, "validation")]},
                    curve=[(step, 5 - step / 100) for step in range(1, 300)],
                    status="diverged" if first and evil else "done",
                    reason=evil if first else "",
                )
    store.request()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("needs a Chromium, and there is none here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Any]]:
    """Opens a file, as wide and in the colours that are asked for; nothing may complain, ask or load."""
    contexts, complaints = [], []

    def open_page(path: Path, *, address: str = "", width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else complaints.append(request.url),
        )
        page.goto(path.as_uri() + address)
        page.complaints = complaints
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="module")
def report(store_at, tmp_path_factory) -> Path:
    return drawn(store_at(tmp_path_factory.mktemp("plain") / "results"))


@pytest.fixture(scope="module")
def hostile(store_at, tmp_path_factory) -> Path:
    return drawn(store_at(tmp_path_factory.mktemp("hostile") / "results"), label=TAG, evil=EVIL)


def drawn(store, **said: str) -> Path:
    fill(store, **said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "PNG_DPI", 20)
        return build_report(Page.read(PAGE), load_frames(store.root, "quick"), store.root.parent / "report")


def texts(page, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "found => found.filter(e => e.offsetParent !== null).map(e => e.textContent)")


def point_at(page, figure: str, label: str) -> tuple[float, float]:
    """Where on the screen the first point of a line is, after scrolling to its figure."""
    box = page.locator(f"[data-figure={figure}]")
    box.scroll_into_view_if_needed()
    place, shown = box.bounding_box(), page.evaluate("name => DATA.figures[name]", figure)
    line = next(line for line in shown["lines"] if line["label"].startswith(label))
    scale = place["width"] / shown["size"][0]
    return place["x"] + line["points"][0][0] * scale, place["y"] + line["points"][0][1] * scale


def test_a_click_on_a_header_sorts_by_the_numbers(report, opened) -> None:
    page = opened(report)
    header = page.locator("#comparison th", has_text="bits per byte")
    for direction in ("ascending", "descending"):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == direction
        shown = [text.split()[0] for text in texts(page, "#comparison tbody td:nth-child(3)")]
        assert shown == sorted(shown, reverse=direction == "descending") and len(shown) == 9


def test_words_leave_the_rows_that_have_them(report, opened) -> None:
    page = opened(report)
    page.fill("#comparison input[type=search]", "mesa 0.002")
    assert texts(page, "#comparison tbody td:first-child") == ["MESANET, learning rate 0.002"]
    assert texts(page, "#comparison .count") == ["1 of 9"]


def test_what_is_downloaded_is_what_is_shown(report, opened) -> None:
    page = opened(report)
    page.fill("#comparison input[type=search]", "gla")
    page.click("#comparison .menu summary")
    page.locator("#comparison .menu label", has_text="parameters").locator("input").uncheck()
    assert "parameters" not in texts(page, "#comparison th")
    page.evaluate("document.querySelector('#comparison tbody td').textContent = '=GLA, \"1\"'")
    with page.expect_download() as found:
        page.click("#comparison .tools >> text=Download CSV")
    assert found.value.suggested_filename == "comparison.csv"
    header, first, *rest = csv.reader(Path(found.value.path()).read_text(encoding="utf-8-sig").splitlines())
    assert header == ["model", "language bits per byte", "seeds"]
    # A spreadsheet would compute what begins like a formula.
    assert first[0] == '\'=GLA, "1"' and first[1].startswith("2.030") and len(rest) == 2


def test_a_point_tells_its_value_its_interval_and_how_many_seeds(report, opened) -> None:
    page = opened(report)
    page.mouse.move(*point_at(page, "curves", "GLA"))
    told = page.locator("#tip").inner_text()
    assert told.splitlines()[0] == "GLA, learning rate 0.001"
    assert "learning rate: 0.001" in told and "bits per byte: 2.03 [2.005, 2.055]" in told
    assert "95 % interval, n = 3" in told and "click for its 3 runs" in told
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_the_arrow_keys_go_from_point_to_point(report, opened) -> None:
    page = opened(report)
    page.focus("[data-figure=curves] svg")
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text() != first
    page.keyboard.press("Enter")
    assert page.locator("#dialog-title").inner_text() == "3 runs"


def test_a_click_on_a_point_leads_to_a_run_with_all_that_is_known(report, opened) -> None:
    page = opened(report)
    page.mouse.click(*point_at(page, "curves", "HAWK"))
    assert len(texts(page, "#dialog tbody tr")) == 3
    page.locator("#dialog tbody button").nth(1).click()
    dialog = page.locator("#dialog")
    assert page.locator("#dialog-title").inner_text() == "HAWK, learning rate 0.001"
    said = dialog.inner_text()
    assert "seed 1" in said and "done" in said and "2.13" in said and "run experiment=quick seed=0,1" in said
    varies = dialog.locator(".varies").first.inner_text()
    assert "train.lr" in varies and "0.001" in varies
    assert len(dialog.locator(".curve polyline").get_attribute("points").split()) == 200
    dialog.locator("summary", has_text="Settings").click()
    assert "size.d_model" in dialog.inner_text()
    assert page.evaluate("location.hash") == "#run=hawk-tiny-language-0.001-1"


def test_a_click_on_a_number_opens_its_runs_and_focus_returns(report, opened) -> None:
    page = opened(report)
    number = page.locator("#scores tbody tr", has_text="MESANET").locator("button[data-runs]").nth(2)
    number.click()
    assert page.locator("#dialog-title").inner_text() == "3 runs"
    assert page.locator("#dialog tbody").inner_text().count("MESANET, learning rate 0.002") == 3
    page.locator("#dialog tbody button").first.click()
    assert page.evaluate("location.hash") == "#run=mesanet-tiny-language-0.002-0"
    page.click("text=‹ all 3")
    page.keyboard.press("Escape")
    assert page.locator("#dialog").is_hidden() and page.evaluate("location.hash") == ""
    assert number.evaluate("button => button === document.activeElement")


def test_a_link_opens_its_run(report, opened) -> None:
    page = opened(report, address="#run=gla-tiny-language-0.004-2")
    assert page.locator("#dialog-title").inner_text() == "GLA, learning rate 0.004"
    page.mouse.click(5, 5)
    assert page.locator("#dialog").is_hidden()
    page.evaluate("location.hash = '#run=hawk-tiny-language-0.001-0'")
    page.wait_for_selector("#dialog-title >> text=HAWK")
    assert opened(report, address="#run=%E0%A4%A").locator("#dialog").is_hidden()


def test_dark_is_chosen_by_the_reader_and_remembered(report, opened) -> None:
    page = opened(report)
    shade, source = "getComputedStyle(document.body).backgroundColor", "document.querySelector('.plot img').src"
    light, paper = page.evaluate(shade), page.evaluate(source)
    page.click("#theme")
    assert page.evaluate(shade) != light and page.evaluate(source) != paper
    page.reload()
    assert page.evaluate(shade) != light
    page.click("#theme")
    assert page.evaluate(shade) == light and page.evaluate(source) == paper
    assert opened(report, scheme="dark").evaluate(shade) != light


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_a_phone_scrolls_no_page_sideways(name, request, opened) -> None:
    page = opened(request.getfixturevalue(name), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("nav").is_hidden()
    page.locator("button[data-runs]").last.click()
    page.locator("#dialog tbody button").first.click()
    assert page.evaluate("dialog.scrollWidth <= dialog.clientWidth")


def test_hostile_names_stay_text(hostile, report, opened) -> None:
    page, plain = opened(hostile), opened(report)
    for selector in ("script", "img", "iframe", "[onerror]", "a[href^='javascript']"):
        assert page.locator(selector).count() == plain.locator(selector).count()
    assert page.title() == PAGE["title"]
    page.mouse.move(*point_at(page, "curves", TAG))
    assert TAG in page.locator("#tip").inner_text()
    page.evaluate("openRun([...Array(27).keys()].find(i => valueOf('reason', i)))")
    said = page.locator("#dialog").inner_text()
    assert TAG in said and "</script><script>alert(1)</script>" in said and "\u202e" not in said
    page.wait_for_timeout(50)


def test_no_other_script_runs_and_nothing_is_fetched(report, opened) -> None:
    page = opened(report)
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.evil = 1'}))")
    assert page.evaluate("fetch('https://example.com').then(() => 'fetched', () => 'refused')") == "refused"
    assert page.evaluate("window.evil ?? null") is None
    assert all("Content Security Policy" in complaint for complaint in page.complaints)
    page.complaints.clear()


MANY = 10_000


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    ids = [f"{i:012x}" for i in range(MANY)]
    names = {"model": ["gla", "mesanet"], "size": ["tiny"], "task": ["mqar"], "data": [None], "backend": ["torch"]}
    runs = pd.DataFrame({name: draw.choice(values, MANY) for name, values in names.items()})
    runs = runs.assign(
        run_id=ids, model_label=runs["model"].str.upper(), seed=draw.integers(0, 5, MANY), status="done", reason=""
    )
    runs["train.lr"] = draw.choice([1e-4, 1e-3, 1e-2], MANY)
    runs["model.mixer.chunk_size"] = 32
    runs["parameters"] = draw.integers(1, 10**6, MANY)
    runs.loc[0, ["model_label", "reason", "status"]] = [TAG, EVIL, "diverged"]
    return runs


@pytest.fixture(scope="module")
def index(report, many, tmp_path_factory) -> Path:
    values = np.random.default_rng(1).random(MANY)
    scores = pd.DataFrame({"metric": "accuracy", "value": values, "stage": "test", "split": "test"}, index=many["run_id"])
    folder = tmp_path_factory.mktemp("reports")
    shutil.copytree(report.parent, folder / "mine")
    (folder / TAG).mkdir()
    (folder / TAG / "index.html").write_text("<title>somebody else's</title>")
    return build_index(many, scores, folder, folder)


def test_an_index_lists_reports_and_links_no_stranger(index, opened) -> None:
    page = opened(index)
    assert page.locator("#reports li").count() == 2
    assert page.locator("#reports a").all_inner_texts() == [PAGE["title"]]
    assert "27 runs" in page.locator("#reports").inner_text() and TAG in page.locator("#reports").inner_text()
    page.click("#reports a")
    assert page.locator("h1").inner_text() == PAGE["title"]


@pytest.mark.parametrize(
    ("typed", "holds"),
    [
        ("model=gla lr<=1e-3 seed!=0", lambda r: (r["model"] == "gla") & (r["train.lr"] <= 1e-3) & (r["seed"] != 0)),
        ("model=gla,mesanet parameters>999000", lambda r: r["parameters"] > 999_000),
        ("MESANET", lambda r: r["model"] == "mesanet"),
        ("chunk_size=32 alert(1)", lambda r: r["status"] == "diverged"),
        ("lr=7", lambda r: r["train.lr"] == 7),
    ],
)
def test_ten_thousand_runs_filter_at_once(index, many, opened, typed, holds) -> None:
    page = opened(index)
    assert index.stat().st_size < 5e6
    # The fastest of some: a busy machine is slower by any factor.
    once = "const start = performance.now(); filterRuns(); return performance.now() - start;"
    timed = f"Math.min(...Array.from({{length: 5}}, () => {{ {once} }}))"
    took, count = page.evaluate(f"typed => {{ filter.value = typed; return [{timed}, found.length]; }}", typed)
    assert count == int(holds(many).sum())
    assert took < 300


def test_a_row_of_the_index_opens_its_run_and_a_header_sorts_all(index, opened) -> None:
    page = opened(index, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#table th button", has_text="score").click()
    start = time.monotonic()
    page.locator("#table th button", has_text="score").click()
    assert time.monotonic() - start < 3
    best = page.evaluate("Math.max(...order.map(i => valueOf('main_score', i)))")
    page.locator("#table tbody tr").first.locator("td").nth(2).click()
    assert f"{best:.4g}" in page.locator("#dialog").inner_text()
    page.locator("#dialog summary", has_text="Settings").click()
    assert "model.mixer.chunk_size" in page.locator("#dialog").inner_text()
    hostile = opened(index, address="#run=000000000000")
    assert TAG in hostile.locator("#dialog-title").inner_text() and hostile.locator("img").count() == 0
