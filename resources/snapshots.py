"""Versions of a table's partitions, as they were when they were looked at, and the rows that they hold.

What does not belong here: how partitions are written, and which version a run goes by (`lake`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from pipelines.steps.config.settings import MADE_WITH, require_settings
from pipelines.steps.errors import DataError, abridged

Versions = Mapping[str, str]
"""Table and key, such as "daily_fields/2025-05-30" → the version of that partition."""


@dataclass(frozen=True)
class Partition:
    """What is known of one partition of a table.

    Attributes:
        key: Values of the partition columns joined by "/", such as "car_buyers/2025-05-30".
        version: The write that made it.
        directory: Where its Parquet files lie, relative to the table; absent files mean no rows.
        rows: Number of rows.
        schema: The rows' Spark schema, as JSON.
        properties: What the writer wants to remember: hashes, counts, versions.
        made_from: The partitions that its rows were made from.
    """

    key: str
    version: str
    directory: str
    rows: int
    schema: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    made_from: Versions = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Partitions of a table, each at the version that it had when it was looked at.

    Attributes:
        table: The table.
        home: Its directory.
        partitions: At least one, in the order asked for.
    """

    table: str
    home: Path
    partitions: tuple[Partition, ...]

    @property
    def rows(self) -> int:
        """Rows of all partitions together."""
        return sum(partition.rows for partition in self.partitions)

    @property
    def versions(self) -> dict[str, str]:
        """What a partition made from these remembers."""
        return {f"{self.table}/{partition.key}": partition.version for partition in self.partitions}

    def only(self, keys: Iterable[str]) -> "Snapshot":
        """Those of the partitions that are named."""
        wanted = set(keys)
        return Snapshot(self.table, self.home, tuple(p for p in self.partitions if p.key in wanted))

    def made_with(self, settings: Mapping[str, Any], by: str | None = None) -> "Snapshot":
        """The same, where the settings named are those that each partition was made with.

        Args:
            settings: Those that matter.
            by: The model that needs them; None: they are those of the present fields.yaml.

        Raises:
            DataError: A setting differs; names the key, the partitions and the remedy.
        """
        made_with = {partition.key: partition.properties.get(MADE_WITH, {}) for partition in self.partitions}
        require_settings(self.table, made_with, settings, by)
        return self

    def files(self) -> list[Path]:
        """The Parquet files; none of partitions without rows."""
        directories = [self.home / partition.directory for partition in self.partitions if partition.rows]
        return [file for directory in directories for file in sorted(directory.glob("*.parquet"))]

    def frame(self, spark: SparkSession, columns: Sequence[str] | None = None) -> DataFrame:
        """The rows.

        Args:
            spark: The session.
            columns: Those to read; other columns may differ from partition to partition. All if None.

        Raises:
            DataError: Partitions have other columns than the last one, which Spark would read as nulls.
        """
        filled = [partition for partition in self.partitions if partition.rows]
        _require_same_columns(self.table, filled, columns)
        schema = _schema((filled or list(self.partitions))[-1], columns)
        if not filled:
            return spark.createDataFrame([], schema)
        return spark.read.schema(schema).parquet(*[str(self.home / p.directory) for p in filled])


def day_of(partition: Partition) -> str:
    """The day of a daily table's partition, or of an audience's day, ISO."""
    return partition.key.rpartition("/")[2]


def read_partition(file: Path) -> Partition:
    """What a pointer or a record says."""
    return Partition(**json.loads(file.read_bytes()))


def _schema(partition: Partition, columns: Sequence[str] | None = None) -> StructType:
    whole = StructType.fromJson(json.loads(partition.schema))
    if columns is None:
        return whole
    return StructType([whole[name] for name in columns if name in whole.names])


def _require_same_columns(
    table: str, partitions: Sequence[Partition], columns: Sequence[str] | None = None
) -> None:
    if not partitions:
        return
    # simpleString leaves out what may be null, which differs with the way rows were made.
    found = {p.key: _schema(p, columns).simpleString() for p in partitions}
    newest = partitions[-1].key
    expected = found[newest]
    others = [key for key, schema in found.items() if schema != expected]
    lacking = [name for name in columns or [] if name not in _schema(partitions[-1]).names]
    if lacking:
        raise DataError(
            f"{table} {newest} has no column {', '.join(lacking)}",
            found=_schema(partitions[-1]).names,
            expected=list(columns or []),
            remedy=f"materialize {table} for this partition again, with the files that name these columns",
        )
    if others:
        raise DataError(
            f"partitions {abridged(others)} of {table} have other columns than {newest}",
            found=found[others[0]],
            expected=expected,
            remedy=f"materialize {table} for these partitions again (a backfill over the range does it)",
        )
