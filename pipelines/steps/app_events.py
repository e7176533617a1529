"""Raw events, sorted into UTC days, and every row accounted for: accepted, duplicate or rejected.

Each raw row belongs to exactly one day, told from the row alone. That is the day of its event time,
unless the event time is missing, lies after the arrival, or lies further before it than
`max_late_hours`: then it is the day of arrival, where the row is rejected. The day of arrival is that of
the folder where the source has one per day, else that of the arrival column. So a day computed at
`max_late_hours` after midnight equals the same day computed by a backfill a year later.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.steps.errors import DataError
from pipelines.steps.project import EventSource

REASON = "rejected_because"
ZERO_ID = r"^[0:\-\s]*0[0:\-\s]*$"
"""An advertising id of zeros is what a phone sends when its owner forbids tracking."""
WHITE_SPACE = " \t\r\n"
"""Around an id it is dirt; Spark's own trim takes spaces only."""
SCIENTIFIC = r"^\d+(\.\d+)?E\d+$"


def read_raw_events(spark: SparkSession, source: EventSource, days: Sequence[date]) -> DataFrame:
    """The raw rows that belong to `days`, with the columns `device_id`, `event_time`, `day`.

    Args:
        spark: The session.
        source: Where events lie and how their columns are named.
        days: Consecutive or not; all are read in one scan.

    Raises:
        DataError: There are no events at all where the source says they lie.
    """
    raw = spark.read.parquet(*_paths(source, days))
    event_time = F.col(source.time_column).cast("timestamp")
    arrival = F.col(source.arrival_column).cast("timestamp") if source.arrival_column else None
    if not _has_folders(source):
        raw = raw.where(_may_belong(event_time, arrival, days))
    # Spark compares names without regard to case: "Device_ID" is then the new column already.
    drop = [source.id_column] if source.id_column.lower() != "device_id" else []
    return (
        raw.withColumns(
            {
                "device_id": _normalized_id(F.col(source.id_column).cast("string"), source.id_normalizer),
                "day": _day(source, event_time, arrival),
                "event_time": event_time,
            }
        )
        .drop(*drop)
        .where(F.col("day").isin(list(days)))
    )


def label_rejections(raw: DataFrame, source: EventSource) -> DataFrame:
    """Adds the column `rejected_because`: null for a row to keep, else the first reason that holds."""
    missing = F.col("device_id").isNull() | (F.col("device_id") == "")
    reason = F.when(missing, "missing_id").when(F.col("device_id").rlike(ZERO_ID), "zero_id")
    reason = reason.when(F.col("event_time").isNull(), "missing_time")
    if source.arrival_column:
        arrival = F.col(source.arrival_column).cast("timestamp")
        reason = (
            reason.when(arrival.isNull(), "missing_arrival")
            .when(F.col("event_time") > arrival, "future_event")
            .when(_is_late(F.col("event_time"), arrival, source.max_late_hours), "late_event")
        )
    # Its folder is of another day than its arrival: were it kept, one day's run would never see it.
    reason = reason.when(F.to_date("event_time") != F.col("day"), "misfiled_event")
    for name, predicate in source.filters.items():
        reason = reason.when(~F.coalesce(F.expr(predicate), F.lit(False)), f"filter:{name}")
    return raw.withColumn(REASON, reason)


def accept_events(labelled: DataFrame) -> DataFrame:
    """The rows to keep, each once, with `copies`: how many equal raw rows it stands for."""
    kept = labelled.where(F.col(REASON).isNull()).drop(REASON)
    return kept.groupBy(*kept.columns).agg(F.count("*").alias("copies"))


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
        F.count("*").alias("accepted"), F.sum(F.col("copies") - 1).alias("duplicate")
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
    raw = spark.read.parquet(*_paths(source, days))
    undated = F.col(source.time_column).isNull()
    if source.arrival_column:
        undated &= F.col(source.arrival_column).isNull()
    return raw.where(undated).count()


def _has_folders(source: EventSource) -> bool:
    return "{day}" in source.path


def _paths(source: EventSource, days: Sequence[date]) -> list[str]:
    if not _has_folders(source):
        return [source.path]
    # An accepted event arrives on its own day or, less than 24 hours late, on the next.
    arrivals = sorted({d for day in days for d in (day, day + timedelta(days=1))})
    paths = [source.path.replace("{day}", day.isoformat()) for day in arrivals]
    found = [path for path in paths if Path(path).exists()]
    absent = sorted(
        d.isoformat() for d in days if not Path(source.path.replace("{day}", d.isoformat())).exists()
    )
    if absent:
        raise DataError(
            f"no events arrived on {len(absent)} of the {len(days)} days asked for",
            found=f"no {source.written_path} for {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}",
            expected="one directory per day of arrival",
            remedy="let the events land first, or correct events.path in fields.yaml",
        )
    return found


def _normalized_id(column: Column, normalizer: str) -> Column:
    trimmed = F.trim(column, F.lit(WHITE_SPACE))
    if normalizer == "lower":
        return F.lower(trimmed)
    if normalizer == "integer":
        # Ids with gaps are stored as floats: 12345678.0 reads "1.2345678E7", and a gap may read "NaN".
        plain = F.when(trimmed.rlike(SCIENTIFIC), trimmed.try_cast("decimal(38,4)").cast("string"))
        return F.nullif(F.regexp_replace(F.coalesce(plain, trimmed), r"\.0+$", ""), F.lit("NaN"))
    return trimmed


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
    before = source.path.split("{day}")[0].split("/")[-1]
    found = F.regexp_extract("_metadata.file_path", rf"/\Q{before}\E(\d{{4}}-\d{{2}}-\d{{2}})", 1)
    return F.to_date(found)  # no match is an error: Spark refuses to read '' as a date


def _may_belong(event_time: Column, arrival: Column | None, days: Sequence[date]) -> Column:
    """A wider condition on single columns, which Parquet can answer from its statistics."""
    begin, end = min(days), max(days) + timedelta(days=1)
    dated = (event_time >= F.lit(begin)) & (event_time < F.lit(end))
    if arrival is None:
        return dated
    return dated | ((arrival >= F.lit(begin)) & (arrival < F.lit(end)))
