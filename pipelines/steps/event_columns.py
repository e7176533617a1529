"""Holds what a project's files say against the schema of its events, before the JVM starts; reads no row."""

from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape as escape_glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.steps.errors import ConfigError
from pipelines.steps.label_values import conversion_predicate
from pipelines.steps.predicates import predicate_columns
from pipelines.steps.project import EVENT_COLUMNS, FieldsConfig, Project
from pipelines.steps.project_errors import closest, shown_path
from pipelines.steps.project_values import DAY_PLACEHOLDER, ISO_DAY

_TYPES_OF_EVENT_COLUMNS = dict(zip(EVENT_COLUMNS, ("string", "timestamp", "date"), strict=True))


@dataclass(frozen=True)
class _ColumnUse:
    """A column that a file names: where, and in what text."""

    file: Path
    key: str
    column: str
    text: str


def check_event_columns(project: Project) -> None:
    """Checks every column that the files name against the schema of the events; reads no row.

    Raises:
        ConfigError: There are no events, they lack a column, a time is no timestamp, or a label's value is
            not of its column's type.
    """
    fields = project.fields
    schema = _event_schema(fields)
    for use in _raw_column_uses(fields):
        _check_column(use, schema.names)
    # app_events renames the id column, so that a condition sees it by one name in every project.
    raw = [name for name in schema.names if name != fields.events.id_column]
    for use in _predicate_column_uses(project):
        renamed = use.column == fields.events.id_column
        remedy = f"write {EVENT_COLUMNS[0]}, as the id is called once events are read" if renamed else None
        _check_column(use, list(dict.fromkeys([*raw, *EVENT_COLUMNS])), remedy)
    for key in ("time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            _check_time(fields.file, f"events.{key}", schema.field(column))
    types = {field.name: _spark_type(field.type) for field in schema} | _TYPES_OF_EVENT_COLUMNS
    for audience in project.audiences:
        conversion_predicate(audience, types)


def _raw_column_uses(fields: FieldsConfig) -> Iterator[_ColumnUse]:
    for key in ("id_column", "time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            yield _ColumnUse(fields.file, f"events.{key}", column, column)
    for field in fields.fields:
        yield _ColumnUse(fields.file, f"fields.{field.name}.column", field.column, field.column)


def _predicate_column_uses(project: Project) -> Iterator[_ColumnUse]:
    for name, sql in project.fields.events.filters.items():
        for column in predicate_columns(sql):
            yield _ColumnUse(project.fields.file, f"events.filters.{name}", column, sql)
    for audience in project.audiences:
        for column in audience.label.event or {}:
            yield _ColumnUse(audience.file, f"label.event.{column}", column, column)
        if audience.label.where is not None:
            for column in predicate_columns(audience.label.where):
                yield _ColumnUse(audience.file, "label.where", column, audience.label.where)


def _check_column(use: _ColumnUse, columns: list[str], remedy: str | None = None) -> None:
    if use.column in columns:
        return
    raise ConfigError(
        f"{shown_path(use.file)}: `{use.key}` names a column that the events do not have",
        found=f"{use.column!r} in {use.text!r}" if use.text != use.column else repr(use.column),
        expected=f"one of {', '.join(columns)}",
        remedy=remedy or closest(use.column, columns) or "name a column that is there",
    )


def _check_time(file: Path, key: str, column: "pa.Field[Any]") -> None:
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise ConfigError(
            f"{shown_path(file)}: `{key}` names a column that holds no times",
            found=f"{column.name!r} of type {column.type}",
            expected="a column of type timestamp or date",
            remedy="name the column of timestamps, or write the events with it as a timestamp in UTC",
        )
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        raise ConfigError(
            f"{shown_path(file)}: `{key}` names a column of nanoseconds, which Spark cannot read",
            found=f"{column.name!r} of type {column.type}",
            expected="timestamps of microseconds or milliseconds",
            remedy='write the events with microseconds (pandas: to_parquet(..., coerce_timestamps="us"))',
        )


def _event_schema(fields: FieldsConfig) -> pa.Schema:
    """The schema of the first Parquet file of the source, with the columns that its folders name."""
    path = fields.events.path
    for base in _existing(path):
        file = _first_parquet_file(base)
        if file is None:
            continue
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(
                f"{shown_path(fields.file)}: `events.path` holds a file that is no Parquet",
                found=f"{fields.events.shown(file)}: {_reason(error, file)}",
                expected="Parquet files only",
                remedy="write the file again, or take it away",
            ) from error
        return pa.schema([*schema, *_folder_columns(file.relative_to(base))])
    raise ConfigError(
        f"{shown_path(fields.file)}: there are no events at `events.path`",
        found=f"no Parquet file at {fields.events.written_path}",
        expected="a Parquet file or a folder of them" + (", per day" if DAY_PLACEHOLDER in path else ""),
        remedy="put the events there (`make demo` generates its own), or correct the path",
    )


def _reason(error: Exception, file: Path) -> str:
    """What an error says, less the file's path, which may hold the value of a variable."""
    return str(error).splitlines()[0].replace(str(file), file.name)


def _spark_type(column_type: pa.DataType) -> str:
    """The type's name in Spark; of one that no label's value can be of, Arrow's."""
    if pa.types.is_dictionary(column_type):
        return _spark_type(column_type.value_type)
    if pa.types.is_timestamp(column_type):
        return "timestamp"
    if pa.types.is_decimal(column_type):
        return f"decimal({column_type.precision},{column_type.scale})"
    return _SPARK_TYPES.get(column_type, str(column_type))


_SPARK_TYPES = {
    pa.bool_(): "boolean",
    pa.int8(): "tinyint",
    pa.int16(): "smallint",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.uint8(): "smallint",
    pa.uint16(): "int",
    pa.uint32(): "bigint",
    pa.uint64(): "decimal(20,0)",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
    pa.date32(): "date",
}


def _folder_columns(file: Path) -> "Iterator[pa.Field[Any]]":
    """Columns that Spark takes from folders such as country=FR; pyarrow.dataset would load pandas for it."""
    for folder in file.parts[:-1]:
        name, equals, value = folder.partition("=")
        if equals:
            yield pa.field(name, pa.date32() if ISO_DAY.fullmatch(value) else pa.string())


def _existing(path: str) -> list[Path]:
    """What lies at the path; with `{day}`, what lies there of each day, oldest first."""
    if DAY_PLACEHOLDER not in path:
        return [Path(path)] if Path(path).exists() else []
    root = Path(path).anchor
    pattern = escape_glob(path.removeprefix(root)).replace(DAY_PLACEHOLDER, "????-??-??")
    return sorted(Path(root).glob(pattern))


def _first_parquet_file(base: Path) -> Path | None:
    if base.is_file():
        return base
    # Spark, too, skips what begins with _ or a dot: files being written.
    files = (p for p in base.rglob("*.parquet") if p.is_file())
    return min((p for p in files if not p.relative_to(base).parts[0].startswith(("_", "."))), default=None)
