"""Labelled rows: what counts as a conversion, which days are trained on, which split a device is in."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.steps.config.audience import Audience, RollingDays, Training
from pipelines.steps.errors import DataError
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.as_of_days import label_days, matured_as_of_days, out_of_time_day
from pipelines.steps.labels.training_rows import (
    LEFT_OUT,
    OUT_OF_TIME,
    PROMOTION,
    TEST,
    TRAIN,
    VALIDATION,
    TrainingFiles,
)
from pipelines.steps.labels.training_set import (
    ClassBalance,
    PromotionBlock,
    build_rows,
    class_balance,
    class_balances,
    count_splits,
    encode_rows,
    keep_negatives,
    label_devices,
    split_devices,
    split_in_time,
)
from tests.conftest import Frame

DAY = date(2025, 3, 10)
MIDNIGHT = datetime(2025, 3, 11, tzinfo=UTC)
"""The end of the as-of day."""
MICROSECOND = timedelta(microseconds=1)
HORIZON_DAYS = 7
FEATURES = "device_id string, day date, apps array<string>"
WEIGHED_FEATURES = f"{FEATURES}, model array<string>, apps_weights binary"
EVENTS = "device_id string, event_time timestamp, event_name string"
PURCHASE = "event_name = 'purchase'"


def days_after(count: int) -> date:
    return DAY + timedelta(days=count)


def audience(as_of_days: object | None, horizon_days: int = HORIZON_DAYS) -> Audience:
    return Audience.model_validate(
        {
            "file": Path("buyers.yaml"),
            "name": "buyers",
            "label": {"event": {"event_name": "purchase"}},
            "horizon_days": horizon_days,
            **({} if as_of_days is None else {"as_of_days": as_of_days}),
            "segments": ({"name": "top", "size": 10},),
            "destinations": ({"type": "folder", "path": "out"},),
        }
    )


# --- labels ---------------------------------------------------------------------------------------

# Name → the device's only event: when, what, and the label it leads to.
LABEL_CASES: dict[str, tuple[datetime, str | None, int]] = {
    "during the as-of day": (MIDNIGHT - timedelta(hours=12), "purchase", 0),
    "last microsecond of the as-of day": (MIDNIGHT - MICROSECOND, "purchase", 0),
    "first moment after": (MIDNIGHT, "purchase", 1),
    "last microsecond of the horizon": (MIDNIGHT + timedelta(days=HORIZON_DAYS) - MICROSECOND, "purchase", 1),
    "after the horizon": (MIDNIGHT + timedelta(days=HORIZON_DAYS), "purchase", 0),
    "another event": (MIDNIGHT, "view", 0),
    "nothing known of the event": (MIDNIGHT, None, 0),
}


@pytest.fixture(scope="module")
def labels(frame: Frame) -> dict[str, int]:
    """All cases in one Spark job, a device each, and one device without any event."""
    tokens = frame(FEATURES, [(case, DAY, []) for case in [*LABEL_CASES, "no event"]])
    events = frame(EVENTS, [(case, at, name) for case, (at, name, _) in LABEL_CASES.items()])
    rows = label_devices(tokens, events, PURCHASE, HORIZON_DAYS).toArrow()
    assert rows.schema.field("label").type == pa.int8()
    return {row["device_id"]: row["label"] for row in rows.to_pylist()}


@pytest.mark.parametrize("case", LABEL_CASES)
def test_labels_come_strictly_after_the_as_of_day(case: str, labels: dict[str, int]) -> None:
    assert labels[case] == LABEL_CASES[case][2]


def test_a_device_without_events_afterwards_is_negative(labels: dict[str, int]) -> None:
    assert labels["no event"] == 0


def test_an_event_counts_for_each_as_of_day_whose_horizon_holds_it(frame: Frame) -> None:
    as_of_days = [days_after(shift) for shift in (-1, 0, 1, 2)]
    tokens = frame(FEATURES, [("phone", day, ["a"]) for day in as_of_days])
    purchase = datetime(2025, 3, 12, 8, tzinfo=UTC)  # two days after DAY
    events = frame(EVENTS, [("phone", purchase, "purchase"), ("phone", purchase, "purchase")])
    rows = label_devices(tokens, events, PURCHASE, 2).orderBy("day").toArrow().to_pylist()
    assert [row["label"] for row in rows] == [0, 1, 1, 0]
    assert [row["apps"] for row in rows] == [["a"]] * 4


def test_a_device_that_converts_but_has_no_features_gets_no_row(frame: Frame) -> None:
    tokens = frame(FEATURES, [("phone", DAY, [])])
    events = frame(EVENTS, [("stranger", MIDNIGHT, "purchase")])
    rows = label_devices(tokens, events, PURCHASE, HORIZON_DAYS).toArrow().to_pylist()
    assert [(row["device_id"], row["label"]) for row in rows] == [("phone", 0)]


def test_label_days_are_the_days_after() -> None:
    assert label_days(DAY, 3) == [days_after(1), days_after(2), days_after(3)]


# --- which days can be trained on -----------------------------------------------------------------


def known_days(count: int) -> list[date]:
    """So many days, the last of them DAY."""
    return [days_after(1 - count + place) for place in range(count)]


def test_days_named_are_taken_once_their_horizon_is_over() -> None:
    named = (days_after(-9), days_after(-HORIZON_DAYS))
    assert matured_as_of_days(audience(named), known_days(10), window_days=30) == list(named)


def test_a_day_named_too_early_is_an_error() -> None:
    named = (days_after(-HORIZON_DAYS), days_after(1 - HORIZON_DAYS))
    with pytest.raises(DataError) as raised:
        matured_as_of_days(audience(named), known_days(10), window_days=30)
    assert str(raised.value) == (
        "buyers: as-of days 2025-03-04 cannot be trained on\n"
        "  found:    app_events of 2025-03-01 to 2025-03-10\n"
        "  expected: a whole window before, and all of the 7 days after, each as-of day\n"
        "  remedy:   run ingestion_job for 2025-03-11 once their events are there, or ask for earlier as-of "
        "days in the audience's file"
    )


def test_a_day_missing_from_the_horizon_is_an_error() -> None:
    named = (days_after(-9),)
    known = [day for day in known_days(10) if day != days_after(-4)]
    with pytest.raises(
        DataError, match=r"(?s)as-of days 2025-03-01 cannot.*ingestion_job for 2025-03-06 once"
    ):
        matured_as_of_days(audience(named), known, window_days=30)


def test_rolling_days_are_the_newest_matured_ones_oldest_first() -> None:
    rolling = audience({"count": 3, "every_days": 2})
    newest = days_after(-HORIZON_DAYS)
    assert matured_as_of_days(rolling, known_days(20), window_days=5) == [
        newest - timedelta(days=4),
        newest - timedelta(days=2),
        newest,
    ]


@pytest.mark.parametrize(("known", "enough"), [(HORIZON_DAYS + 5, True), (HORIZON_DAYS + 4, False)])
def test_a_rolling_day_needs_a_whole_window(known: int, enough: bool) -> None:
    rolling = audience({"count": 1, "every_days": 1})
    if enough:
        assert matured_as_of_days(rolling, known_days(known), window_days=5) == [days_after(-HORIZON_DAYS)]
        return
    with pytest.raises(DataError, match="as-of days 2025-03-03 cannot be trained on"):
        matured_as_of_days(rolling, known_days(known), window_days=5)


# Known days, the last of them DAY; the newest matured one is 7 days earlier, and a window has 5 days.
@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (HORIZON_DAYS + 5, [0]),
        (HORIZON_DAYS + 5 + 2, [0]),
        (HORIZON_DAYS + 5 + 3, [3, 0]),
        (HORIZON_DAYS + 5 + 8, [6, 3, 0]),
    ],
)
def test_days_without_a_number_are_all_that_a_whole_window_lies_before(
    known: int, expected: list[int]
) -> None:
    days = matured_as_of_days(audience({"every_days": 3}), known_days(known), window_days=5)
    assert days == [days_after(-HORIZON_DAYS - before) for before in expected]


def test_where_no_days_are_named_there_is_one_a_week_over_all_history() -> None:
    unnamed = audience(None)
    assert unnamed.as_of_days == RollingDays(every_days=7)
    days = matured_as_of_days(unnamed, known_days(40), window_days=5)
    assert days == [days_after(-HORIZON_DAYS - before) for before in (28, 21, 14, 7, 0)]


def test_days_over_all_history_leave_out_those_with_a_day_missing_in_window_or_horizon() -> None:
    missing = days_after(-HORIZON_DAYS - 14)  # in the window of one day, in the horizon of another
    known = [day for day in known_days(40) if day != missing]
    days = matured_as_of_days(audience(None), known, window_days=5)
    assert days == [days_after(-HORIZON_DAYS - before) for before in (28, 7, 0)]


def test_history_without_one_whole_window_and_horizon_is_an_error() -> None:
    with pytest.raises(DataError) as raised:
        matured_as_of_days(audience(None), known_days(HORIZON_DAYS + 4), window_days=5)
    assert "buyers: as-of days 2025-03-03 cannot be trained on" in str(raised.value)
    assert "run ingestion_job for 2025-02-27 once" in str(raised.value)


@pytest.mark.parametrize("as_of_days", [(DAY,), {"count": 3, "every_days": 30}, None])
def test_without_any_events_there_is_nothing_to_train_on(as_of_days: object) -> None:
    with pytest.raises(DataError, match="run ingestion_job"):
        matured_as_of_days(audience(as_of_days), [], window_days=5)


# --- splits ---------------------------------------------------------------------------------------


BLOCK = PromotionBlock(0.1)


def splits_of(
    spark: SparkSession,
    devices: Sequence[int],
    seed: int = 0,
    validation_fraction: float = 0.2,
    block: PromotionBlock = BLOCK,
) -> dict[str, int]:
    ids = spark.range(devices[0], devices[-1] + 1).select(F.concat(F.lit("d"), "id").alias("device_id"))
    rows = ids.withColumn("split", split_devices(seed, validation_fraction, 0.1, block)).toArrow()
    assert rows.schema.field("split").type == pa.int8()
    return {row["device_id"]: row["split"] for row in rows.to_pylist()}


def test_splits_are_about_as_large_as_asked_for(spark: SparkSession) -> None:
    sizes = Counter(splits_of(spark, range(10_000)).values())
    # Three standard deviations of a share of 0.2 among 10,000 devices are 0.012.
    assert sizes[PROMOTION] / 10_000 == pytest.approx(0.1, abs=0.01)
    assert sizes[TRAIN] / 10_000 == pytest.approx(0.9 * 0.7, abs=0.015)
    assert sizes[VALIDATION] / 10_000 == pytest.approx(0.9 * 0.2, abs=0.012)
    assert sizes[TEST] / 10_000 == pytest.approx(0.9 * 0.1, abs=0.01)


def test_a_device_has_its_split_whatever_the_devices_beside_it(spark: SparkSession) -> None:
    many, few = splits_of(spark, range(100)), splits_of(spark, range(50, 60))
    assert few == {device: many[device] for device in few}


def test_another_seed_splits_otherwise(spark: SparkSession) -> None:
    assert splits_of(spark, range(100), seed=1) != splits_of(spark, range(100), seed=2)


def devices_in(splits: dict[str, int], split: int) -> set[str]:
    return {device for device, found in splits.items() if found == split}


def test_the_devices_kept_for_promotion_are_the_same_whatever_the_seed_and_the_other_fractions(
    spark: SparkSession,
) -> None:
    kept = devices_in(splits_of(spark, range(500)), PROMOTION)
    assert kept == devices_in(splits_of(spark, range(500), seed=1), PROMOTION)
    assert kept == devices_in(splits_of(spark, range(500), validation_fraction=0.4), PROMOTION)
    assert kept


def test_a_larger_block_holds_the_smaller_one_and_moves_no_other_device(spark: SparkSession) -> None:
    small, large = splits_of(spark, range(500)), splits_of(spark, range(500), block=PromotionBlock(0.3))
    assert devices_in(small, PROMOTION) < devices_in(large, PROMOTION)
    assert [split for device, split in large.items() if split not in (PROMOTION, small[device])] == []


@pytest.mark.parametrize(
    ("former", "kept_out"),
    [
        (PromotionBlock(0.1), True),
        (PromotionBlock(0.2), True),
        (PromotionBlock(0.05), False),
        (PromotionBlock(0.1, salt="another"), False),
        (None, False),
    ],
)
def test_a_block_was_kept_out_by_what_kept_as_much_of_the_same_salt(
    former: PromotionBlock | None, kept_out: bool
) -> None:
    assert PromotionBlock(0.1).kept_out_by(former) is kept_out


def test_a_block_is_read_as_it_was_recorded() -> None:
    assert PromotionBlock.of({"promotion_block": PromotionBlock(0.2).to_dict()}) == PromotionBlock(0.2)
    assert PromotionBlock.of({}) is None  # as every training set before there were blocks


def test_a_device_is_in_the_split_that_it_was_in_in_every_version_of_this_code(frame: Frame) -> None:
    # Were a device to change its split, a champion's test rows could be a challenger's training rows.
    devices = frame("device_id string", [(f"device-{number}",) for number in range(12)])
    rows = devices.withColumn("split", split_devices(7, 0.25, 0.25, PromotionBlock(0.25))).orderBy(
        F.length("device_id"), "device_id"
    )
    # The two that are kept for promotion were in 1 and 2 before there was a block; no other one has moved.
    assert [row["split"] for row in rows.toArrow().to_pylist()] == [3, 0, 3, 0, 1, 1, 2, 2, 0, 1, 1, 1]


# --- the newest as-of day -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days_before", "horizon_days", "is_kept"),
    [
        ([21, 14, 7, 0], 7, True),  # three of four stay
        ([14, 7, 0], 7, False),  # two
        ([21, 14, 7, 0], 8, False),  # the horizon of the day before ends a day too late
        ([42, 35, 28, 21, 14, 7, 0], 28, False),  # three of seven are less than half
        ([49, 42, 35, 28, 21, 14, 7, 0], 28, True),  # four of eight
        ([0], 7, False),
    ],
)
def test_a_training_is_rehearsed_without_the_newest_as_of_day_where_history_is_long_enough(
    days_before: list[int], horizon_days: int, is_kept: bool
) -> None:
    as_of_days = [days_after(-before) for before in days_before]
    assert out_of_time_day(as_of_days, horizon_days) == (DAY if is_kept else None)


OLD, OVERLAPPING = days_after(-HORIZON_DAYS), days_after(1 - HORIZON_DAYS)
DEVICES = 40


@pytest.fixture(scope="module")
def in_time(frame: Frame) -> dict[date, dict[str, tuple[int, int]]]:
    """Three as-of days of 40 devices: day → device → its split, and its row's in the rehearsal."""
    devices = [f"d{number}" for number in range(DEVICES)]
    none: list[str] = []
    tokens = [(device, day, ["a"], none, bytes([1])) for device in devices for day in (OLD, OVERLAPPING, DAY)]
    features = frame(WEIGHED_FEATURES, tokens)
    events = frame(EVENTS, [("d0", MIDNIGHT, "purchase")])
    rows = build_rows(features, events, audience(None), VOCABULARY, out_of_time=DAY).toArrow()
    assert rows.schema.field("split_in_time").type == pa.int8()
    found: dict[date, dict[str, tuple[int, int]]] = {OLD: {}, OVERLAPPING: {}, DAY: {}}
    for row in rows.to_pylist():
        found[row["day"]][row["device_id"]] = (row["split"], row["split_in_time"])
    return found


