"""Rows of a store by their columns: what an index holds, and what frames are built of. Imports no torch.

Rows with the same keys make a group, and a group has one column a key, of numbers or of codes into a list of values. So ten
thousand runs with a hundred settings are a few hundred arrays, and a column's type follows from its distinct values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd

Scalar = None | bool | int | float | str
REAL, WHOLE, POSITION = "<f8", "<i8", "<i4"
# What frames hold beside scalars, and facts of these names, which are left as they are.
UNTOUCHED = ("examples", "example", "document", "groups")


class Column(msgspec.Struct, array_like=True, frozen=True):
    """The values of one key. kind: numpy's name for the numbers in `data`; codes into `values` unless REAL or WHOLE."""

    kind: str
    data: bytes
    values: list[Scalar]

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.kind)

    def take(self, which: np.ndarray) -> Column:
        return Column(self.kind, self.array[which].tobytes(), self.values)

    def coded(self) -> tuple[np.ndarray, list[Scalar]]:
        """Codes, and what they stand for."""
        if self.kind not in (REAL, WHOLE):
            return self.array.astype(np.int64), self.values
        distinct, codes = np.unique(self.array, return_inverse=True)
        return codes, distinct.tolist()


class Group(msgspec.Struct, array_like=True, frozen=True):
    """Rows with the same keys. rows: their places in the table."""

    keys: list[str]
    rows: bytes
    columns: list[Column]

    @property
    def places(self) -> np.ndarray:
        return np.frombuffer(self.rows, POSITION)


class Table(msgspec.Struct, array_like=True, frozen=True):
    """Rows of a mapping each. Every place below `length` is that of one row of one group."""

    length: int
    groups: list[Group]

    def moved(self, to: np.ndarray, length: int) -> Table:
        """The rows at other places of a table. to: per row its new place, or -1 for a row that is left out."""
        groups = []
        for group in self.groups:
            places = to[group.places]
            kept = places >= 0
            if kept.any():
                columns = group.columns if kept.all() else [column.take(kept) for column in group.columns]
                groups.append(Group(group.keys, places[kept].astype(POSITION).tobytes(), columns))
        return Table(length, groups)

    def pieces(self, name: str) -> list[tuple[np.ndarray, Column]]:
        """The places and the values of a key."""
        found = ((group, group.keys.index(name)) for group in self.groups if name in group.keys)
        return [(group.places, group.columns[i]) for group, i in found]

    def only(self, wanted: Collection[str]) -> Table:
        """The rows with these of their keys alone."""
        groups = []
        for group in self.groups:
            kept = [i for i, key in enumerate(group.keys) if key in wanted]
            groups.append(Group([group.keys[i] for i in kept], group.rows, [group.columns[i] for i in kept]))
        return Table(self.length, groups)

    def group_of(self) -> np.ndarray:
        """Per row the number of its group."""
        numbers = np.empty(self.length, np.int64)
        for i, group in enumerate(self.groups):
            numbers[group.places] = i
        return numbers


def joined(tables: Sequence[Table], length: int) -> Table:
    """The rows of tables whose places differ and are below `length`; groups of the same keys become one."""
    groups: dict[tuple[str, ...], list[Group]] = {}
    for group in (group for table in tables for group in table.groups):
        groups.setdefault(tuple(group.keys), []).append(group)
    return Table(length, [_one(same) for same in groups.values()])


def tabulated(rows: Sequence[dict[str, Any]]) -> Table:
    """The table of these rows."""
    shapes: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        shapes.setdefault(tuple(row), []).append(i)
    groups = [
        Group(list(keys), np.array(places, POSITION).tobytes(), [_encoded([rows[i][key] for i in places]) for key in keys])
        for keys, places in shapes.items()
    ]
    return Table(len(rows), groups)


def _encoded(values: list[Any]) -> Column:
    kinds = set(map(type, values))
    if kinds == {float}:
        return Column(REAL, np.array(values, REAL).tobytes(), [])
    if kinds == {int} and min(values) >= -(2**63) and max(values) < 2**63:
        return Column(WHOLE, np.array(values, WHOLE).tobytes(), [])
    known: dict[Any, int] = {}
    codes = [known.setdefault(_mark(value), len(known)) for value in values]
    distinct = dict(zip(codes, values, strict=True))
    return _coded(np.array(codes, np.int64), [distinct[i] for i in range(len(known))])


def _mark(value: Scalar) -> Any:
    """What tells a value from others that are equal, such as 1, 1.0 and true."""
    return value if isinstance(value, str) else (repr(value),)


