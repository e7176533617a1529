"""Raw events, sorted into UTC days, and every row accounted for: accepted, duplicate or rejected.

Each raw row belongs to exactly one day, told from the row alone. That is the day of its event time,
unless the event time is missing, lies after the arrival, or lies further before it than
`max_late_hours`: then it is the day of arrival, where the row is rejected. The day of arrival is that of
the folder where the source has one per day, else that of the arrival column. So a day computed at
`max_late_hours` after midnight equals the same day computed by a backfill a year later.

Every raw column is stored, so that an audience that names another one later needs no new ingestion. Those
that the project's files name are there on every day, of one type, null where no file has them; the
others are as the day's files have them (`event_rows`). The id is stored as `device_id` alone.
"""

from collections.abc import Collection, Sequence
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StringType

from pipelines.steps.config.fields import MIN_DEVICES, EventSource
from pipelines.steps.config.label_values import label_columns
from pipelines.steps.config.project import Project
from pipelines.steps.config.values import DAY_PLACEHOLDER
from pipelines.steps.errors import DataError
from pipelines.steps.events.event_files import EventFile, all_files, files_of_days, find_columns, spellings
from pipelines.steps.events.event_ids import id_reason, normalized_id
from pipelines.steps.events.event_names import (
    COPIES,
    OUR_COLUMNS,
    RAW,
    REASON,
    named_columns,
    quoted,
    source_columns,
    stored_name,
)
from pipelines.steps.events.event_rows import FILE_PATH, MISTYPED, RAW_ID, column_type, read_rows
from pipelines.steps.table_columns import Shown, TableColumn


def table_columns(project: Project) -> dict[str, TableColumn]:
    """The columns of `app_events` that are always there; raw ones that no file names are beside them."""
    source, everything = project.fields.events, Shown.EVERYTHING
    ours = {
        "device_id": TableColumn(
            "string",
            f"Whom the event is about: `{source.id_column}`, normalized ({source.id_normalizer}).",
            shown=Shown.NUMBERS,
        ),
        "event_time": TableColumn(
            "timestamp", f"When it happened, UTC: `{source.time_column}`.", shown=Shown.HOURS
        ),
        "day": TableColumn("date", "The UTC day of the event time.", shown=everything),
        COPIES: TableColumn("bigint", "Raw rows that this event stands for.", shown=everything),
    }
    raw = {
        stored_name(column): TableColumn(
            None,
            f"The raw column `{column}`, as it came{_readers(project, column)}.",
            shown=Shown.COMMON_VALUES,
            min_devices=_min_devices(project, column),
        )
        for column in (*named_columns(project), *source_columns(source))
    }
    return ours | {name: column for name, column in raw.items() if name not in ours}


def _readers(project: Project, column: str) -> str:
    fields = [f"field {field.name}" for field in project.fields.fields if field.column == column]
    labels = [f"label of {each.name}" for each in project.audiences if column in label_columns(each.label)]
    return f"; read by {', '.join([*fields, *labels])}" if fields or labels else ""


def _min_devices(project: Project, column: str) -> int:
    """Devices that must share a raw value before it is shown: as its fields say, or the strictest of all."""
    fields = [field.min_devices for field in project.fields.fields if field.column == column]
    return max(fields or [MIN_DEVICES, *(field.min_devices for field in project.fields.fields)])


def read_raw_events(
    spark: SparkSession, source: EventSource, days: Sequence[date], columns: Collection[str] = ()
) -> DataFrame:
    """The raw rows that belong to `days`, with the columns `device_id`, `event_time`, `day`.

    Args:
        spark: The session.
        source: Where events lie and how their columns are named.
        days: Consecutive or not; all are read in one scan.
        columns: Raw columns that fields and labels name; those that the source itself names are known.

    Raises:
        DataError: There are no events at all where the source says they lie.
    """
    named = list(dict.fromkeys([*source_columns(source), *columns]))
    raw = read_rows(spark, _files(source, days), _column_types(source, named), source.id_column)
    event_time, arrival = _times(source)
    if not _has_folders(source):
        raw = raw.where(_may_belong(event_time, arrival, days))
    # Ours says all that the raw column of its name does, unless a file names that one.
    repeated = [stored_name(source.time_column)] if source.time_column not in columns else []
    return (
        raw.withColumns(
            {
                "device_id": normalized_id(F.col(quoted(RAW_ID)), source.id_normalizer),
                "day": _day(source, event_time, arrival),
                "event_time": event_time,
            }
        )
        .drop(RAW_ID, FILE_PATH, *(name for name in repeated if name.startswith(RAW)))
        .where(F.col("day").isin(list(days)))
    )


