"""deliveries: segments whose checks have passed, published to where the audience's file says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow.dataset as ds
from pyarrow import compute as pc

from assets import (
    app_events,
    champion_model,
    daily_fields,
    daily_signals,
    feature_tokens,
    predictions,
    segments,
)
from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.audience import Audience, FolderDestination
from pipelines.steps.config.settings import code_version
from pipelines.steps.config.signals import SIGNALS, Signal
from pipelines.steps.errors import DataError
from pipelines.steps.targeting.deliveries import count_rows, sha256, table_columns
from resources.asset_metadata import ROW_COUNT, TableDescription, data_version, record_day
from resources.destinations import Delivery, Destinations, Published
from resources.expectations import Check, check_specs, evaluate, expect, report, subjects_of, verdict
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.snapshots import Partition, day_of
from resources.step_body import step_body
from resources.verdicts import PASSED, Link, Verdicts, require_passed, trace

CHECKS = [
    Check(
        "delivered_rows_equal_the_manifest",
        "each delivered file has the rows that its manifest and its segment have",
        [
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_rows", column_B="manifest_rows"),
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_rows", column_B="segment_rows"),
        ],
    ),
    Check(
        "delivered_content_equals_the_manifest",
        "each delivered file has the hash that its manifest says",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_sha256", column_B="manifest_sha256")],
    ),
]
EVERY_SEGMENT = "every_segment_is_delivered"
EVIDENCE = ["day", "delivered_rows", "manifest_rows", "segment_rows", "delivered_sha256", "manifest_sha256"]


def build(
    audience: Audience, daily: Daily, signals: Sequence[Signal] = ()
) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key = dg.AssetKey([audience.name, "deliveries"])
    table = TableDescription(table_columns(), {"segments": segments.key_of(audience)})
    every_segment = dg.AssetCheckSpec(
        EVERY_SEGMENT,
        asset=key,
        description="no segment of the day was withheld because its own check failed",
        partitions_def=daily.partitions,
    )

    @dg.asset(
        key=key,
        deps=[segments.key_of(audience)],
        group_name=audience.name,
        kinds={destination.format for destination in audience.destinations},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        freshness_policy=daily.freshness,
        code_version=code_version([destination.model_dump() for destination in audience.destinations]),
        metadata={**table.known(), **page("README.md")},
        tags={"stage": "delivery", **HOLDS_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def deliveries(
        context: dg.AssetExecutionContext, lake: Lake, models: ModelStore, destinations: Destinations
    ) -> dg.MaterializeResult[None]:
        """One file per segment, day and destination, with its manifest; an equal one is not sent again."""
        verdicts, refused, sent = Verdicts(context.instance), dict[str, DataError](), dict[str, _Sent]()
        snapshot = lake.snapshot("segments", keys_of(days_of(context), audience.name))
        for partition in snapshot.partitions:
            day = day_of(partition)
            try:
                _require_checked(audience, signals, lake, models, verdicts, partition)
                sent[day] = _send(audience, lake, destinations, verdicts, partition)
            except DataError as error:
                refused[day] = error
        if refused:
            # The others are out: Dagster, which would take them for failed as well, is told so.
            for day, result in sent.items():
                context.log_event(dg.AssetMaterialization(key, partition=day, metadata=result.metadata()))
            raise _refusal(audience, refused, len(snapshot.partitions))
        for day, result in sent.items():
            record_day(context, day, result.metadata())
        return dg.MaterializeResult(data_version=data_version(snapshot.partitions))

    @dg.multi_asset_check(
        name=f"{audience.name}_deliveries_checks",
        specs=[*check_specs(key, CHECKS, daily.partitions), every_segment],
    )
    @step_body
    def delivery_checks(
        context: dg.AssetCheckExecutionContext, lake: Lake, destinations: Destinations
    ) -> Iterator[dg.AssetCheckResult]:
        verdicts = Verdicts(context.instance)
        snapshot = lake.snapshot("segments", keys_of(checked_days(context), audience.name))
        subjects = subjects_of(snapshot)
        found, withheld = [], dict[str, list[str]]()
        for partition in snapshot.partitions:
            to_deliver, kept_back = _split(audience, lake, verdicts, partition)
            if kept_back:
                withheld[day_of(partition)] = kept_back
            found += [
                _evidence(destinations, d, where) for d in to_deliver for where in audience.destinations
            ]
        yield from report(context, evaluate(key, CHECKS, pd.DataFrame(found, columns=EVIDENCE), subjects))
        complete = verdict(
            key,
            EVERY_SEGMENT,
            subjects,
            list(withheld),
            description="; ".join(f"{day}: {', '.join(names)} withheld" for day, names in withheld.items())
            or None,
        )
        yield from report(context, [complete])

    return [deliveries, delivery_checks]


def _require_checked(
    audience: Audience,
    signals: Sequence[Signal],
    lake: Lake,
    models: ModelStore,
    verdicts: Verdicts,
    segments_of_day: Partition,
) -> None:
    """Refuses a day's segments unless the chain from its events and its champion is whole and checked.

    Raises:
        DataError: As `trace` and `require_passed`; or the day has no events, and the audience's file does not
            allow that.
    """
    links = {
        "segments": Link(segments.key_of(audience), segments.blocking_checks()),
        "predictions": Link(predictions.key_of(audience), predictions.blocking_checks()),
        "feature_tokens": Link(feature_tokens.KEY, feature_tokens.blocking_checks()),
        "daily_fields": Link(daily_fields.KEY, daily_fields.blocking_checks()),
        # What another audience's label is must hold nobody up.
        daily_signals.TABLE: Link(
            dg.AssetKey([SIGNALS]), daily_signals.blocking_checks(), {signal.name for signal in signals}
        ),
        "app_events": Link(app_events.KEY, app_events.blocking_checks()),
    }
    chain = trace(lake, "segments", segments_of_day, links)
    day, bundle = day_of(segments_of_day), segments_of_day.properties["bundle"]
    champion = champion_model.key_of(audience)
    # A person who makes a model serve answers for it.
    names = () if models.was_chosen_by_hand(audience.name, bundle) else champion_model.blocking_checks()
    require_passed(
        verdicts,
        chain,
        links,
        {f"{champion.to_user_string()}:{name}": verdicts.of(champion, name, bundle) for name in names},
    )
    events = sum(p.rows for table, p in chain if table == "app_events" and day_of(p) == day)
    if not events and not audience.deliver_days_without_events:
        raise DataError(
            f"nothing is delivered for {day}: no event of the day was accepted",
            found="0 events",
            expected=f"events on the last day of the window of {audience.name}",
            remedy="find out why none arrived, and run the day again once they have; or write "
            f"`deliver_days_without_events: true` in {audience.file.name} to deliver from the days before",
        )


@dataclass(frozen=True)
class _Sent:
    """The result of delivering a day, or a part of it.

    Attributes:
        version: Of the segments that were delivered.
        rows: Devices in the files that are in place now.
        rows_sent: Devices in those that were not there already.
        files: Number of files in place.
        places: Their folders.
        repaired: Place and damage of each file that was replaced.
        withheld: Segments that were not delivered, because their own check has not passed.
    """

    version: str
    rows: int = 0
    rows_sent: int = 0
    files: int = 0
    places: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()

    def plus(self, place: str, rows: int, published: Published) -> "_Sent":
        """The same with one more file."""
        repaired = (f"{place}: {published.repaired}",) if published.repaired else ()
        return replace(
            self,
            rows=self.rows + rows,
            rows_sent=self.rows_sent + (rows if published.sent else 0),
            files=self.files + 1,
            places=(*self.places, place),
            repaired=(*self.repaired, *repaired),
        )

    def metadata(self) -> dict[str, Any]:
        return {
            ROW_COUNT: self.rows,
            "segments_version": self.version,
            "rows_sent": self.rows_sent,
            "files": self.files,
            "places": list(self.places),
            "repaired": list(self.repaired),
            "withheld": list(self.withheld),
        }


def _send(
    audience: Audience,
    lake: Lake,
    destinations: Destinations,
    verdicts: Verdicts,
    segments_of_day: Partition,
) -> _Sent:
    """Publishes every segment of a day whose own check has passed.

    Raises:
        DataError: A place could not be published to; the others are.
    """
    to_deliver, withheld = _split(audience, lake, verdicts, segments_of_day)
    total = _Sent(segments_of_day.version, withheld=tuple(withheld))
    errors: list[DataError] = []
    for delivery in to_deliver:
        for destination in audience.destinations:
            try:
                published = destinations.publish(delivery, destination)
            except DataError as error:
                errors.append(error)
                continue
            total = total.plus(str(_place(destinations, delivery, destination)), delivery.rows, published)
    if errors:
        raise errors[0]
    return total


def _split(
    audience: Audience, lake: Lake, verdicts: Verdicts, segments_of_day: Partition
) -> tuple[list[Delivery], list[str]]:
    """The segments of a day to deliver, and the names of those whose own check has not passed."""
    key, version, day = segments.key_of(audience), segments_of_day.version, day_of(segments_of_day)
    passed = {
        segment.name: verdicts.of(key, segments.own_check(segment.name), version, day) == PASSED
        for segment in audience.segments
    }
    [scored] = lake.sources([segments_of_day], "predictions").partitions
    files = lake.at("segments", [segments_of_day]).files()
    rows = ds.dataset(files, format="parquet")
    to_deliver = [
        Delivery(
            audience=audience.name,
            segment=name,
            day=day,
            files=files,
            rows=rows.count_rows(filter=pc.field("segment") == name),
            model_version=segments_of_day.properties["bundle"],
            segments_version=version,
            predictions_version=scored.version,
        )
        for name, may in passed.items()
        if may
    ]
    return to_deliver, [name for name, may in passed.items() if not may]


def _refusal(audience: Audience, refused: Mapping[str, DataError], days: int) -> DataError:
    """The first refusal, and which other days were refused, too."""
    (day, first), *others = refused.items()
    if days == 1:
        return first
    return DataError(
        f"{audience.name}: {len(refused)} of {days} days are not delivered, first {day}: {first.what}",
        found=first.found,
        expected=first.expected,
        remedy=f"{first.remedy}; also refused: {', '.join(other for other, _ in others) or 'none'}; "
        "the other days are delivered",
    )


def _place(destinations: Destinations, delivery: Delivery, destination: FolderDestination) -> Path:
    return destinations.place(delivery.audience, delivery.segment, delivery.day, destination)


def _evidence(
    destinations: Destinations, delivery: Delivery, destination: FolderDestination
) -> dict[str, object]:
    place = _place(destinations, delivery, destination)
    manifest = destinations.published(place)
    delivered = place / manifest.file if manifest else None
    if manifest is None or delivered is None or not delivered.exists():
        return {
            "day": delivery.day,
            "delivered_rows": -1,
            "manifest_rows": manifest.rows if manifest else -2,
            "segment_rows": delivery.rows,
        }
    return {
        "day": delivery.day,
        "delivered_rows": count_rows(delivered),
        "manifest_rows": manifest.rows,
        "segment_rows": delivery.rows,
        "delivered_sha256": sha256(delivered),
        "manifest_sha256": manifest.sha256,
    }