def test_no_row_of_the_newest_day_is_rehearsed_on(in_time: dict[date, dict[str, tuple[int, int]]]) -> None:
    assert {later for split, later in in_time[DAY].values() if split != PROMOTION} == {OUT_OF_TIME}


def test_no_label_of_a_rehearsal_is_decided_after_the_newest_day(
    in_time: dict[date, dict[str, tuple[int, int]]],
) -> None:
    assert {later for _, later in in_time[OVERLAPPING].values()} == {LEFT_OUT}


def test_days_whose_horizon_is_over_by_then_are_rehearsed_on_as_they_are_trained_on(
    in_time: dict[date, dict[str, tuple[int, int]]],
) -> None:
    assert {pair for pair in in_time[OLD].values() if pair[0] != PROMOTION} == {
        (split, split) for split in (TRAIN, VALIDATION, TEST)
    }


def test_no_rehearsal_sees_a_device_kept_for_promotion(
    in_time: dict[date, dict[str, tuple[int, int]]],
) -> None:
    kept = [later for rows in in_time.values() for split, later in rows.values() if split == PROMOTION]
    assert kept
    assert set(kept) == {LEFT_OUT}


def test_a_rehearsal_changes_no_split_of_the_training(
    in_time: dict[date, dict[str, tuple[int, int]]],
) -> None:
    by_day = [{device: split for device, (split, _) in rows.items()} for rows in in_time.values()]
    assert len(by_day[0]) == DEVICES
    assert by_day[0] == by_day[1] == by_day[2]