def label_rejections(raw: DataFrame, source: EventSource) -> DataFrame:
    """Adds the column `rejected_because`: null for a row to keep, else the first reason that holds."""
    mistyped = F.col(quoted(MISTYPED))
    reason = F.coalesce(
        id_reason(F.col("device_id")),
        F.when(mistyped.isNotNull(), F.concat(F.lit("mistyped:"), mistyped)),
        F.when(F.col("event_time").isNull(), "missing_time"),
    )
    if source.arrival_column:
        arrival = F.col(quoted(stored_name(source.arrival_column))).cast("timestamp")
        late = (
            F.when(arrival.isNull(), "missing_arrival")
            .when(F.col("event_time") > arrival, "future_event")
            .when(_is_late(F.col("event_time"), arrival, source.max_late_hours), "late_event")
        )
        reason = F.coalesce(reason, late)
    # Its folder is of another day than its arrival: were it kept, one day's run would never see it.
    reason = F.coalesce(reason, F.when(F.to_date("event_time") != F.col("day"), "misfiled_event"))
    kept = {name: f"our:filter:{name}" for name in source.filters}
    conditions = {kept[name]: predicate for name, predicate in source.filters.items()}
    for name, flag in kept.items():
        fails = ~F.coalesce(F.col(quoted(flag)), F.lit(False))
        reason = F.coalesce(reason, F.when(fails, f"filter:{name}"))
    return _with_conditions(raw, conditions).withColumn(REASON, reason).drop(MISTYPED, *kept.values())


def accept_events(labelled: DataFrame, source: EventSource | None = None) -> DataFrame:
    """The rows to keep, each once, with `copies`: how many raw rows it stands for.

    Args:
        labelled: The rows of `label_rejections`.
        source: Says which rows are one event; without it those that are equal in every column.
    """
    kept = labelled.where(F.col(REASON).isNull()).drop(REASON)
    copies = F.count("*").alias(COPIES)
    if source is None or source.deduplicate_by == "all":
        return kept.groupBy(*[quoted(name) for name in kept.columns]).agg(copies)
    always = {source.id_column.lower(), source.time_column.lower()}
    named = [stored_name(name) for name in source.deduplicate_by if name.lower() not in always]
    keys = dict.fromkeys(["device_id", "event_time", "day", *named])
    row = F.struct(*[quoted(name) for name in kept.columns])
    # As JSON, because Spark cannot order maps; any order will do that is the same on every run.
    first = F.min_by(row, F.to_json(row, {"ignoreNullFields": "false"})).alias("first")
    return (
        kept.groupBy(*[F.col(quoted(key)).alias(f"our:{key}") for key in keys])
        .agg(first, copies)
        .select("first.*", COPIES)
    )


def quarantine_events(labelled: DataFrame) -> DataFrame:
    """The rejected rows, as they came, each with its reason."""
    return labelled.where(F.col(REASON).isNotNull())


def account_rows(raw: DataFrame, accepted: DataFrame, rejected: DataFrame, days: Sequence[date]) -> DataFrame:
    """Per day: raw, accepted, duplicate, rejected, and `unaccounted`, which must be 0.

    `raw` is counted from the source, the others from what was stored, so a row lost or made up in
    between shows.
    """
    every_day = F.explode(F.array(*[F.lit(day) for day in days])).alias("day")
    kept = accepted.groupBy("day").agg(
        F.count("*").alias("accepted"), F.sum(F.col(COPIES) - 1).alias("duplicate")
    )
    return (
        raw.sparkSession.range(1)
        .select(every_day)
        .join(raw.groupBy("day").agg(F.count("*").alias("raw")), "day", "left")
        .join(kept, "day", "left")
        .join(rejected.groupBy("day").agg(F.count("*").alias("rejected")), "day", "left")
        .fillna(0)
        .withColumn("unaccounted", F.expr("raw - accepted - duplicate - rejected"))
        .orderBy("day")
    )


def count_undated(spark: SparkSession, source: EventSource, days: Sequence[date]) -> int:
    """Raw rows that belong to no day, with neither event time nor arrival; in folders every row has one."""
    if _has_folders(source):
        return 0
    types = _column_types(source, source_columns(source))
    event_time, arrival = _times(source)
    undated = event_time.isNull() if arrival is None else event_time.isNull() & arrival.isNull()
    return read_rows(spark, _files(source, days), types, source.id_column).where(undated).count()


