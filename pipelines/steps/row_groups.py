"""Parquet row groups as units of work: Spark plans and retries them, its workers read them with pyarrow.

Reading in the worker spares the rows the way through the JVM. Where a column chunk holds codes into a
dictionary, only the distinct strings are decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.steps.errors import DataError

ROWS_PER_TASK = 131_072
"""Small row groups are read together up to this many rows; one row group is never split."""
BUFFER_BYTES = 1 << 16
UNREADABLE = (OSError, pa.ArrowException, KeyError, UnicodeDecodeError)
"""What PyArrow raises for a damaged file; the last two for a column's name in a damaged footer."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file, as planned: `rows` tells a file that was replaced since."""

    file: str
    index: int
    rows: int

    def __str__(self) -> str:
        return f"row group {self.index} of {self.file}"


def list_row_groups(files: Sequence[Path], columns: Sequence[str]) -> list[RowGroup]:
    """The row groups of Parquet files, in order; those without rows are left out.

    Raises:
        DataError: A file is missing, its footer cannot be read, or it lacks one of the columns.
    """
    found = []
    for file in files:
        try:
            metadata = pq.read_metadata(file)
        except UNREADABLE as error:
            raise _unreadable(f"the footer of {file}", error) from error
        require_columns(metadata.schema.to_arrow_schema().names, columns, str(file))
        counts = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        found += [RowGroup(str(file), index, rows) for index, rows in enumerate(counts) if rows]
    return found


def plan_tasks(row_groups: Sequence[RowGroup], rows_per_task: int = ROWS_PER_TASK) -> list[list[RowGroup]]:
    """Row groups of each task, in order."""
    tasks: list[list[RowGroup]] = []
    room = 0
    for row_group in row_groups:
        if not tasks or row_group.rows > room:
            tasks.append([])
            room = rows_per_task
        tasks[-1].append(row_group)
        room -= row_group.rows
    return tasks


def read_row_group(row_group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """Some columns of one row group; lists of strings come as lists of codes where they are stored so.

    Args:
        row_group: Which.
        columns: Their names; a list column is named like any other.

    Raises:
        DataError: It cannot be read, its pages do not match their checksums, or it is not what was planned.
    """
    try:
        plain = pq.ParquetFile(row_group.file)
        coded = _dictionary_columns(plain.metadata.row_group(row_group.index), columns)
        with pq.ParquetFile(
            row_group.file,
            metadata=plain.metadata,
            read_dictionary=coded,
            memory_map=True,
            page_checksum_verification=True,
        ) as file:
            table = file.read_row_group(row_group.index, columns=list(columns), use_threads=False)
            # Checksums leave out page headers: a dictionary cut short, or offsets that run back, show here.
            table.validate(full=True)
    except UNREADABLE as error:
        raise _unreadable(str(row_group), error) from error
    if table.num_rows != row_group.rows or table.column_names != list(columns):
        raise DataError(
            f"{row_group} is not what was planned: the file was replaced meanwhile",
            found=f"{table.num_rows} rows of {table.column_names}",
            expected=f"{row_group.rows} rows of {list(columns)}",
            remedy="run again",
        )
    return table


def read_first_rows(file: Path, columns: Sequence[str], rows: int) -> pa.Table:
    """The first rows of a Parquet file, without reading on; of the columns named, those that it has.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        # Buffered, or else whole column chunks are read first.
        with pq.ParquetFile(file, buffer_size=BUFFER_BYTES) as opened:
            schema = opened.schema_arrow
            known = [name for name in columns if name in schema.names]
            batch = next(opened.iter_batches(rows, columns=known), None)
        table = pa.Table.from_batches([batch] if batch else [], pa.schema([schema.field(n) for n in known]))
    except UNREADABLE as error:
        raise _unreadable(str(file), error) from error
    return table


def require_columns(found: Sequence[str], needed: Sequence[str], rows: str = "the rows to score") -> None:
    """
    Raises:
        DataError: A column that is needed is not found.
    """
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{rows}: there is no column {', '.join(missing)}",
            found=list(found),
            expected=list(needed),
            remedy="rebuild feature_tokens with these fields, or train on the fields there are",
        )


def _dictionary_columns(metadata: pq.RowGroupMetaData, columns: Sequence[str]) -> list[str]:
    """Paths of the lists of strings that hold nothing but codes into one dictionary.

    A writer gives up a dictionary that grows too large and stores the rest of the chunk as plain
    strings. To read such a chunk as codes would hash every string: 4.3 µs a row, against 2.5 as strings
    (and 0.5 where all of it is codes). Writers of the first format name the fallback `PLAIN`; those of
    the second name the dictionary page itself so, and are taken to have kept to it.
    """
    chunks = [metadata.column(place) for place in range(metadata.num_columns)]
    return [
        chunk.path_in_schema
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns
        and "." in chunk.path_in_schema
        and chunk.physical_type == "BYTE_ARRAY"
        and ("RLE_DICTIONARY" in chunk.encodings or _is_all_codes(chunk))
    ]


def _is_all_codes(chunk: pq.ColumnChunkMetaData) -> bool:
    return "PLAIN_DICTIONARY" in chunk.encodings and "PLAIN" not in chunk.encodings


def _unreadable(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} cannot be read",
        found=str(error),
        expected="a Parquet file as it was written",
        remedy="materialize its partition again",
    )
