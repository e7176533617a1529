"""A user's Spark SQL over events, held against their columns before any row is read."""

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.errors import ConfigError


def expression_type(events: DataFrame, sql: str, place: str) -> str:
    """The type of an expression's values, in Spark's words.

    Args:
        events: Its columns, by their stored names.
        sql: The expression.
        place: The file and key that say it, for the message.

    Raises:
        ConfigError: Spark cannot make it of these columns.
    """
    try:
        return events.select(F.expr(sql)).schema.fields[0].dataType.simpleString()
    except AnalysisException as error:
        raise ConfigError(
            f"{place} does not fit the columns of the events",
            found=f"{sql!r}: {' '.join(str(error).splitlines()[0].split())}",
            expected="Spark SQL over columns of the types that they have",
            remedy="correct the expression, or convert a column in it: `try_cast(column as double)`",
        ) from error


def require_condition(events: DataFrame, sql: str, place: str) -> None:
    """Refuses what is no condition.

    Raises:
        ConfigError: It is neither true nor false of an event, or cannot be made of the columns.
    """
    found = expression_type(events, sql, place)
    if found != "boolean":
        raise ConfigError(
            f"{place} is no condition",
            found=f"{sql!r} of type {found}",
            expected="what is true or false of an event",
            remedy="compare it with a value, as in `quantity > 0`",
        )
