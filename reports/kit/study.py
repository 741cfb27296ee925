"""What a published study printed, and how its tables are found among the results of a store: reports/published/NAME.yaml."""

from __future__ import annotations

import functools

import pandas as pd
import yaml

from conf.settings import Line, Name, Settings
from reports.kit.published import FOLDER, published

CELL = ["size", "train_tokens", "model"]
"""What a printed number is about: as the paper writes size and tokens, and the suite's name of the model."""
COLUMN = ["metric", "dataset", "context", "shots"]
"""What a column of a printed table is about."""


class Benchmark(Settings, kw_only=True):
    """name: of lm-eval, with {shots} or {context} of a column in it. metrics: the first that a run has is its score."""

    name: Line
    metrics: tuple[Name, ...]


class Printed(Settings, kw_only=True):
    """A table. source: as the csv names it. size, tokens: the rows that it has of them; empty for all.

    averages: per column of averages the columns that it is the plain mean of. evaluation: what `evaluate` is asked to fill it.
    """

    source: Line
    evaluation: tuple[Line, ...]
    size: str = ""
    tokens: str = ""
    averages: dict[str, tuple[str, ...]] = {}


class Costs(Settings, kw_only=True):
    """What a head costs, in sums of products: {"n n": 6, "k n n": 2} are 6 n^2 + 2 k n^2. state: numbers. flops: of a token."""

    state: dict[str, float]
    flops: dict[str, float]


class Study(Settings, kw_only=True):
    """See reports/published/mesanet.yaml, which says what every key means."""

    numbers: tuple[Name, ...]
    sizes: dict[str, tuple[Name, ...]]
    tokens: dict[str, int]
    recipes: dict[str, Name]
    rates: dict[str, Name]
    trained_on: tuple[Line, ...]
    texts: dict[str, tuple[Line, ...]]
    read_whole: tuple[str, ...]
    benchmarks: dict[str, Benchmark]
    split: dict[str, tuple[str, ...]]
    windows: tuple[Name, ...]
    full: Name
    shown: tuple[Name, ...]
    ranked: dict[str, str]
    rivals: tuple[Name, Name]
    head: dict[str, int]
    costs: dict[Name, Costs]
    says: Line
    tables: dict[str, Printed]

    def size_of(self, name: str) -> str | None:
        """What the paper calls a size of conf/size; None for one that it does not have."""
        return next((title for title, names in self.sizes.items() if name in names), None)

    def tokens_of(self, tokens: float) -> str | None:
        """What the paper calls a number of training tokens, to a hundredth: whole batches make a little more."""
        return next((title for title, number in self.tokens.items() if abs(tokens / number - 1) < 0.01), None)


@functools.cache
def read_study(name: str) -> Study:
    """The study of a file. Raises RequestError for one with a mistake."""
    return Study.read(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), name)


@functools.cache
def numbers_of(name: str) -> pd.DataFrame:
    """All numbers that a study printed: `source` without the paper, CELL, COLUMN, `value` and `std`."""
    table = pd.concat([published(each) for each in read_study(name).numbers], ignore_index=True)
    return table.assign(source=table["source"].str.partition(" ")[2])


def printed_rows(name: str, table: str) -> pd.DataFrame:
    """The numbers of one table, as they stand in it."""
    asked, numbers = read_study(name).tables[table], numbers_of(name)
    rows = numbers[numbers["source"] == asked.source]
    rows = rows[rows["size"] == asked.size] if asked.size else rows
    return rows[rows["train_tokens"] == asked.tokens] if asked.tokens else rows


@functools.cache
def single_columns(name: str) -> pd.DataFrame:
    """COLUMN of every column of any table that is no average, once each."""
    study = read_study(name)
    sources = {table.source for table in study.tables.values()}
    numbers = numbers_of(name)
    known = numbers[numbers["source"].isin(sources)][COLUMN].drop_duplicates()
    single = known["dataset"].isin([*study.texts, *study.benchmarks])
    return known[single].reset_index(drop=True)
