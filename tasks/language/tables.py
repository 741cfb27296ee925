"""Parquet tables, read by pyarrow, which runs no code of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conf.settings import near

READ_ROWS = 2**8


def row_groups(file: str, field: str, least_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Runs of row groups of a table, first, last + 1 and compressed bytes, each of at least so many bytes but the last.

    Raises ValueError for what is no table or has no text in `field`.
    """
    with _opened(file, field) as table:
        first = size = 0
        for i in range(count := table.metadata.num_row_groups):
            size += sum(table.metadata.row_group(i).column(j).total_compressed_size for j in range(table.metadata.num_columns))
            if size >= least_bytes or i + 1 == count:
                yield first, i + 1, size
                first, size = i + 1, 0


def table_texts(file: str, field: str, first: int, last: int) -> Iterator[str]:
    """The texts of the rows in these row groups. Raises ValueError, with the row's number, where one has none."""
    with _opened(file, field) as table:
        row = sum(table.metadata.row_group(i).num_rows for i in range(first))
        batches = table.iter_batches(READ_ROWS, row_groups=list(range(first, last)), columns=[field], use_threads=False)
        for batch in batches:
            for text in batch.column(0).to_pylist():
                if text is None:
                    raise ValueError(f"has no text in the field {field!r} of row {row}, counted from 0")
                yield text
                row += 1


def _opened(file: str, field: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError("needs the package pyarrow: pip install 'linear-rnn-suite[data]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(file, memory_map=False, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"is not a parquet table: {str(error).splitlines()[0]}") from error
    if field not in (names := table.schema_arrow.names):
        table.close()
        raise ValueError(f"has no field {field!r}{near(field, names)}; its fields are {', '.join(names)}")
    kind = table.schema_arrow.field(field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        table.close()
        raise ValueError(f"has {kind} in the field {field!r}, permitted is text")
    return table
