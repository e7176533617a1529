"""Labelled, encoded rows: as-of snapshots × devices, labels strictly after the as-of day."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, IntegerType, StructType

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.behaviour_names import is_behaviour, weights_column
from pipelines.steps.config.label_values import conversion_predicate, label_columns
from pipelines.steps.features.encoded_rows import MISSING_ID, UNKNOWN_ID
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.features.token_fields import TokenField
from pipelines.steps.labels.training_rows import (
    IN_TIME,
    LEFT_OUT,
    OUT_OF_TIME,
    PROMOTION,
    SPLIT,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
)
from pipelines.steps.table_columns import Shown, TableColumn, audience_name, device_id

SAMPLE_GRAIN = 1_000_000
"""Negatives are drawn to a millionth."""
SPLIT_GRAIN = 10_000
"""Devices are split to a ten-thousandth."""
PROMOTION_SALT = "promotion"
"""Decides, without any seed, which devices are kept for promotion. Another one: others are kept."""


@dataclass(frozen=True)
class PromotionBlock:
    """The devices kept for promotion: of two blocks of one salt, the smaller lies within the larger.

    Attributes:
        fraction: Share of all devices.
        salt: Of the hash.
    """

    fraction: float
    salt: str = PROMOTION_SALT

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, properties: Mapping[str, Any]) -> "PromotionBlock | None":
        """The block that a training set or a model was made with; None where it knew of none."""
        plain = properties.get("promotion_block")
        return cls(**plain) if plain else None

    def kept_out_by(self, other: "PromotionBlock | None") -> bool:
        """Whether what was trained beside the other block saw none of this one's devices."""
        return other is not None and other.salt == self.salt and other.fraction >= self.fraction


def build_rows(
    feature_tokens: DataFrame,
    events: DataFrame,
    audience: Audience,
    vocabulary: Vocabulary,
    out_of_time: date | None = None,
) -> DataFrame:
    """The training set: labelled, split, encoded.

    Args:
        feature_tokens: Of the as-of days.
        events: Accepted events of all the days that decide a label.
        audience: Its label, horizon, split fractions and seed.
        vocabulary: Turns tokens into ids.
        out_of_time: The newest as-of day, where a rehearsal of the training is measured on it.

    Returns:
        What `encode_rows` does.
    """
    training = audience.training
    split = split_devices(
        training.seed,
        training.validation_fraction,
        training.test_fraction,
        PromotionBlock(training.promotion_fraction),
    )
    predicate = conversion_predicate(audience, dict(events.dtypes))
    labelled = label_devices(feature_tokens, events, predicate, audience.horizon_days)
    kept = keep_negatives(training.seed, training.negatives_kept)
    rows = labelled.withColumn(SPLIT, split)
    rows = rows.withColumn(IN_TIME, split_in_time(audience, out_of_time)).where(kept)
    return encode_rows(rows, vocabulary)


def table_columns(audience: Audience, fields: Sequence[TokenField]) -> dict[str, TableColumn]:
    """The columns of `training_set`."""
    label, everything = label_columns(audience.label), Shown.EVERYTHING

    def ids(field: TokenField) -> TableColumn:
        return TableColumn(
            "array<int>",
            f"Ids of the tokens of `{field.name}`; {MISSING_ID}: there is none, {UNKNOWN_ID}: unknown.",
            {"feature_tokens": [field.name], "feature_vocabulary": ["token", "id"]},
            Shown.COMMON_VALUES,
            field.min_devices,
        )

    def weights(field: TokenField) -> TableColumn:
        name = weights_column(field.name)
        return TableColumn(
            "binary", f"A byte for each id of `{field.name}`: what it weighs.", {"feature_tokens": [name]}
        )

    return {
        "device_id": device_id("feature_tokens"),
        "day": TableColumn("date", "The as-of day.", {"feature_tokens": ["day"]}, everything),
        "label": TableColumn(
            "tinyint",
            f"1 where the device converts within {audience.horizon_days} days after the as-of day, else 0.",
            {"app_events": list(dict.fromkeys(["device_id", "event_time", *label]))},
            everything,
        ),
        "split": TableColumn(
            "tinyint",
            ", ".join(f"{number}: {name}" for number, name in sorted(SPLIT_NAMES.items())),
            {"feature_tokens": ["device_id"]},
            everything,
        ),
        IN_TIME: TableColumn(
            "tinyint",
            f"The split in a rehearsal that ends before the newest as-of day, whose rows are {OUT_OF_TIME}; "
            f"{LEFT_OUT}: not in it.",
            {"feature_tokens": ["device_id", "day"]},
            everything,
        ),
        **{field.name: ids(field) for field in fields},
        **{weights_column(field.name): weights(field) for field in fields if not is_behaviour(field.name)},
        "audience": audience_name(),
    }