def test_where_negatives_are_left_out_of_training_the_newest_day_has_only_devices_that_keep_all(
    frame: Frame,
) -> None:
    some = audience(None).model_copy(update={"training": Training(negatives_kept=0.5)})
    rows = frame("day date, split tinyint", [(DAY, split) for split in (TRAIN, VALIDATION, TEST)])
    found = rows.withColumn("later", split_in_time(some, DAY)).orderBy("split").collect()
    assert [row["later"] for row in found] == [LEFT_OUT, OUT_OF_TIME, OUT_OF_TIME]


def test_without_a_rehearsal_all_rows_are_left_out_of_it(frame: Frame) -> None:
    rows = frame("day date, split tinyint", [(DAY, TRAIN), (OLD, TEST)])
    assert {
        row["later"] for row in rows.select(split_in_time(audience(None), None).alias("later")).collect()
    } == {LEFT_OUT}


def test_what_happens_in_the_horizon_changes_the_label_and_no_feature(frame: Frame) -> None:
    features = frame(WEIGHED_FEATURES, [("phone", DAY, ["b", "a"], ["pixel"], bytes([1, 2]))])
    rows = {}
    for name, events in {
        "none": [],
        "one": [("phone", MIDNIGHT, "purchase")],
        "many": [("phone", MIDNIGHT + timedelta(days=day), "purchase") for day in (5, 1, 3)],
    }.items():
        [rows[name]] = (
            build_rows(features, frame(EVENTS, events), audience(None), VOCABULARY).toArrow().to_pylist()
        )
    assert [row.pop("label") for row in rows.values()] == [0, 1, 1]
    assert rows["none"] == rows["one"] == rows["many"]


