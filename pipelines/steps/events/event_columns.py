"""Holds what a project's files say against the schema of its events, before the JVM starts; reads no row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.steps.config.fields import EVENT_COLUMNS, FieldsConfig
from pipelines.steps.config.label_values import signal_predicate
from pipelines.steps.config.measures import require_number
from pipelines.steps.config.predicates import predicate_columns
from pipelines.steps.config.problems import closest, shown_path
from pipelines.steps.config.project import Project
from pipelines.steps.config.values import DAY_PLACEHOLDER
from pipelines.steps.errors import ConfigError
from pipelines.steps.events.event_files import EventFile, all_files, find_columns, is_readable, spellings
from pipelines.steps.events.event_names import shadowed

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
        ConfigError: There are no events, they lack a column, its name or type is none that can be used, a
            time is no timestamp, a measure no number, or the value of a label or signal not of its column's
            type.
    """
    fields = project.fields
    raw_uses, of_stored = list(_raw_column_uses(fields)), list(_stored_column_uses(project))
    predicate_uses = [*_filter_column_uses(fields), *of_stored]
    first, schema = _event_schema(fields, [use.column for use in [*raw_uses, *predicate_uses]])
    for use in raw_uses:
        _check_column(use, schema.names)
    # app_events renames the id column, so that a condition sees it by one name in every project.
    raw = [name for name in schema.names if name != fields.events.id_column]
    for use in predicate_uses:
        renamed = use.column == fields.events.id_column
        remedy = f"write {EVENT_COLUMNS[0]}, as the id is called once events are read" if renamed else None
        _check_column(use, list(dict.fromkeys([*raw, *EVENT_COLUMNS])), remedy)
    for key in ("time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            _check_time(fields.file, f"events.{key}", schema.field(column))
    for use in [*raw_uses, *predicate_uses]:
        _check_spelling(use, first.columns)
        _check_readable(use, schema)
    for use in of_stored:
        _check_meaning(use, shadowed(fields.events, set(schema.names) - set(first.folders.names)))
    types = {column.name: _stored_type(column.type) for column in schema}
    for measure in fields.measures:
        if measure.column is not None:
            require_number(shown_path(fields.file), measure, types[measure.column])
    for signal in project.signals:
        signal_predicate(signal, types | _TYPES_OF_EVENT_COLUMNS)


def _raw_column_uses(fields: FieldsConfig) -> Iterator[_ColumnUse]:
    for key in ("id_column", "time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            yield _ColumnUse(fields.file, f"events.{key}", column, column)
    if fields.events.deduplicate_by != "all":
        for column in fields.events.deduplicate_by:
            yield _ColumnUse(fields.file, "events.deduplicate_by", column, column)
    for field in fields.fields:
        yield _ColumnUse(fields.file, f"fields.{field.name}.column", field.column, field.column)
    for measure in fields.measures:
        if measure.column is not None:
            yield _ColumnUse(fields.file, measure.key, measure.column, measure.column)


def _filter_column_uses(fields: FieldsConfig) -> Iterator[_ColumnUse]:
    for name, sql in fields.events.filters.items():
        for column in predicate_columns(sql):
            yield _ColumnUse(fields.file, f"events.filters.{name}", column, sql)


def _stored_column_uses(project: Project) -> Iterator[_ColumnUse]:
    """What expressions over stored events name: measures, signals and labels."""
    for measure in project.fields.measures:
        if measure.sql is not None:
            for column in measure.columns:
                yield _ColumnUse(project.fields.file, measure.key, column, measure.sql)
    for signal in project.signals:
        for column in signal.condition.event or {}:
            yield _ColumnUse(signal.file, f"{signal.key}.event.{column}", column, column)
        if (where := signal.condition.where) is not None:
            for column in predicate_columns(where):
                yield _ColumnUse(signal.file, f"{signal.key}.where", column, where)


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


def _check_spelling(use: _ColumnUse, columns: pa.Schema) -> None:
    same = spellings(columns, use.column)
    if len(same) > 1:
        raise ConfigError(
            f"{shown_path(use.file)}: `{use.key}` names a column that Spark cannot tell from another one",
            found=", ".join(map(repr, same)),
            expected="columns whose names differ in more than case",
            remedy="write the events with another name for one of them",
        )


def _check_readable(use: _ColumnUse, columns: pa.Schema) -> None:
    kind = columns.field(use.column).type if use.column in columns.names else pa.string()
    if not is_readable(kind):
        raise ConfigError(
            f"{shown_path(use.file)}: `{use.key}` names a column of a type that Spark cannot read",
            found=f"{use.column!r} of type {kind}",
            expected="text, numbers, booleans, dates, timestamps of microseconds, or lists of them",
            remedy="write the events with the column as one of these, or name another one",
        )


def _check_meaning(use: _ColumnUse, ambiguous: list[str]) -> None:
    """A measure, signal or label sees stored events, where ours bears the name; a filter sees raw ones."""
    if use.column.lower() in {column.lower() for column in ambiguous}:
        raise ConfigError(
            f"{shown_path(use.file)}: `{use.key}` names a column that the raw events have, too",
            found=f"{use.column!r} in {use.text!r}" if use.text != use.column else repr(use.column),
            expected=f"a column that is there once; ingestion makes {', '.join(EVENT_COLUMNS)} of its own",
            remedy="write the raw column under another name, or take it out of the condition",
        )


def _event_schema(fields: FieldsConfig, wanted: list[str]) -> tuple[EventFile, pa.Schema]:
    """The first file of the source, and the columns of as many files as it takes to find those wanted."""
    path = fields.events.path
    try:
        first = next(all_files(fields.events), None)
        if first is not None:
            return first, find_columns(
                all_files(fields.events), [n for n in wanted if n not in EVENT_COLUMNS]
            )
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{shown_path(fields.file)}: `events.path` holds a file that is no Parquet",
            found=str(error).splitlines()[0],
            expected="Parquet files only",
            remedy="write the file again, or take it away",
        ) from error
    raise ConfigError(
        f"{shown_path(fields.file)}: there are no events at `events.path`",
        found=f"no Parquet file at {fields.events.written_path}",
        expected="a Parquet file or a folder of them" + (", per day" if DAY_PLACEHOLDER in path else ""),
        remedy="put the events there (`make demo` generates its own), or correct the path",
    )


def _stored_type(column_type: pa.DataType) -> str:
    """The Spark type that `app_events` stores a column as; of one that no label's value can be of, Arrow's.

    The same as `event_rows.column_type`, which needs pyspark: seconds before a wrong file is told.
    """
    kinds = pa.types
    if kinds.is_dictionary(column_type):
        return _stored_type(column_type.value_type)
    if kinds.is_timestamp(column_type):
        return "timestamp"
    if kinds.is_decimal(column_type):
        return f"decimal({column_type.precision},{column_type.scale})"
    if column_type == pa.uint64():
        return "decimal(20,0)"
    if kinds.is_integer(column_type):
        return "bigint"
    if kinds.is_floating(column_type):
        return "double"
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary)
    bytes_ = (kinds.is_large_binary, kinds.is_fixed_size_binary, kinds.is_binary_view, kinds.is_null)
    if any(holds(column_type) for holds in (*texts, *bytes_)):
        return "string"
    return {pa.bool_(): "boolean", pa.date32(): "date"}.get(column_type, str(column_type))
