"""What raw columns are called once events are read: by their own names, unless one of ours is the same.

Spark compares names without regard to case, and so does all that is decided here.
"""

from collections.abc import Collection

from pipelines.steps.config.fields import EVENT_COLUMNS, EventSource
from pipelines.steps.config.label_values import label_columns
from pipelines.steps.config.predicates import predicate_columns
from pipelines.steps.config.project import Project

REASON, COPIES = "rejected_because", "copies"
OUR_COLUMNS = frozenset({*EVENT_COLUMNS, REASON, COPIES})
"""Columns that ingestion makes."""
RAW = "raw:"


def stored_name(column: str) -> str:
    """The name of a raw column in `app_events` and `rejected_events`."""
    return f"{RAW}{column.lower()}" if column.lower() in OUR_COLUMNS else column


def quoted(column: str) -> str:
    """The column's name as Spark takes it, dots and blanks included."""
    return "`" + column.replace("`", "``") + "`"


def source_columns(source: EventSource) -> list[str]:
    """The raw columns that reading, filtering and deduplicating events takes, but the id."""
    named = [source.time_column, *([source.arrival_column] if source.arrival_column else [])]
    named += [column for sql in source.filters.values() for column in predicate_columns(sql)]
    if source.deduplicate_by != "all":
        named += source.deduplicate_by
    return _once(named, source.id_column)


def named_columns(project: Project) -> list[str]:
    """The raw columns that fields, measures and signals (labels, too) name, but the id.

    In an expression our names mean ours.
    """
    named = [field.column for field in project.fields.fields]
    named += [measure.column for measure in project.fields.measures if measure.column is not None]
    in_sql = [c for measure in project.fields.measures if measure.column is None for c in measure.columns]
    in_sql += [column for signal in project.signals for column in label_columns(signal.condition)]
    named += [column for column in in_sql if column.lower() not in OUR_COLUMNS]
    return _once(named, project.fields.events.id_column)


def own_meaning(source: EventSource, column: str) -> bool:
    """Whether the raw column of this name is the one that ours of this name is made from."""
    made_from = {"device_id": source.id_column, "event_time": source.time_column}
    return made_from.get(column.lower(), "").lower() == column.lower()


def shadowed(source: EventSource, raw_columns: Collection[str]) -> list[str]:
    """The raw columns that bear one of our names and mean something else."""
    return [c for c in raw_columns if c.lower() in OUR_COLUMNS and not own_meaning(source, c)]


def _once(columns: list[str], id_column: str) -> list[str]:
    return [column for column in dict.fromkeys(columns) if column.lower() != id_column.lower()]
