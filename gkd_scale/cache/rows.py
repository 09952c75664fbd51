"""Parquet files of many rows, written and read a row group at a time: memory does not grow with the rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

METADATA = b"gkd-scale"
"""Key of our JSON in the schema metadata of a file."""

GROUP = 1 << 17
"""Rows of a row group."""


class RowWriter:
    """Writes tables one behind the other in row groups of :data:`GROUP` rows, however they were cut.

    Equal rows give equal bytes. ``plain`` are the columns whose values hardly repeat.
    """

    def __init__(self, file: BinaryIO | pa.NativeFile, schema: pa.Schema, plain: Sequence[str] = ()) -> None:
        columns = [name for name in schema.names if name not in plain]
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=columns)
        self._tables: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left."""
        if self._rows:
            self._flush(self._rows)
        self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Append the rows of ``table``."""
        self._tables.append(table)
        self._rows += len(table)
        while self._rows >= GROUP:
            self._flush(GROUP)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._tables)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=GROUP)
        self._tables, self._rows = [table.slice(rows)], len(table) - rows


class Rows:
    """The rows of a Parquet file by their number. Safe for threads.

    ``file`` is a path or the file's bytes. Raises OSError or ArrowInvalid for a damaged file.
    """

    def __init__(self, file: Path | bytes, columns: Sequence[str]) -> None:
        self.file, self._columns = file, list(columns)
        with self._open() as parquet:
            self._metadata = parquet.metadata
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._group = lru_cache(maxsize=2)(self._read)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows [start, stop)."""
        stop = min(stop, len(self))
        with self._lock:
            parts = [
                self._group(group).slice(max(start - first, 0), min(stop, past) - max(start, first))
                for group, (first, past) in enumerate(pairwise(self._starts))
                if first < stop and start < past
            ]
        if parts:
            return pa.concat_tables(parts)
        schema = self._metadata.schema.to_arrow_schema()
        return pa.schema([schema.field(name) for name in self._columns]).empty_table()

    def tables(self) -> Iterator[pa.Table]:
        """All rows, a row group at a time."""
        for group in range(len(self._starts) - 1):
            yield self._read(group)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.file, self._columns)

    def _open(self, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        file = pa.BufferReader(self.file) if isinstance(self.file, bytes) else self.file
        return pq.ParquetFile(file, metadata=metadata)

    def _read(self, group: int) -> pa.Table:
        with self._open(self._metadata) as parquet:
            return parquet.read_row_group(group, columns=self._columns, use_threads=False)


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
