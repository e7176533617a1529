"""Tables on a file system that driver and executors share: atomic, versioned partitions.

A table is `<root>/<table>/`. Data lie in `data/<version>/by_<column>=<value>/…/*.parquet`; which version
a partition has is said by one small file, `partitions/<value>/….json`, replaced atomically. So a
reader sees the old partition or the new one, never a half; a killed write leaves a data directory
that no partition names, and the next write of the table removes it.

A run reads one version of each partition, and says which. Within a run the first look at a partition decides
on its version, whatever other runs publish meanwhile, and what the run itself writes takes that place; each
partition remembers the versions that it was made from, in `versions/<value>/…/<version>.json`, which stays.

What does not belong here: what the rows mean.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PrivateAttr
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from pipelines.steps.config.settings import MADE_WITH, require_settings
from pipelines.steps.errors import DataError

ORPHAN_AGE_SECONDS = 24 * 3600
"""Unnamed data younger than this may belong to a write in progress, or to a reader of the last version."""


Versions = Mapping[str, str]
"""Table and key, such as "daily_fields/2025-05-30" → the version of that partition."""
Properties = Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
"""What is remembered with every partition of a write alike, or with each by its key."""


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


class Lake(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Reads and writes the tables of the factory."""

    root: str = Field(description="Directory of all tables; a path that driver and executors share.")

    # Table and key → the version that this run goes by; None outside of a run, where each look is a new one.
    _seen: dict[tuple[str, str], Partition] | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 (Dagster's)
        """Begins a run, within which a partition has one version."""
        self._seen = {}

    def partition(self, table: str, key: str) -> Partition:
        """The version of one partition that the run goes by; outside of a run, the current one.

        Raises:
            DataError: The partition was never written.
        """
        if self._seen is not None and (table, key) in self._seen:
            return self._seen[table, key]
        try:
            found = _read_partition(self._pointer(table, key))
        except FileNotFoundError:
            raise DataError(
                f"{table} has no partition {key}",
                found=_abridged(self.partition_keys(table)) or "no partition at all",
                expected=key,
                remedy=f"materialize {table} for {key} first",
            ) from None
        self._see(table, found)
        return found

    def at(self, table: str, partitions: Iterable[Partition]) -> Snapshot:
        """Partitions at the versions given."""
        return Snapshot(table, self._table(table), tuple(partitions))

    def made_from(self, partition: Partition) -> Iterator[tuple[str, Partition]]:
        """The partitions that a partition was made from, and those that they were made from, each once.

        Yields:
            Table and partition, at the version that was read, be it the current one still or not.

        Raises:
            DataError: Nothing is known of one of them any more.
        """
        known: set[tuple[str, str, str]] = set()
        waiting = [partition]
        while waiting:
            for path, version in waiting.pop().made_from.items():
                parent_table, _, key = path.partition("/")
                if (parent_table, key, version) in known:
                    continue
                known.add((parent_table, key, version))
                parent = self._recorded(parent_table, key, version)
                waiting.append(parent)
                yield parent_table, parent

    def partition_keys(self, table: str, within: str = "") -> list[str]:
        """The keys of a table's partitions, sorted; `within` "car_buyers", that audience's days alone."""
        pointers = self._table(table) / "partitions" / within
        return sorted(p.relative_to(pointers).with_suffix("").as_posix() for p in pointers.rglob("*.json"))

    def snapshot(self, table: str, keys: Iterable[str]) -> Snapshot:
        """The partitions named, each looked at once.

        Raises:
            DataError: A partition was never written; names all that are missing.
        """
        wanted = list(keys)
        missing = sorted(set(wanted) - set(self.partition_keys(table)))
        if missing or not wanted:
            raise DataError(
                f"{table} lacks {len(missing)} of the {len(wanted)} partitions asked for",
                found=_abridged(self.partition_keys(table)) or "no partition at all",
                expected=_abridged(missing),
                remedy=f"materialize {table} for these partitions first (a backfill over the range does it)",
            )
        return self.at(table, [self.partition(table, key) for key in wanted])

    def files(self, table: str, keys: Iterable[str]) -> list[Path]:
        """The files of a `snapshot`."""
        return self.snapshot(table, keys).files()

    def read(self, spark: SparkSession, table: str, keys: Iterable[str]) -> DataFrame:
        """The rows of a `snapshot`."""
        return self.snapshot(table, keys).frame(spark)

    def write(
        self,
        frame: DataFrame,
        table: str,
        *,
        by: Sequence[str],
        keys: Sequence[str],
        properties: Properties | None = None,
        made_from: Callable[[str], Versions] | None = None,
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
            made_from: Key → the partitions that its rows were made from.
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
        written = self._written(table, version, by, schema)
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
        partitions = {
            key: replace(
                written.get(key, Partition(key, version, f"data/{version}/empty", 0, schema)),
                properties=dict(properties(key) if callable(properties) else properties or {}),
                made_from=dict(made_from(key) if made_from else {}),
            )
            for key in keys
        }
        for partition in partitions.values():
            self._publish(table, partition)
            self._see(table, partition)
        self._remove_orphans(table)
        return partitions

    def _see(self, table: str, partition: Partition) -> None:
        if self._seen is not None:
            self._seen[table, partition.key] = partition

    def _written(self, table: str, version: str, by: Sequence[str], schema: str) -> dict[str, Partition]:
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
            partitions[key] = Partition(key, version, directory, count, schema)
        return partitions

    def _publish(self, table: str, partition: Partition) -> None:
        pointer = self._pointer(table, partition.key)
        record = self._record(table, partition.key, partition.version)
        for directory in (pointer.parent, record.parent):
            directory.mkdir(parents=True, exist_ok=True)
        draft = pointer.with_suffix(f".{partition.version}.tmp")
        with draft.open("w") as stream:
            json.dump(asdict(partition), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(draft, record)
        draft.replace(pointer)

    def sources(self, partitions: Iterable[Partition], table: str) -> Snapshot:
        """The partitions of a table that others were made from, at the versions that were read for them.

        Raises:
            DataError: Nothing is known of one of them any more.
        """
        paths = [
            (path.removeprefix(f"{table}/"), version)
            for partition in partitions
            for path, version in partition.made_from.items()
            if path.startswith(f"{table}/")
        ]
        return self.at(table, [self._recorded(table, key, version) for key, version in dict.fromkeys(paths)])

    def _recorded(self, table: str, key: str, version: str) -> Partition:
        """What was known of a version when it was written."""
        try:
            return _read_partition(self._record(table, key, version))
        except FileNotFoundError:
            raise DataError(
                f"nothing is known of version {version} of {table} {key} any more",
                found="no record of it",
                expected=f"{self._record(table, key, version)}",
                remedy="materialize again what was made from it, from the oldest asset on",
            ) from None

    def _remove_orphans(self, table: str) -> None:
        """Removes versions that no partition names and that nobody can still be writing or reading."""
        named = {_read_partition(self._pointer(table, key)).version for key in self.partition_keys(table)}
        for directory in (self._table(table) / "data").iterdir():
            written_at = int(directory.name.split("-")[0], 16) / 1e9
            if directory.name not in named and time.time() - written_at > ORPHAN_AGE_SECONDS:
                shutil.rmtree(directory)

    def _table(self, table: str) -> Path:
        return Path(self.root).absolute() / table

    def _pointer(self, table: str, key: str) -> Path:
        return self._table(table) / "partitions" / f"{key}.json"

    def _record(self, table: str, key: str, version: str) -> Path:
        return self._table(table) / "versions" / key / f"{version}.json"


def materialized(
    partitions: Sequence[Partition],
    metadata: Mapping[str, Any] | None = None,
    asset: dg.AssetKey | None = None,
) -> dg.MaterializeResult[None]:
    """What an asset returns that has written these partitions in one go."""
    return dg.MaterializeResult(
        asset_key=asset,
        metadata={**describe(partitions), **(metadata or {})},
        data_version=dg.DataVersion(partitions[0].version),
    )


def day_of(partition: Partition) -> str:
    """The day of a daily table's partition, or of an audience's day, ISO."""
    return partition.key.rpartition("/")[2]


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


def _read_partition(file: Path) -> Partition:
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
            f"partitions {_abridged(others)} of {table} have other columns than {newest}",
            found=found[others[0]],
            expected=expected,
            remedy=f"materialize {table} for these partitions again (a backfill over the range does it)",
        )


def _abridged(keys: Sequence[str], most: int = 6) -> str:
    if len(keys) <= most:
        return ", ".join(keys)
    return f"{', '.join(keys[: most - 1])}, … {keys[-1]} ({len(keys)} in all)"
