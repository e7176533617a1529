"""What assets say of what they have written, as Dagster's pages and plots show it.

A run over a range of days writes them in one go, and Dagster copies what an asset returns to every day of the
range: what is true of one day alone is recorded for that day.

What does not belong here: which figures tell whether an asset went well; the assets know.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from resources.snapshots import Partition, day_of

Figures = Callable[[Partition], Mapping[str, Any]]
"""The metadata of one day."""


def materialized(partition: Partition, metadata: Mapping[str, Any]) -> dg.MaterializeResult[None]:
    """What an asset without partitions returns that has written its table."""
    return dg.MaterializeResult(
        metadata={**describe(partition), **metadata}, data_version=dg.DataVersion(partition.version)
    )


def materialized_days(
    context: dg.AssetExecutionContext,
    partitions: Sequence[Partition],
    figures: Figures = lambda _: {},
    shared: Mapping[str, Any] | None = None,
    asset: dg.AssetKey | None = None,
) -> dg.MaterializeResult[None]:
    """What a daily asset returns that has written these days in one run.

    Args:
        context: The run of the asset.
        partitions: The days.
        figures: What to say of each day, beside its rows.
        shared: What is true of all of them.
        asset: Which asset, where a step has several.
    """
    for partition in partitions:
        record_day(context, day_of(partition), {**describe(partition), **figures(partition)}, asset)
    return dg.MaterializeResult(asset_key=asset, metadata=shared, data_version=data_version(partitions))


def record_day(
    context: dg.AssetExecutionContext,
    day: str,
    metadata: Mapping[str, Any],
    asset: dg.AssetKey | None = None,
) -> None:
    """Says something of one day of a daily asset's run, and of no other."""
    context.add_asset_metadata(metadata, asset_key=asset, partition_key=day)


def describe(partition: Partition) -> dict[str, Any]:
    """What every materialization of a table says of itself."""
    return {
        "dagster/row_count": partition.rows,
        "partition": partition.key,
        "schema_hash": hashlib.sha256(partition.schema.encode()).hexdigest()[:12],
        "version": partition.version,
    }


def data_version(partitions: Sequence[Partition]) -> dg.DataVersion:
    """The data version of a run: Dagster 1.13 tags all days of a run with one.

    Days written in one go share their version, which is it. Days that were written by several runs, and are
    only delivered in one, have a digest of theirs; the version of each is in its metadata.
    """
    versions = dict.fromkeys(partition.version for partition in partitions)
    if len(versions) == 1:
        return dg.DataVersion(partitions[0].version)
    return dg.DataVersion(hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16])
