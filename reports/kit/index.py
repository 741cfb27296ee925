"""The page over a store: every report that was drawn, and every run, to be filtered, sorted and opened. Imports no torch."""

from __future__ import annotations

import datetime
import html
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from reports.kit.details import details, encoded
from reports.kit.document import NAME, document
from suite.metrics import METRICS, axis_label
from suite.naming import varying

SCRIPTS = ("dialog.js", "index.js")
HEAD_BYTES = 8192
"""The element that tells what a page is stands so near to its beginning."""
MOST_COLUMNS = 4
"""Settings that differ between runs, shown at first: the others are chosen from the menu."""
TITLES = {"main_score": "score", "main_metric": "metric", "model_label": "model's name", "when": "when"}


def build_index(runs: pd.DataFrame, scores: pd.DataFrame, reports_dir: Path, results: Path) -> Path:
    """Writes reports_dir/index.html, which needs no other file to be read; returns its path.

    runs: of `suite.results.load_runs`. scores: of `suite.scores.main_scores`, by run_id. results: the store, which says when
    a run was last written where the runs do not.
    """
    reports_dir.mkdir(parents=True, exist_ok=True)
    if "when" not in runs:
        runs = runs.assign(when=[_written(f"{results}/runs/{run_id}/status.json") for run_id in runs["run_id"]])
    table = runs.sort_values("when", ascending=False, kind="stable", ignore_index=True)
    known = scores.reindex(table["run_id"]).reset_index(drop=True)
    table = table.assign(main_score=known["value"], main_metric=known["metric"])
    differing = varying(table)
    data = details(table, differing)
    kept = [name for name in ("model", "size", "task", "seed", *differing[:MOST_COLUMNS]) if "all" not in data["columns"][name]]
    data["columns"] |= {name: encoded(table[name]) for name in ("main_score", "main_metric")}
    data |= {"scores": _main(known), "curves": {}}
    shown = [*(kept if "model" in kept else ["model", *kept]), "main_score", "main_metric", "status", "when"]
    page = document(
        "index.html",
        SCRIPTS,
        data={"runs": data, "figures": {}, "command": None, "shown": shown, "titles": TITLES | _titles(differing)},
        about={},
        title="Runs and reports",
        asked=html.escape(_summary(table)),
        reports=reports_list(reports_dir),
    )
    index = reports_dir / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


def _titles(differing: list[str]) -> dict[str, str]:
    """The last part of a setting's name where no other that differs ends in it."""
    ends = [name.rpartition(".")[2] for name in differing]
    return {name: end for name, end in zip(differing, ends, strict=True) if ends.count(end) == 1}


def _main(known: pd.DataFrame) -> dict[str, Any]:
    """The score by which each run is judged, as `run_details` has all of a report's."""
    kinds: dict[tuple[str, str, str], int] = {}
    of = {}
    for i, row in enumerate(known[["metric", "stage", "split", "value"]].itertuples(index=False, name=None)):
        metric, stage, split, value = row
        if isinstance(metric, str) and pd.notna(value):
            of[i] = [[kinds.setdefault((metric, stage, split), len(kinds)), float(f"{value:.6g}")]]
    better = {name: metric.better for name, metric in METRICS.items()}
    return {"kinds": [[axis_label(m), stage, split, "", better.get(m, "")] for m, stage, split in kinds], "of": of}


def _summary(runs: pd.DataFrame) -> str:
    counts = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in runs["status"].value_counts().items())
    return f"{len(runs):,} runs of {runs['model'].nunique()} models on {runs['task'].nunique()} tasks: {counts}."


def _written(path: str | Path) -> str | None:
    """When a regular file was written, to the minute; None where there is none."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return _minute(found.st_mtime) if stat.S_ISREG(found.st_mode) else None


def _minute(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def reports_list(reports_dir: Path) -> str:
    """The reports in a folder, newest first, as HTML: a link to each of ours, and the name alone of a page of somebody else."""
    found = []
    for path in sorted(reports_dir.glob("*/index.html")):
        folder = path.parent
        made = _written(path)
        if made is None or folder.is_symlink():
            continue
        about = about_page(path)
        if about is None:
            found.append(("", f"<li>{html.escape(folder.name)}/index.html, not a report of this suite</li>"))
            continue
        title, count = html.escape(about["title"]), about["runs"]
        link = f'<a href="{html.escape(quote(folder.name))}/index.html">{title}</a>'
        said = f"{html.escape(folder.name)}, {count:,} run{'' if count == 1 else 's'}, drawn {made}"
        found.append((made, f'<li>{link} <span class="note">{said}</span></li>'))
    items = "\n".join(item for _, item in sorted(found, key=lambda each: each[0], reverse=True))
    return f"<ul>\n{items}\n</ul>" if items else '<p class="nothing">No report was drawn yet.</p>'


def about_page(path: Path) -> Mapping[str, Any] | None:
    """What a report says of itself, {title, runs, asked}; None for a page of somebody else."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES).decode(errors="replace")
    element = re.search(rf'<meta name="{NAME}" content="([^"]*)">', head)
    try:
        about = json.loads(html.unescape(element[1])) if element else None
    except (ValueError, RecursionError):
        return None
    fits = isinstance(about, dict) and isinstance(about.get("title"), str) and isinstance(about.get("runs"), int)
    return about if fits else None
