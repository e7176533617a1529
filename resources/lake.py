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

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PrivateAttr
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.steps.config.settings import remedy_for_missing
from pipelines.steps.errors import DataError, abridged, day_ranges
from pipelines.steps.progress import Work, beating, working
from resources.durable_files import draft_beside, make_directory_durably, sync_directory, write_durably
from resources.snapshots import Partition, Snapshot, Versions, read_partition
from resources.spark_jobs import describe_jobs

logger = logging.getLogger(__name__)
ORPHAN_AGE_SECONDS = 24 * 3600
"""Unnamed data younger than this may belong to a write in progress, or to a reader of the last version."""
Properties = Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
"""What is remembered with every partition of a write alike, or with each by its key."""


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
            found = read_partition(self._pointer(table, key))
        except FileNotFoundError:
            raise self._never_made(table, [key], [key]) from None
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

    def is_made_from_present(self, partition: Partition) -> bool:
        """Whether the partitions that one was made from still have the versions that were read for it."""
        for path, version in partition.made_from.items():
            table, _, key = path.partition("/")
            if self.partition(table, key).version != version:
                return False
        return True

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
            raise self._never_made(table, missing, wanted)
        snapshot = self.at(table, [self.partition(table, key) for key in wanted])
        logger.info("reading %s of %s: %s rows", table, day_ranges(wanted), f"{snapshot.rows:,}")
        return snapshot

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
        with working(f"writing {table} of {day_ranges(keys)}", describe_jobs) as work:
            rows.write.options(**(options or {})).partitionBy(*directories).parquet(str(data))
            written = self._written(table, version, by, schema)
            work.result = f"{sum(partition.rows for partition in written.values()):,} rows"
        unexpected = sorted(set(written) - set(keys))
        if unexpected:
            shutil.rmtree(data)
            raise DataError(
                f"rows of other partitions than asked for were about to be written to {table}",
                found=abridged(unexpected),
                expected=abridged(list(keys)),
                remedy="this is a fault of the step that made the rows; nothing was replaced",
            )
        found = {key: written[key].rows if key in written else 0 for key in expected_rows or {}}
        wrong = [key for key, expected in (expected_rows or {}).items() if found[key] != expected]
        if wrong:
            raise DataError(
                f"other rows of {table} were written than expected",
                found=abridged([f"{found[key]} rows of {key}" for key in wrong]),
                expected=abridged([f"{(expected_rows or {})[key]} rows of {key}" for key in wrong]),
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
        self._commit(table, partitions)
        return partitions

    def _commit(self, table: str, partitions: Mapping[str, Partition]) -> None:
        done: list[str] = []
        committing = Work(f"committing {table}", lambda: f"{len(done)} of {len(partitions)} partitions")
        with beating(committing):
            for key, partition in partitions.items():
                self._publish(table, partition)
                self._see(table, partition)
                done.append(key)
            self._remove_orphans(table)

    def _never_made(self, table: str, missing: Sequence[str], wanted: Sequence[str]) -> DataError:
        return DataError(
            f"{table} of {day_ranges(missing)} was never made"
            if missing
            else f"no day of {table} is asked for",
            found=day_ranges(self.partition_keys(table)) or "no partition at all",
            expected=day_ranges(wanted) or "a partition at least",
            remedy=remedy_for_missing(table, missing) if missing else "this is a fault of the step that asks",
        )

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
            make_directory_durably(directory)
        draft = draft_beside(pointer)
        try:
            write_durably(draft, json.dumps(asdict(partition)))
            os.link(draft, record)
            draft.replace(pointer)
        finally:
            draft.unlink(missing_ok=True)
        for directory in (record.parent, pointer.parent):
            sync_directory(directory)

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
            return read_partition(self._record(table, key, version))
        except FileNotFoundError:
            raise DataError(
                f"nothing is known of version {version} of {table} {key} any more",
                found="no record of it",
                expected=f"{self._record(table, key, version)}",
                remedy="materialize again what was made from it, from the oldest asset on",
            ) from None

    def _remove_orphans(self, table: str) -> None:
        """Removes versions that no partition names and that nobody can still be writing or reading."""
        named = {read_partition(self._pointer(table, key)).version for key in self.partition_keys(table)}
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