# --- whose rows they are --------------------------------------------------------------------------


def test_rows_of_a_device_have_one_number(tmp_path: Path) -> None:
    columns = {
        "device_id": ["b", "a", "b", "c", "b"],
        "label": pa.array([0, 1, 0, 0, 1], pa.int8()),
        "split": pa.array([PROMOTION, PROMOTION, TRAIN, PROMOTION, PROMOTION], pa.int8()),
        "apps": pa.array([[2]] * 5, pa.list_(pa.int32())),
    }
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    files = TrainingFiles([path], ["apps"])
    assert files.devices(PROMOTION).tolist() == [1, 0, 2, 1]
    assert files.read([PROMOTION]).labels.tolist() == [0, 1, 0, 1]
    assert files.devices(TEST).tolist() == []


def test_files_that_do_not_say_whose_rows_they_hold_are_refused(tmp_path: Path) -> None:
    columns = {"label": pa.array([1], pa.int8()), "split": pa.array([PROMOTION], pa.int8())}
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=r"(?s)does not say whose rows.*'label', 'split'.*device_id"):
        TrainingFiles([path], []).devices(PROMOTION)


# --- encoding and counting ------------------------------------------------------------------------

VOCABULARY = Vocabulary(
    (FieldVocabulary("apps", 2, ("a", "b"), weighted=True), FieldVocabulary("model", 1, ("pixel",)))
)
LABELLED = (
    "device_id string, day date, label tinyint, split tinyint, model array<string>, apps array<string>, "
    "apps_weights binary, x int"
)