def keep_negatives(seed: int, share: float) -> Column:
    """Which rows are kept: a share of the TRAIN rows labelled 0, by a seeded hash, and all others.

    The other splits keep every row, so that what is measured on them is what happens.
    """
    if share == 1:
        return F.lit(True)
    position = F.pmod(F.xxhash64(F.lit(seed), F.lit("negatives"), "device_id", "day"), F.lit(SAMPLE_GRAIN))
    drawn = position < F.lit(round(share * SAMPLE_GRAIN))
    return (F.col("split") != TRAIN) | (F.col("label") == 1) | drawn


def label_devices(
    feature_tokens: DataFrame, events: DataFrame, predicate: str, horizon_days: int
) -> DataFrame:
    """Adds the int8 column `label`: 1 where an event of the device satisfies the predicate in time.

    Args:
        feature_tokens: `device_id` and `day`, the as-of day.
        events: `device_id`, `event_time` and the columns of the predicate, of all the label days.
        predicate: Spark SQL.
        horizon_days: An event counts in [as-of day + 1 day 00:00, that + horizon_days).
    """
    conversions = events.where(F.expr(predicate)).select(
        "device_id", F.to_date("event_time").alias("converted_on")
    )
    as_of_days = feature_tokens.select("day").distinct()
    ahead = F.datediff("converted_on", "day")
    positive = (
        conversions.join(F.broadcast(as_of_days), ahead.between(1, horizon_days))
        .select("device_id", "day")
        .distinct()
        .withColumn("label", F.lit(1).cast("tinyint"))
    )
    return feature_tokens.join(positive, ["device_id", "day"], "left").fillna({"label": 0})


def split_devices(
    seed: int, validation_fraction: float, test_fraction: float, block: PromotionBlock
) -> Column:
    """The split of a device, by hashes of its id: the same on all its as-of days.

    Which devices are kept for promotion depends on neither seed nor the other fractions, and which of the
    other splits a device is in does not depend on the block.
    """
    kept = F.pmod(F.xxhash64(F.lit(block.salt), F.col("device_id")), F.lit(SPLIT_GRAIN))
    position = F.pmod(F.xxhash64(F.lit(seed), F.col("device_id")), F.lit(SPLIT_GRAIN))
    test_end = round(test_fraction * SPLIT_GRAIN)
    validation_end = test_end + round(validation_fraction * SPLIT_GRAIN)
    split = (
        F.when(kept < round(block.fraction * SPLIT_GRAIN), PROMOTION)
        .when(position < test_end, TEST)
        .when(position < validation_end, VALIDATION)
        .otherwise(TRAIN)
    )
    return split.cast("tinyint")


