"""Tables on a file system that driver and executors share: atomic, versioned partitions.

A table is `<root>/<table>/`. Data lie in `data/<version>/by_<column>=<value>/…/*.parquet`; which version
a partition has is said by one small file, `partitions/<value>/….json`, replaced atomically. So a
reader sees the old partition or the new one, never a half; a killed write leaves a data directory
that no partition names, and the next write of the table removes it.

What does not belong here: what the rows mean.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from pipelines.steps.errors import DataError

ORPHAN_AGE_SECONDS = 24 * 3600
"""Unnamed data younger than this may belong to a write in progress, or to a reader of the last version."""


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
    """

    key: str
    version: str
    directory: str
    rows: int
    schema: str
    properties: Mapping[str, Any] = field(default_factory=dict)


class Lake(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Reads and writes the tables of the factory."""

    root: str = Field(description="Directory of all tables; a path that driver and executors share.")

    def partition(self, table: str, key: str) -> Partition:
        """The current version of one partition.

        Raises:
            DataError: The partition was never written.
        """
        try:
            return Partition(**json.loads(self._pointer(table, key).read_bytes()))
        except FileNotFoundError:
            raise DataError(
                f"{table} has no partition {key}",
                found=_abridged(self.partition_keys(table)) or "no partition at all",
                expected=key,
                remedy=f"materialize {table} for {key} first",
            ) from None

    def partition_keys(self, table: str, within: str = "") -> list[str]:
        """The keys of a table's partitions, sorted; `within` "car_buyers", that audience's days alone."""
        pointers = self._table(table) / "partitions" / within
        return sorted(p.relative_to(pointers).with_suffix("").as_posix() for p in pointers.rglob("*.json"))

    def files(self, table: str, keys: Iterable[str]) -> list[Path]:
        """The Parquet files of the partitions named; none of those without rows.

        Raises:
            DataError: As `read`.
        """
        filled = [partition for partition in self._partitions(table, keys) if partition.rows]
        return [file for p in filled for file in sorted((self._table(table) / p.directory).glob("*.parquet"))]

    def read(self, spark: SparkSession, table: str, keys: Iterable[str]) -> DataFrame:
        """The rows of the partitions named.

        Raises:
            DataError: A partition was never written; names all that are missing. Or some have other
                columns than the last one, which Spark would read as nulls.
        """
        partitions = self._partitions(table, keys)
        filled = [partition for partition in partitions if partition.rows]
        if not filled:
            return spark.createDataFrame([], _schema(partitions[-1]))
        paths = [str(self._table(table) / partition.directory) for partition in filled]
        return spark.read.schema(_schema(filled[-1])).parquet(*paths)

    def write(
        self,
        frame: DataFrame,
        table: str,
        *,
        by: Sequence[str],
        keys: Sequence[str],
        properties: Mapping[str, Any] | None = None,
        sort: Sequence[str] = (),
        files_per_partition: int | None = 1,
        options: Mapping[str, str] | None = None,
        expected_rows: Mapping[str, int] | None = None,
    ) -> dict[str, Partition]:
        """Replaces the partitions `keys` by the rows of `frame`, in one Spark job.

        Args:
            frame: The rows, with the columns `by`.
            table: The table's name.
            by: Partition columns; their values joined by "/" are the keys.
            keys: Every partition to replace; one without rows becomes empty.
            properties: Remembered with each of these partitions.
            sort: Columns that order the rows of a file; the first one spreads rows over files.
            files_per_partition: Parquet files a partition is written to; None: one per task that has rows of
                it, which nothing is shuffled or sorted for.
            options: Of Spark's Parquet writer.
            expected_rows: Key → rows that are to be written, where that is known. Spark's commit does not
                notice that the files of a finished task are gone.

        Raises:
            DataError: The frame has rows of a partition not in `keys`, or others were written than expected;
                nothing is replaced.
        """
        version = f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
        data = self._table(table) / "data" / version
        schema = frame.schema.json()
        # Copies, because Spark takes the columns it partitions by out of the files.
        directories = {f"by_{column}": F.col(column) for column in by}
        rows = frame.withColumns(directories)
        if files_per_partition is not None:
            several = files_per_partition > 1
            spread = [F.pmod(F.xxhash64(sort[0]), F.lit(files_per_partition))] if several else []
            # Spark's adaptive execution chooses how many tasks. Sorted by the copies: Spark orders what it
            # writes by them, and would drop any other order as useless.
            rows = rows.repartition(*by, *spread).sortWithinPartitions(*directories, *sort)
        rows.write.options(**(options or {})).partitionBy(*directories).parquet(str(data))
        written = self._written(table, version, by, schema, dict(properties or {}))
        unexpected = sorted(set(written) - set(keys))
        if unexpected:
            shutil.rmtree(data)
            raise DataError(
                f"rows of other partitions than asked for were about to be written to {table}",
                found=_abridged(unexpected),
                expected=_abridged(list(keys)),
                remedy="this is a fault of the step that made the rows; nothing was replaced",
            )
        found = {key: written[key].rows if key in written else 0 for key in expected_rows or {}}
        wrong = [key for key, expected in (expected_rows or {}).items() if found[key] != expected]
        if wrong:
            raise DataError(
                f"other rows of {table} were written than expected",
                found=_abridged([f"{found[key]} rows of {key}" for key in wrong]),
                expected=_abridged([f"{(expected_rows or {})[key]} rows of {key}" for key in wrong]),
                remedy=f"nothing was replaced: run again; and see what else removes files in {data}",
            )
        empty = Partition("", version, f"data/{version}/empty", 0, schema, dict(properties or {}))
        partitions = {key: written.get(key, Partition(**(asdict(empty) | {"key": key}))) for key in keys}
        for key, partition in partitions.items():
            self._publish(table, key, partition)
        self._remove_orphans(table)
        return partitions

    def _partitions(self, table: str, keys: Iterable[str]) -> list[Partition]:
        wanted = list(keys)
        missing = sorted(set(wanted) - set(self.partition_keys(table)))
        if missing or not wanted:
            raise DataError(
                f"{table} lacks {len(missing)} of the {len(wanted)} partitions asked for",
                found=_abridged(self.partition_keys(table)) or "no partition at all",
                expected=_abridged(missing),
                remedy=f"materialize {table} for these partitions first (a backfill over the range does it)",
            )
        partitions = [self.partition(table, key) for key in wanted]
        _require_same_columns(table, [partition for partition in partitions if partition.rows])
        return partitions

    def _written(
        self, table: str, version: str, by: Sequence[str], schema: str, properties: dict[str, Any]
    ) -> dict[str, Partition]:
        home = self._table(table)
        rows: dict[str, int] = {}
        # Only where readers look: an attempt that Spark has given up may still write to its own directory.
        committed = "/".join([*(f"by_{column}=*" for column in by), "*.parquet"])
        for file in sorted((home / "data" / version).glob(committed)):
            directory = file.parent.relative_to(home).as_posix()
            rows[directory] = rows.get(directory, 0) + _count_rows(file)
        partitions = {}
        for directory, count in rows.items():
            values = [part.split("=", 1)[1] for part in directory.split("/")[-len(by) :]]
            key = "/".join(values)
            partitions[key] = Partition(key, version, directory, count, schema, properties)
        return partitions

    def _publish(self, table: str, key: str, partition: Partition) -> None:
        pointer = self._pointer(table, key)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        draft = pointer.with_suffix(f".{partition.version}.tmp")
        with draft.open("w") as stream:
            json.dump(asdict(partition), stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(pointer)

    def _remove_orphans(self, table: str) -> None:
        """Removes versions that no partition names and that nobody can still be writing or reading."""
        named = {self.partition(table, key).version for key in self.partition_keys(table)}
        for directory in (self._table(table) / "data").iterdir():
            written_at = int(directory.name.split("-")[0], 16) / 1e9
            if directory.name not in named and time.time() - written_at > ORPHAN_AGE_SECONDS:
                shutil.rmtree(directory)

    def _table(self, table: str) -> Path:
        return Path(self.root).absolute() / table

    def _pointer(self, table: str, key: str) -> Path:
        return self._table(table) / "partitions" / f"{key}.json"


def describe(partitions: Sequence[Partition]) -> dict[str, Any]:
    """What every materialization of a table says of itself, as Dagster metadata."""
    keys = sorted(partition.key for partition in partitions)
    return {
        "dagster/row_count": sum(partition.rows for partition in partitions),
        "partitions": len(keys),
        "partition": keys[0] if len(keys) == 1 else f"{keys[0]} … {keys[-1]}",
        "schema_hash": hashlib.sha256(partitions[0].schema.encode()).hexdigest()[:12],
        "version": partitions[0].version,
    }


def _count_rows(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file} was damaged while its table was written",
            found=str(error),
            expected="a Parquet file as it was written",
            remedy="nothing was replaced: run again",
        ) from error


def _schema(partition: Partition) -> StructType:
    return StructType.fromJson(json.loads(partition.schema))


def _require_same_columns(table: str, partitions: Sequence[Partition]) -> None:
    # simpleString leaves out what may be null, which differs with the way rows were made.
    if not partitions:
        return
    columns = {p.key: _schema(p).simpleString() for p in partitions}
    newest = partitions[-1].key
    others = [key for key, found in columns.items() if found != columns[newest]]
    if others:
        raise DataError(
            f"partitions {_abridged(others)} of {table} have other columns than {newest}",
            found=columns[others[0]],
            expected=columns[newest],
            remedy=f"materialize {table} for these partitions again (a backfill over the range does it)",
        )


def _abridged(keys: Sequence[str], most: int = 6) -> str:
    if len(keys) <= most:
        return ", ".join(keys)
    return f"{', '.join(keys[: most - 1])}, … {keys[-1]} ({len(keys)} in all)"
