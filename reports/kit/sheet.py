"""What a report's figures are drawn for: a page on a screen, or a column of a paper.

A page function draws without knowing which: the kit asks `current()` for the width of a figure and the ink of its lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import matplotlib as mpl

from conf.settings import Refusal, Settings, near
from reports.kit.style import TABLE

VENUES: Mapping[str, tuple[float, float]] = {name: (single, double) for name, (single, double) in TABLE["venues"].items()}
"""Per venue the widths of a single and of a double column in inches; a venue of one column has that width twice."""
LEAST, MOST = 7.0, 9.0
"""Sizes of text on paper in points, as printed."""
LEAST_PANEL = 1.35
"""Inches that a panel on paper takes at the least, its labels included."""
PAGE_WIDTH = 11.3
"""Inches of a figure on a page at the most: what a page shows without scaling down."""
POINTS = 72.27
"""TeX points in an inch."""


class Sheet(Settings, frozen=True, kw_only=True):
    """style: "page" is for a screen, "paper" for a column of a venue, at its final size.

    width: of a figure on paper; "auto" takes two columns where one would stack more than two rows of panels.
    """

    style: Literal["page", "paper"]
    venue: str
    width: Literal["single", "double", "auto"]

    def __post_init__(self) -> None:
        if self.venue not in VENUES:
            raise Refusal("venue", self.venue, ", ".join(VENUES), near(self.venue, VENUES))

    @property
    def on_paper(self) -> bool:
        return self.style == "paper"

    @property
    def ink(self) -> float:
        """How thick lines and how large markers are, in those of a page."""
        return float(TABLE["ink"]) if self.on_paper else 1.0

    def inches(self, columns: int = 1) -> float:
        """The width of a figure on paper that has so many columns of panels."""
        single, double = VENUES[self.venue]
        return double if self.width == "double" or (self.width == "auto" and columns > 2) else single

    def columns(self, wanted: int, least: float = LEAST_PANEL) -> int:
        """So many of the wanted columns of panels fit on paper, each `least` inches wide."""
        return max(1, min(wanted, int(self.inches(wanted) / least)))

    def points(self) -> tuple[float, float]:
        """The width of a column and of the whole text for a table, in TeX points."""
        single, double = VENUES[self.venue]
        return POINTS * single, POINTS * double

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Draws and saves for this sheet as long as it lasts."""
        token = _CURRENT.set(self)
        try:
            with mpl.rc_context(TABLE["look"] | (TABLE["paper"] if self.on_paper else {})):
                yield
        finally:
            _CURRENT.reset(token)


SCREEN = Sheet(style="page", venue="article", width="auto")
_CURRENT: ContextVar[Sheet] = ContextVar("sheet", default=SCREEN)


def current() -> Sheet:
    """The sheet that is drawn for."""
    return _CURRENT.get()


def read_sheet(values: Mapping[str, Any]) -> Sheet:
    """The sheet of what was typed, `SCREEN` in what was not. Raises RequestError."""
    return SCREEN.replace(values)