def _has_folders(source: EventSource) -> bool:
    return DAY_PLACEHOLDER in source.path


def _files(source: EventSource, days: Sequence[date]) -> list[EventFile]:
    if not _has_folders(source):
        return files_of_days(source, days)
    folders = {day: Path(source.path.replace(DAY_PLACEHOLDER, day.isoformat())) for day in days}
    absent = sorted(day.isoformat() for day, folder in folders.items() if not folder.exists())
    if absent:
        raise DataError(
            f"no events arrived on {len(absent)} of the {len(days)} days asked for",
            found=f"no {source.written_path} for {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}",
            expected="one directory per day of arrival",
            remedy="let the events land first, or correct events.path in fields.yaml",
        )
    # An accepted event arrives on its own day or, less than 24 hours late, on the next.
    return files_of_days(source, sorted({d for day in days for d in (day, day + timedelta(days=1))}))


def _column_types(source: EventSource, names: Sequence[str]) -> dict[str, DataType]:
    """The types of named columns, from the oldest files that have them: the same whatever days are read."""
    found = find_columns(all_files(source), names)
    types: dict[str, DataType] = {}
    for name in names:
        exact = [name] if name in found.names else spellings(found, name)
        if exact:
            types[name] = column_type(found.field(exact[0]).type)
        elif name.lower() not in OUR_COLUMNS:  # a filter may mean ours
            types[name] = StringType()
    return types


def _times(source: EventSource) -> tuple[Column, Column | None]:
    event_time = F.col(quoted(stored_name(source.time_column))).cast("timestamp")
    if not source.arrival_column:
        return event_time, None
    return event_time, F.col(quoted(stored_name(source.arrival_column))).cast("timestamp")


def _with_conditions(rows: DataFrame, conditions: dict[str, str]) -> DataFrame:
    """Adds conditions that see raw columns by their own names, and ours where there is no such one."""
    if not conditions:
        return rows
    raw = {name.removeprefix(RAW) for name in rows.columns if name.startswith(RAW)}
    seen = {name: f"our:{name}" if name in raw else name.removeprefix(RAW) for name in rows.columns}
    renamed = rows.select(*[F.col(quoted(name)).alias(alias) for name, alias in seen.items()])
    judged = renamed.withColumns({flag: F.expr(predicate) for flag, predicate in conditions.items()})
    back = [F.col(quoted(alias)).alias(name) for name, alias in seen.items()]
    return judged.select(*back, *[quoted(flag) for flag in conditions])


def _is_late(event_time: Column, arrival: Column, max_late_hours: int) -> Column:
    return arrival > event_time + F.expr(f"INTERVAL {max_late_hours} HOURS")


def _day(source: EventSource, event_time: Column, arrival: Column | None) -> Column:
    event_day = F.to_date(event_time)
    misdated = event_time.isNull()
    if arrival is not None:
        misdated |= (event_time > arrival) | _is_late(event_time, arrival, source.max_late_hours)
    if _has_folders(source):
        folder_day = _folder_day(source)
        misfiled = ~F.datediff(folder_day, event_day).isin(0, 1)
        if arrival is not None:
            misfiled |= arrival.isNull()
        return F.when(F.coalesce(misdated, F.lit(False)) | misfiled, folder_day).otherwise(event_day)
    if arrival is None:
        return event_day
    return F.to_date(F.when(misdated & arrival.isNotNull(), arrival).otherwise(event_time))


def _folder_day(source: EventSource) -> Column:
    """The day that the file's folder is named for."""
    before = source.path.split(DAY_PLACEHOLDER)[0].split("/")[-1]
    found = F.regexp_extract(quoted(FILE_PATH), rf"/\Q{before}\E(\d{{4}}-\d{{2}}-\d{{2}})", 1)
    return F.to_date(found)  # no match is an error: Spark refuses to read '' as a date


def _may_belong(event_time: Column, arrival: Column | None, days: Sequence[date]) -> Column:
    """A wider condition on single columns, which Parquet can answer from its statistics."""
    begin, end = min(days), max(days) + timedelta(days=1)
    dated = (event_time >= F.lit(begin)) & (event_time < F.lit(end))
    if arrival is None:
        return dated
    return dated | ((arrival >= F.lit(begin)) & (arrival < F.lit(end)))
