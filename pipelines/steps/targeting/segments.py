"""Segments: which devices of a day's predictions an advertiser gets, and how right that was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from math import ceil

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.table_columns import Shown, TableColumn, audience_name, device_id


def table_columns() -> dict[str, TableColumn]:
    """The columns of `segments`."""
    return {
        "audience": audience_name(),
        "segment": TableColumn(
            "string",
            "The segment, by its name; a device may be in several.",
            {"predictions": ["probability"]},
            Shown.EVERYTHING,
        ),
        "day": TableColumn("date", "The as-of day.", {"predictions": ["day"]}, Shown.EVERYTHING),
        "device_id": device_id("predictions"),
        "probability": TableColumn(
            "float", "That of the predictions.", {"predictions": ["probability"]}, Shown.EVERYTHING
        ),
    }


def withheld_segments(
    segments: Sequence[SegmentSpec], thresholds: Mapping[str, float | None]
) -> dict[str, str]:
    """The segments that cannot be cut, each with the reason.

    Args:
        segments: Those asked for.
        thresholds: Segment name → the threshold that reached its precision on validation; None: none did.
    """
    return {
        segment.name: f"no threshold reached a precision of {segment.min_precision} on validation devices: "
        "ask for a lower one, or for a top_fraction or size; then train again"
        if segment.name in thresholds
        else f"no threshold for a precision of {segment.min_precision} was ever computed: run training_job"
        for segment in segments
        if segment.min_precision is not None and thresholds.get(segment.name) is None
    }


def why_withheld(devices: int, scored: int, uncut: str | None = None) -> str | None:
    """Why a segment must not be delivered; None where it may be.

    Args:
        devices: Devices in it.
        scored: Devices that it was cut from.
        uncut: Why it could not be cut, where that is so.
    """
    if uncut:
        return uncut
    if not scored:
        return "no device was scored: the look-back window holds no event"
    if not devices:
        return f"none of the {scored} scored devices is in it"
    if devices >= scored:
        return f"all {scored} scored devices are in it"
    return None


def select_segments(
    predictions: DataFrame, segments: Sequence[SegmentSpec], thresholds: Mapping[str, float | None]
) -> DataFrame:
    """The devices of each segment.

    Args:
        predictions: `audience`, `device_id`, `day`, `probability` of one audience and one day.
        segments: By top fraction or size: the most probable devices, ties broken by id. By minimum
            precision: the devices at or above the threshold that reached it on validation; none where
            `withheld_segments` names the segment.
        thresholds: Segment name → that threshold, or None where none reached the precision.

    Returns:
        The predictions' columns and `segment`; a device may be in several segments.
    """
    devices = predictions.count()
    parts = [
        _select(predictions, segment, devices, thresholds.get(segment.name)).withColumn(
            "segment", F.lit(segment.name)
        )
        for segment in segments
    ]
    union = reduce(DataFrame.unionByName, parts)
    return union.select("audience", "segment", "day", "device_id", "probability")


def _select(predictions: DataFrame, segment: SegmentSpec, devices: int, threshold: float | None) -> DataFrame:
    if segment.min_precision is None:
        # As written, not as floating point has it: 0.07 of 100 devices are 7, not 7.000000000000001.
        share = Decimal(str(segment.top_fraction or 0))
        most = segment.size if segment.size is not None else ceil(share * devices)
        return predictions.orderBy(F.desc("probability"), "device_id").limit(most)
    if threshold is None:
        return predictions.limit(0)
    # float32 as stored: the threshold is itself one of the validation scores.
    return predictions.where(F.col("probability") >= F.lit(threshold).cast("float"))


@dataclass(frozen=True)
class SegmentOutcome:
    """What became of a segment once its horizon had passed.

    Attributes:
        devices: Size of the segment.
        converted: How many of them converted within the horizon.
        base_rate: Share of all scored devices that converted.
    """

    segment: str
    devices: int
    converted: int
    base_rate: float

    @property
    def precision(self) -> float:
        return self.converted / self.devices

    @property
    def lift(self) -> float:
        return self.precision / self.base_rate if self.base_rate else float("nan")


def measure_segments(segments: DataFrame, labelled: DataFrame) -> list[SegmentOutcome]:
    """The precision that each segment really had.

    Args:
        segments: `segment`, `device_id`, `day`.
        labelled: `device_id`, `day`, `label` of all scored devices of that day.
    """
    base: Column = F.avg("label")
    base_rate = float(labelled.agg(base).first()[0] or 0.0)  # type: ignore[index]
    joined = segments.join(labelled.select("device_id", "day", "label"), ["device_id", "day"])
    counts = joined.groupBy("segment").agg(F.count("*"), F.sum("label")).orderBy("segment").collect()
    return [SegmentOutcome(name, devices, int(converted), base_rate) for name, devices, converted in counts]
