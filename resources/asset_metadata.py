"""What assets say of what they have written, as Dagster's pages and plots show it.

A run over a range of days writes them in one go, and Dagster copies what an asset returns to every day of the
range: what is true of one day alone is recorded for that day.

What does not belong here: which figures tell whether an asset went well (the assets know), what columns mean
and what of them a sample may show (`pipelines.steps`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from pyspark.sql.types import StructType

from pipelines.steps.table_columns import TableColumns
from pipelines.steps.table_sample import sample_rows
from resources.snapshots import Partition, Snapshot, day_of

COLUMN_SCHEMA, COLUMN_LINEAGE, ROW_COUNT = (
    "dagster/column_schema",
    "dagster/column_lineage",
    "dagster/row_count",
)
"""Names that Dagster's pages know."""
UNNAMED = "A raw column that no file of the project names, as it came."
Figures = Callable[[Partition], Mapping[str, Any]]
"""The metadata of one day."""


@dataclass(frozen=True)
class TableDescription:
    """An asset's columns, in Dagster's words.

    Attributes:
        columns: What is known of them.
        sources: Table → the asset that makes it, where the asset has another name.
    """

    columns: TableColumns
    sources: Mapping[str, dg.AssetKey] = field(default_factory=dict)

    def known(self) -> dict[str, Any]:
        """The columns that the table has whatever it holds, for the asset's definition."""
        types = {name: column.type for name, column in self.columns.items() if column.type}
        return {COLUMN_SCHEMA: self._schema(types), COLUMN_LINEAGE: self._lineage(types)}

    def stored(self, schema: str) -> dict[str, Any]:
        """The columns that were written, and what they were made from.

        Args:
            schema: Spark's, as JSON.
        """
        stored = StructType.fromJson(json.loads(schema))
        return {
            COLUMN_SCHEMA: self._schema({each.name: each.dataType.simpleString() for each in stored}),
            COLUMN_LINEAGE: self._lineage(stored.names),
        }

    def _lineage(self, names: Iterable[str]) -> dg.TableColumnLineage:
        made_from = {name: self.columns[name].made_from for name in names if name in self.columns}
        return dg.TableColumnLineage(
            {
                name: [
                    dg.TableColumnDep(self.sources.get(table, dg.AssetKey(table)), column)
                    for table, columns in tables.items()
                    for column in columns
                ]
                for name, tables in made_from.items()
                if tables
            }
        )

    def _schema(self, types: Mapping[str, str]) -> dg.TableSchema:
        return dg.TableSchema(
            [
                dg.TableColumn(
                    name, kind, self.columns[name].description if name in self.columns else UNNAMED
                )
                for name, kind in types.items()
            ]
        )


def materialized(
    table: Snapshot, described: TableDescription, metadata: Mapping[str, Any]
) -> dg.MaterializeResult[None]:
    """What an asset without partitions returns that has written its table."""
    [partition] = table.partitions
    everything = {**describe(partition), **described.stored(partition.schema), **metadata}
    return dg.MaterializeResult(
        metadata=everything | _sample(table, described), data_version=dg.DataVersion(partition.version)
    )


def materialized_days(
    context: dg.AssetExecutionContext,
    days: Snapshot,
    described: TableDescription,
    figures: Figures = lambda _: {},
    shared: Mapping[str, Any] | None = None,
    asset: dg.AssetKey | None = None,
) -> dg.MaterializeResult[None]:
    """What a daily asset returns that has written these days in one run.

    Args:
        context: The run of the asset.
        days: What was written.
        described: Its columns.
        figures: What to say of each day, beside its rows.
        shared: What is true of all of them.
        asset: Which asset, where a step has several.
    """
    for partition in days.partitions:
        record_day(context, day_of(partition), {**describe(partition), **figures(partition)}, asset)
    newest = days.partitions[-1]
    record_day(context, day_of(newest), _sample(days.only([newest.key]), described), asset)
    return dg.MaterializeResult(
        asset_key=asset,
        metadata={**described.stored(newest.schema), **(shared or {})},
        data_version=data_version(days.partitions),
    )


def record_day(
    context: dg.AssetExecutionContext,
    day: str,
    metadata: Mapping[str, Any],
    asset: dg.AssetKey | None = None,
) -> None:
    """Says something of one day of a daily asset's run, and of no other."""
    context.add_asset_metadata(metadata, asset_key=asset, partition_key=day)


def record_made(context: dg.AssetExecutionContext, asset: dg.AssetKey, days: Snapshot) -> None:
    """Records days of a daily asset as made by the run of another one, which holds no days.

    A materialization that a step logs by Dagster's own means is written down only once the step ends: one
    that is killed before would leave days that nobody knows of. `report_dagster_event` is no public API;
    tests/test_training_days.py notices.
    """
    for partition in days.partitions:
        made = dg.AssetMaterialization(
            asset,
            partition=day_of(partition),
            metadata=describe(partition),
            # Without the code's version beside it, Dagster tells by the time whether there is newer input.
            tags={DATA_VERSION_TAG: partition.version},
        )
        event = DagsterEvent(
            DagsterEventType.ASSET_MATERIALIZATION.value,
            context.run.job_name,
            step_key=context.op_execution_context.op_handle.name,
            event_specific_data=StepMaterializationData(made),
        )
        context.instance.report_dagster_event(event, context.run.run_id)


def describe(partition: Partition) -> dict[str, Any]:
    """What every materialization of a table says of itself."""
    return {
        ROW_COUNT: partition.rows,
        "partition": partition.key,
        "schema_hash": hashlib.sha256(partition.schema.encode()).hexdigest()[:12],
        "version": partition.version,
    }


def text_table(rows: Sequence[Mapping[str, str]]) -> dg.TableMetadataValue:
    """Rows of text, at least one, as a table that Dagster shows."""
    columns = [dg.TableColumn(name, "string") for name in rows[0]]
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows], dg.TableSchema(columns))


def data_version(partitions: Sequence[Partition]) -> dg.DataVersion:
    """The data version of a run: Dagster 1.13 tags all days of a run with one.

    Days written in one go share their version, which is it. Days that were written by several runs, and are
    only delivered in one, have a digest of theirs; the version of each is in its metadata.
    """
    versions = dict.fromkeys(partition.version for partition in partitions)
    if len(versions) == 1:
        return dg.DataVersion(partitions[0].version)
    return dg.DataVersion(hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16])


def _sample(table: Snapshot, described: TableDescription) -> dict[str, Any]:
    """A few rows of one file, with no id and no rare value."""
    files = table.files()
    return {"sample": text_table(sample_rows(files[0], described.columns))} if files else {}
