"""The values of labels and signals held against the types of their columns, and what condition comes of it.

A value means what it says: `app_version: 1.10` is the text "1.10" where the column holds text, and the
number 1.1 where it holds numbers.
"""

import re
from collections.abc import Mapping
from datetime import date
from decimal import Context, Decimal
from math import isfinite
from pathlib import Path

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.predicates import predicate_columns
from pipelines.steps.config.problems import closest, shown_path
from pipelines.steps.config.signals import EventCondition, Signal
from pipelines.steps.config.values import ISO_DAY
from pipelines.steps.errors import ConfigError

_WHOLE_BITS = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_LONGEST_WHOLE = 19
"""Digits of the largest bigint."""


def label_columns(condition: EventCondition) -> list[str]:
    """The columns of an event that decide whether it satisfies a label or a signal."""
    return (
        list(condition.event or {}) if condition.where is None else list(predicate_columns(condition.where))
    )


def conversion_predicate(audience: Audience, column_types: Mapping[str, str]) -> str:
    """The Spark SQL condition that a converting event satisfies.

    Args:
        audience: Its label.
        column_types: The events' columns, each with its type in Spark's words; `dict(frame.dtypes)` has them.

    Raises:
        ConfigError: The events lack a column of the label, or it is of a type that the value is not of.
    """
    return _predicate(audience.label, column_types, audience.file, "label")


def signal_predicate(signal: Signal, column_types: Mapping[str, str]) -> str:
    """The Spark SQL condition that an event of the signal satisfies.

    Raises:
        ConfigError: As `conversion_predicate`.
    """
    return _predicate(signal.condition, column_types, signal.file, signal.key)


def _predicate(condition: EventCondition, column_types: Mapping[str, str], file: Path, place: str) -> str:
    key = f"{place}.event" if condition.where is None else f"{place}.where"
    for column in label_columns(condition):
        if column not in column_types:
            raise ConfigError(
                f"{shown_path(file)}: `{key}` names a column that the events do not have",
                found=repr(column),
                expected=f"one of {', '.join(column_types)}",
                remedy=closest(column, list(column_types)) or "name a column that is there",
            )
    if condition.where is not None:
        return condition.where
    return " AND ".join(
        _equals(f"{shown_path(file)}: `{key}.{column}`", column, value, column_types[column])
        for column, value in (condition.event or {}).items()
    )


def _equals(place: str, column: str, value: str, column_type: str) -> str:
    name = "`" + column.replace("`", "``") + "`"
    text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"  # Spark reads backslash escapes
    if column_type == "string" or column_type.startswith(("varchar(", "char(")):
        return f"{name} = {text}"
    if column_type == "binary":
        return f"cast({name} as string) = {text}"
    expected, remedy = "", f"write a value of type {column_type}, or name another column"
    if column_type == "boolean":
        if value.lower() in {"true", "false"}:
            return f"{name} = {value.lower()}"
        expected, remedy = "true or false", "write true or false"
    elif column_type in _WHOLE_BITS:
        if (whole := _whole(value, _WHOLE_BITS[column_type])) is not None:
            return f"{name} = {whole}"
        expected = f"a whole number that {column_type} holds"
    elif column_type in {"float", "double"}:
        if _NUMBER.fullmatch(value) and isfinite(float(value)):
            return f"{name} = cast('{value}' as {column_type})"
        expected = "a number"
    elif match := _DECIMAL.fullmatch(column_type):
        if (exact := _exact(value, *map(int, match.groups()))) is not None:
            return f"{name} = {exact}BD"
        expected = f"a number that {column_type} holds"
    elif column_type in {"date", "timestamp", "timestamp_ntz"}:
        if _is_day(value):
            return f"to_date({name}) = date'{value}'"
        expected, remedy = "a day such as 2025-01-31", "write the day as YYYY-MM-DD, or a condition: `where`"
    else:
        expected = "a column of texts, numbers, days, or true and false"
        remedy = "name such a column, or write a condition: `where`"
    raise ConfigError(
        f"{place} does not fit its column",
        found=f"{value} for the column {column!r} of type {column_type}",
        expected=expected,
        remedy=remedy,
    )


def _whole(value: str, bits: int) -> int | None:
    if not _NUMBER.fullmatch(value):
        return None
    number = Decimal(value)
    if number.adjusted() > _LONGEST_WHOLE or number != number.to_integral_value():
        return None
    whole = int(number)
    return whole if -(2 ** (bits - 1)) <= whole < 2 ** (bits - 1) else None


def _exact(value: str, precision: int, scale: int) -> str | None:
    """The digits, if the column has a place for each of them."""
    if not _NUMBER.fullmatch(value):
        return None
    number = Decimal(value).normalize(Context(prec=len(value)))  # without a precision, 28 digits
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > scale:
        return None
    if number and number.adjusted() >= precision - scale:
        return None
    return f"{number:f}"


def _is_day(value: str) -> bool:
    if not ISO_DAY.fullmatch(value):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True
