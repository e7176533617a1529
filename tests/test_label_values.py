"""A label's values, held against the types of their columns."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.label_values import conversion_predicate
from pipelines.steps.config.predicates import predicate_columns
from pipelines.steps.config.values import FILE_KEY
from pipelines.steps.errors import ConfigError
from pipelines.steps.events.event_columns import _stored_type
from pipelines.steps.events.event_rows import column_type
from tests.conftest import Frame


def audience(**label: Any) -> Audience:
    return Audience.model_validate(
        {
            FILE_KEY: Path("audiences/buyers.yaml"),
            "name": "buyers",
            "label": label,
            "horizon_days": 7,
            "as_of_days": (date(2025, 3, 1),),
            "segments": ({"name": "best", "size": 1},),
            "deliver_to": ({"type": "folder", "path": "out"},),
        }
    )


def predicate(value: str, column_type: str) -> str:
    return conversion_predicate(audience(event={"c": value}), {"c": column_type})


@pytest.mark.parametrize(
    ("value", "column_type", "sql"),
    [
        ("1.10", "string", "`c` = '1.10'"),
        ("007", "string", "`c` = '007'"),
        ("true", "varchar(10)", "`c` = 'true'"),
        ("1.10", "binary", "cast(`c` as string) = '1.10'"),
        ("True", "boolean", "`c` = true"),
        ("false", "boolean", "`c` = false"),
        ("007", "int", "`c` = 7"),
        ("1e3", "bigint", "`c` = 1000"),
        ("-128", "tinyint", "`c` = -128"),
        ("5.0", "smallint", "`c` = 5"),
        ("1.10", "double", "cast('1.10' as double)"),
        (".1", "float", "cast('.1' as float)"),
        ("1.10", "decimal(4,2)", "`c` = 1.1BD"),
        ("1e2", "decimal(20,0)", "`c` = 100BD"),
        ("0", "decimal(2,2)", "`c` = 0BD"),
        ("0." + "1" * 38, "decimal(38,38)", "0." + "1" * 38 + "BD"),
        ("2025-01-31", "date", "to_date(`c`) = date'2025-01-31'"),
        ("2025-01-31", "timestamp", "to_date(`c`) = date'2025-01-31'"),
    ],
)
def test_the_columns_type_decides_what_a_value_means(value: str, column_type: str, sql: str) -> None:
    assert predicate(value, column_type).endswith(sql)


@pytest.mark.parametrize(
    ("value", "column_type", "expected"),
    [
        ("1", "boolean", "true or false"),
        ("yes", "boolean", "true or false"),
        ("true", "int", "a whole number that int holds"),
        ("1.5", "int", "a whole number that int holds"),
        ("1_000", "int", "a whole number that int holds"),
        ("128", "tinyint", "a whole number that tinyint holds"),
        ("1e9999", "bigint", "a whole number that bigint holds"),
        ("1e999999999", "bigint", "a whole number that bigint holds"),
        ("often", "double", "a number"),
        ("nan", "double", "a number"),
        ("1e999", "double", "a number"),
        ("1.105", "decimal(10,2)", r"a number that decimal\(10,2\) holds"),
        ("1000", "decimal(5,2)", r"a number that decimal\(5,2\) holds"),
        ("2025-02-30", "date", "a day such as 2025-01-31"),
        ("2025-01-31 10:00", "timestamp", "a day such as 2025-01-31"),
        ("a", "array<string>", "a column of texts, numbers, days, or true and false"),
    ],
)
def test_a_value_that_is_none_of_its_column_is_refused(value: str, column_type: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"expected: {expected}") as caught:
        predicate(value, column_type)

    assert caught.value.what == "audiences/buyers.yaml: `label.event.c` does not fit its column"
    assert caught.value.found == f"{value} for the column 'c' of type {column_type}"


def test_all_values_must_be_equal() -> None:
    label = audience(event={"event_name": "purchase", "amount": 2, "paid": True})
    types = {"event_name": "string", "amount": "int", "paid": "boolean"}

    assert (
        conversion_predicate(label, types) == "`event_name` = 'purchase' AND `amount` = 2 AND `paid` = true"
    )


def test_quotes_in_a_value_stay_text() -> None:
    sql = conversion_predicate(audience(event={"odd`name": "O'Neil\\' OR 1=1 --"}), {"odd`name": "string"})

    assert sql == "`odd``name` = 'O\\'Neil\\\\\\' OR 1=1 --'"
    assert predicate_columns(sql) == ("odd`name",)


def test_a_condition_is_taken_as_it_is() -> None:
    assert conversion_predicate(audience(where="Quantity > 0"), {"Quantity": "int"}) == "Quantity > 0"


@pytest.mark.parametrize("label", [{"event": {"produkt": "car"}}, {"where": "produkt = 'car'"}])
def test_a_column_that_the_events_lack_is_refused(label: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a column that the events do not have") as caught:
        conversion_predicate(audience(**label), {"product": "string"})

    assert caught.value.remedy == "did you mean `product`?"


def test_spark_matches_what_is_meant(frame: Frame) -> None:
    """0.1 as a float is no 0.1 as a double, 1.10 as a text no 1.1, and a day has many moments."""
    events = frame(
        "t string, b binary, i int, f float, d double, m decimal(4,2), y boolean, at timestamp, day date",
        [
            ("1.10", b"1.10", 7, 0.1, 0.1, Decimal("1.10"), True, datetime(2025, 1, 31, 23, 59, tzinfo=UTC),
             date(2025, 1, 31)),
            ("1.1", b"1.1", 8, 0.2, 0.2, Decimal("1.11"), False, datetime(2025, 2, 1, tzinfo=UTC),
             date(2025, 2, 1)),
        ],
    )  # fmt: skip
    types = dict(events.dtypes)
    values = {"t": "1.10", "b": "1.10", "i": "007", "f": "0.1", "d": "1e-1", "m": "1.1", "y": "true"}
    values |= {"at": "2025-01-31", "day": "2025-01-31"}
    conditions = [
        conversion_predicate(audience(event={name: value}), types) for name, value in values.items()
    ]

    matched = events.select(*[F.expr(sql) for sql in conditions]).collect()

    assert [list(row) for row in matched] == [[True] * len(values), [False] * len(values)]


@pytest.mark.parametrize(
    "arrow",
    [
        pa.string(), pa.large_string(), pa.binary(), pa.binary(16), pa.bool_(), pa.int8(), pa.int64(),
        pa.uint8(), pa.uint32(), pa.uint64(), pa.float32(), pa.float64(), pa.date32(),
        pa.timestamp("us", "UTC"), pa.decimal128(10, 2), pa.dictionary(pa.int32(), pa.string()), pa.null(),
    ],
    ids=str,
)  # fmt: skip
def test_a_label_is_held_against_the_type_that_events_are_stored_with(arrow: pa.DataType) -> None:
    assert _stored_type(arrow) == column_type(arrow).simpleString()