def test_rows_are_encoded_with_the_function_that_scoring_uses(frame: Frame) -> None:
    labelled = frame(
        LABELLED,
        [
            ("phone", DAY, 1, TRAIN, ["pixel"], ["b", "z", "a"], b"\x01\xff\x03", 1),
            ("tablet", DAY, 0, TEST, [], [], b"", 2),
            ("watch", DAY, 0, VALIDATION, ["other"], ["a"], b"\x80", 3),
        ],
    )
    encoded = encode_rows(labelled, VOCABULARY)
    assert encoded.schema.simpleString() == (
        "struct<device_id:string,day:date,label:tinyint,split:tinyint,apps:array<int>,model:array<int>,"
        "apps_weights:binary>"
    )
    table = encoded.orderBy("device_id").toArrow()
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("phone", DAY, 1, TRAIN, [3, 1], [2], b"\x01\xff"),
        ("tablet", DAY, 0, TEST, [0], [0], b"\x00"),
        ("watch", DAY, 0, VALIDATION, [2], [1], b"\x80"),
    ]
    local = VOCABULARY.encode(labelled.orderBy("device_id").toArrow())
    for name, bags in local.items():
        assert [token for row in rows for token in row[name]] == bags.values.tolist()


def test_rows_are_counted_by_day_and_split(frame: Frame) -> None:
    rows = frame(
        "day date, split tinyint, label tinyint",
        [(DAY, TRAIN, 1), (DAY, TRAIN, 0), (DAY, TEST, 0), (days_after(-1), TRAIN, 1)],
    )
    assert count_splits(rows) == [
        {"day": days_after(-1), "split": TRAIN, "rows": 1, "positives": 1, "label_rate": 1.0},
        {"day": DAY, "split": TRAIN, "rows": 2, "positives": 1, "label_rate": 0.5},
        {"day": DAY, "split": TEST, "rows": 1, "positives": 0, "label_rate": 0.0},
    ]


