"""The Parquet files that raw events lie in: which there are for a day, and which columns; reads no row.

What does not belong here: what the columns mean (`event_columns`), and Spark (`event_rows`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.steps.config.fields import EventSource
from pipelines.steps.config.values import DAY_PLACEHOLDER, ISO_DAY, existing_paths
from pipelines.steps.errors import DataError

HIDDEN = ("_", ".")
"""Spark passes over what begins so: files being written, and marks such as _SUCCESS."""


@dataclass(frozen=True)
class EventFile:
    """One Parquet file of raw events.

    Attributes:
        path: Where it lies.
        shown: The same for messages, in which a variable of the path stays as it is written.
        schema: Its columns, as the footer has them.
        folders: The columns that its folders name, such as country=FR.
    """

    path: Path
    shown: str
    schema: pa.Schema
    folders: pa.Schema

    @property
    def columns(self) -> pa.Schema:
        """All columns; Spark, too, prefers a folder's to one of the same name within the file."""
        named = {name.lower() for name in self.folders.names}
        return pa.schema([*(f for f in self.schema if f.name.lower() not in named), *self.folders])


def all_files(source: EventSource) -> Iterator[EventFile]:
    """Every file of the source, those of the oldest day first."""
    for base in existing_paths(source.path):
        yield from _files(base, source)


def files_of_days(source: EventSource, arrivals: Iterable[date]) -> list[EventFile]:
    """The files that arrived on these days; of a source without folders by day all of them.

    Raises:
        DataError: A file is no Parquet.
    """
    bases = [Path(source.path)]
    if DAY_PLACEHOLDER in source.path:
        bases = [Path(source.path.replace(DAY_PLACEHOLDER, day.isoformat())) for day in arrivals]
    found: list[EventFile] = []
    for base in bases:
        try:
            found.extend(_files(base, source))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{source.shown(base)} holds a file that is no Parquet",
                found=str(error).splitlines()[0],
                expected="Parquet files only",
                remedy="write the file again, or take it away",
            ) from error
    return found


def spellings(columns: pa.Schema, name: str) -> list[str]:
    """The columns that Spark takes for the one named: it compares names without regard to case."""
    return [column for column in columns.names if column.lower() == name.lower()]


def find_columns(files: Iterable[EventFile], wanted: Sequence[str]) -> pa.Schema:
    """The columns of the files together, each as the first file that has it does.

    Looks into as few files as it takes to find the columns wanted: a column may appear on a later day only.
    """
    found: dict[str, pa.Field[Any]] = {}
    for file in files:
        for field in file.columns:
            # A column of nothing but nulls may be written without a type, which says nothing.
            if field.name not in found or pa.types.is_null(found[field.name].type):
                found[field.name] = field
        if all(name in found and not pa.types.is_null(found[name].type) for name in wanted):
            break
    return pa.schema(list(found.values()))


def is_nanoseconds(arrow: pa.DataType) -> bool:
    """Whether it is a timestamp of nanoseconds, which Spark has no type for."""
    return isinstance(arrow, pa.TimestampType) and bool(arrow.unit == "ns")


def is_readable(arrow: pa.DataType) -> bool:
    """Whether Spark reads a column of this type as what it means."""
    kinds = pa.types
    if kinds.is_time(arrow) or kinds.is_duration(arrow) or kinds.is_interval(arrow) or is_nanoseconds(arrow):
        return False
    if kinds.is_float16(arrow) or kinds.is_decimal256(arrow):
        return False
    return all(is_readable(arrow.field(place).type) for place in range(arrow.num_fields))


def _files(base: Path, source: EventSource) -> Iterator[EventFile]:
    for path in [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file()):
        inner = path.relative_to(base)
        status = path.stat()
        if status.st_size and not any(part.startswith(HIDDEN) for part in inner.parts):
            shown = source.shown(path)
            try:
                schema = _read_schema(path, status.st_size, status.st_mtime_ns)
            except (pa.ArrowInvalid, OSError) as error:
                reason = str(error).splitlines()[0].replace(str(path), path.name)
                raise pa.ArrowInvalid(f"{shown}: {reason}") from error
            yield EventFile(path, shown, schema, pa.schema(list(_folder_columns(inner))))


@lru_cache(maxsize=100_000)
def _read_schema(path: Path, size: int, modified: int) -> pa.Schema:  # noqa: ARG001 (they tell versions of a file)
    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    columns = [metadata.schema.column(place) for place in range(len(metadata.schema))]
    # Arrow reads these as nanoseconds, Spark as the microseconds that whoever wrote them meant.
    int96 = {column.path for column in columns if column.physical_type == "INT96"}
    utc = pa.timestamp("us", "UTC")
    return pa.schema([field.with_type(utc) if field.name in int96 else field for field in schema])


def _folder_columns(file: Path) -> "Iterator[pa.Field[Any]]":
    """Columns that folders such as country=FR name; pyarrow.dataset would load pandas for it."""
    for folder in file.parts[:-1]:
        name, equals, value = folder.partition("=")
        if equals:
            yield pa.field(name, pa.date32() if ISO_DAY.fullmatch(value) else pa.string())