def _coded(codes: np.ndarray, values: list[Scalar]) -> Column:
    kind = next(kind for kind, most in (("<u1", 2**8), ("<u2", 2**16), ("<u4", 2**32)) if len(values) <= most)
    return Column(kind, codes.astype(kind).tobytes(), values)


def _one(groups: Sequence[Group]) -> Group:
    """One group of several with the same keys."""
    if len(groups) == 1:
        return groups[0]
    places = np.concatenate([group.places for group in groups])
    order = np.argsort(places)
    columns = [_join(columns).take(order) for columns in zip(*(group.columns for group in groups), strict=True)]
    return Group(groups[0].keys, places[order].tobytes(), columns)


def _join(columns: Sequence[Column]) -> Column:
    kinds = {column.kind for column in columns}
    if len(kinds) == 1 and kinds <= {REAL, WHOLE}:
        return Column(columns[0].kind, b"".join(column.data for column in columns), [])
    known: dict[Any, int] = {}
    distinct: list[Scalar] = []
    parts = []
    for column in columns:
        codes, values = column.coded()
        for value in values:
            if known.setdefault(_mark(value), len(known)) == len(distinct):
                distinct.append(value)
        parts.append(np.array([known[_mark(value)] for value in values], np.int64)[codes])
    return _coded(np.concatenate(parts), distinct)


def beside(runs: Table, rows: Table, of: np.ndarray, first: Sequence[str]) -> pd.DataFrame:
    """The frame of {**run, **row} for every row, with the columns `first` first, whether or not any row has them.

    of: the run of every row. A column of text and numbers is one of text.
    """
    used = np.unique(of)
    to = np.full(runs.length, -1)
    to[used] = np.arange(len(used))
    runs, of = runs.moved(to, len(used)), to[of]
    names = _names(runs, rows, of)
    own = {key for group in rows.groups for key in group.keys}
    both = own & {key for group in runs.groups for key in group.keys}
    parts = [
        _frame({name: gathered(runs.pieces(name), runs.length, name) for name in names if name not in own}, runs.length).take(of),
        _frame({name: gathered(rows.pieces(name), rows.length, name) for name in names if name in own - both}, rows.length),
        _frame({name: gathered(_over(runs, rows, of, name), rows.length, name) for name in names if name in both}, rows.length),
    ]
    parts[0].index = parts[1].index
    table = pd.concat(parts, axis=1)
    return table.reindex(columns=[*first, *(name for name in names if name not in first)])


def _frame(columns: Mapping[str, Any], length: int) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.RangeIndex(length))


def _names(runs: Table, rows: Table, of: np.ndarray) -> list[str]:
    """The keys of all {**run, **row} in the order in which the rows first have them."""
    pairs, first = np.unique(runs.group_of()[of] * len(rows.groups) + rows.group_of(), return_index=True)
    keys = []
    for pair in pairs[np.argsort(first)].tolist():
        run, row = divmod(pair, len(rows.groups))
        keys += [*runs.groups[run].keys, *rows.groups[row].keys]
    return list(dict.fromkeys(keys))


def _over(runs: Table, rows: Table, of: np.ndarray, name: str) -> list[tuple[np.ndarray, Column]]:
    """The pieces of a key that rows have, and else their runs."""
    own = rows.pieces(name)
    free = np.full(rows.length, True)
    for places, _ in own:
        free[places] = False
    found = list(own)
    for places, column in runs.pieces(name):
        at = np.full(runs.length, -1)
        at[places] = np.arange(len(places))
        taken = np.flatnonzero(free & (at[of] >= 0))
        found.append((taken, column.take(at[of[taken]])))
    return found


def gathered(pieces: Sequence[tuple[np.ndarray, Column]], length: int, name: str) -> Any:
    """One column of a frame as pandas makes it of the values; NaN where no piece has a row. Text and numbers are text."""
    is_whole = sum(len(places) for places, _ in pieces) == length
    kinds = {column.kind for _, column in pieces}
    if kinds <= {REAL, WHOLE}:
        numbers = np.empty(length, np.int64) if kinds == {WHOLE} and is_whole else np.full(length, math.nan)
        for places, column in pieces:
            numbers[places] = column.array
        return numbers
    values: list[Any] = []
    codes = np.full(length, -1, np.int64)
    for places, column in pieces:
        own, distinct = column.coded()
        codes[places] = own + len(values)
        values += distinct
    if not is_whole:
        codes[codes < 0] = len(values)
        values.append(math.nan)
    typed = pd.Series(values)
    if name not in UNTOUCHED and pd.api.types.infer_dtype(typed, skipna=True) in ("mixed", "mixed-integer"):
        typed = typed.map(str, na_action="ignore")
    return typed.array.take(codes)