def split_in_time(audience: Audience, out_of_time: date | None) -> Column:
    """The split of a row in the rehearsal of a training, which is over before the newest as-of day.

    Rows of that day are OUT_OF_TIME; but none of the devices trained on where only a share of their negatives
    is kept, so that what is measured is what happens. Rows of days whose horizon ends after it are LEFT_OUT:
    what decides their labels partly decides those, too. So are all rows of devices kept for promotion.

    Args:
        audience: Its horizon, and the share of negatives kept.
        out_of_time: The newest as-of day; None: there is no rehearsal.
    """
    if out_of_time is None:
        return F.lit(LEFT_OUT).cast("tinyint")
    split, newest = F.col(SPLIT), F.lit(out_of_time)
    is_sampled = (split == TRAIN) & F.lit(audience.training.negatives_kept < 1)
    chosen = (
        F.when((split == PROMOTION) | ((F.col("day") == newest) & is_sampled), LEFT_OUT)
        .when(F.col("day") == newest, OUT_OF_TIME)
        .when(F.date_add("day", audience.horizon_days) > newest, LEFT_OUT)
        .otherwise(split)
    )
    return chosen.cast("tinyint")


def encode_rows(labelled: DataFrame, vocabulary: Vocabulary) -> DataFrame:
    """Replaces each field's tokens by ids, with the function that scoring uses too.

    Args:
        labelled: `device_id`, `day`, `label`, the splits, the fields' tokens and what they weigh.
        vocabulary: Its fields are the ones kept.

    Returns:
        `device_id`, `day`, `label`, the splits, one array<int> per field, never empty, and for each field
        whose tokens weigh a column of as many bytes.
    """
    kept = [name for name in ("device_id", "day", "label", SPLIT, IN_TIME) if name in labelled.columns]
    fields = [field.name for field in vocabulary.fields]
    weighted = [field.name for field in vocabulary.fields if field.weighted]
    names = [*kept, *fields, *map(weights_column, weighted)]

    def encode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            bags = vocabulary.encode(batch)
            columns = [batch.column(name) for name in kept] + [bags[name].to_arrow() for name in fields]
            columns += [bags[name].codes_to_arrow() for name in weighted]
            yield pa.RecordBatch.from_arrays(columns, names=names)

    narrow = labelled.select(*kept, *vocabulary.columns)
    schema = StructType([f for f in narrow.schema.fields if f.name in kept])
    for name in fields:
        schema = schema.add(name, ArrayType(IntegerType()))
    for name in weighted:
        schema = schema.add(weights_column(name), BinaryType())
    return narrow.mapInArrow(encode, schema)


@dataclass(frozen=True)
class ClassBalance:
    """How rare conversions are.

    Attributes:
        rows: Rows kept.
        positives: Those labelled 1.
        base_rate: Share of positives among all devices, the negatives that were not kept included.
    """

    rows: int
    positives: int
    base_rate: float


def class_balances(splits: Iterable[Mapping[str, Any]], negatives_kept: float) -> dict[str, ClassBalance]:
    """The balance of each as-of day.

    Args:
        splits: What `count_splits` found.
        negatives_kept: The share of the TRAIN rows labelled 0 that was kept.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for split in splits:
        found.setdefault(str(split["day"]), []).append(split)
    return {day: class_balance(parts, negatives_kept) for day, parts in found.items()}


def class_balance(splits: Sequence[Mapping[str, Any]], negatives_kept: float) -> ClassBalance:
    """The balance of some splits together; 0 of no rows."""
    rows, positives = (sum(split[name] for split in splits) for name in ("rows", "positives"))
    devices = positives + sum(
        (split["rows"] - split["positives"]) / (negatives_kept if split["split"] == TRAIN else 1)
        for split in splits
    )
    return ClassBalance(rows, positives, positives / devices if devices else 0.0)


def count_splits(rows: DataFrame) -> list[dict[str, Any]]:
    """Rows, positives and label rate per as-of day and split, in order."""
    counts = rows.groupBy("day", "split").agg(
        F.count("*").alias("rows"), F.sum("label").alias("positives"), F.avg("label").alias("label_rate")
    )
    return [row.asDict() for row in counts.orderBy("day", "split").collect()]