def test_only_training_negatives_are_left_out(spark: SparkSession) -> None:
    rows = spark.range(60_000).select(
        F.col("id").cast("string").alias("device_id"),
        F.lit(DAY).alias("day"),
        (F.col("id") % 2).alias("label"),
        (F.floor(F.col("id") / 2) % 3).alias("split"),
    )
    kept = rows.where(keep_negatives(3, 0.25)).groupBy("split", "label").count().collect()
    counts = {(row["split"], row["label"]): row["count"] for row in kept}
    assert counts.pop((TRAIN, 0)) == pytest.approx(2_500, abs=4 * (10_000 * 0.25 * 0.75) ** 0.5)
    assert set(counts.values()) == {10_000}
    assert len(counts) == 5


def test_the_same_seed_draws_the_same_negatives(spark: SparkSession) -> None:
    rows = spark.range(1_000).select(
        F.col("id").cast("string").alias("device_id"),
        F.lit(DAY).alias("day"),
        F.lit(0).alias("label"),
        F.lit(TRAIN).alias("split"),
    )
    first, again, other = (
        {row.device_id for row in rows.where(keep_negatives(seed, 0.5)).collect()} for seed in (1, 1, 2)
    )
    assert first == again != other


# --- how rare conversions are -------------------------------------------------------------------------


def test_the_base_rate_counts_the_negatives_that_were_not_kept() -> None:
    splits = [
        {"day": DAY, "split": TRAIN, "rows": 30, "positives": 10},  # 20 of 200 negatives were kept
        {"day": DAY, "split": TEST, "rows": 50, "positives": 10},
        {"day": days_after(30), "split": TEST, "rows": 20, "positives": 2},
    ]

    assert class_balance(splits, 0.1) == ClassBalance(100, 22, 22 / (30 + 180 + 50 + 20))
    assert class_balances(splits, 0.1) == {
        str(DAY): ClassBalance(80, 20, 20 / (30 + 180 + 50)),
        str(days_after(30)): ClassBalance(20, 2, 0.1),
    }


def test_no_rows_have_a_base_rate_of_nothing() -> None:
    assert class_balance([], 1.0) == ClassBalance(0, 0, 0.0)
