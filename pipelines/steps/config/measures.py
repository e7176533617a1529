"""Measures held against the types of their columns."""

import re

from pipelines.steps.config.fields import MeasureSpec
from pipelines.steps.errors import ConfigError

_NUMBER = re.compile(r"tinyint|smallint|int|bigint|float|double|decimal\(\d+,\s*\d+\)")


def require_number(file: str, measure: MeasureSpec, column_type: str) -> None:
    """Refuses a measure that is no number.

    Args:
        file: The file that declares it, for the message.
        measure: The measure.
        column_type: The type of its column or expression in Spark's words.

    Raises:
        ConfigError: The type is none of numbers.
    """
    if _NUMBER.fullmatch(column_type):
        return
    is_column = measure.column is not None
    raise ConfigError(
        f"{file}: `{measure.key}` "
        + ("names a column that holds no numbers" if is_column else "makes no numbers"),
        found=f"{measure.column or measure.sql!r} of type {column_type}",
        expected="whole numbers, floats or decimals",
        remedy=f"name a column of numbers, or make them of it: `sql: try_cast({measure.column} as double)`"
        if is_column
        else "correct the expression, or cast it: `try_cast(… as double)`",
    )
