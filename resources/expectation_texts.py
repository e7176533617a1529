"""Sentences about what Great Expectations was asked and found: "auc_low: above 0.5 expected, 0.48 found".

Device ids are never shown, whatever an expectation about them found or raised.

What does not belong here: what is asked, and what follows from it (`resources.expectations`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SAMPLE = 5
"""Different offending values shown with a failed check."""

_HIDDEN = "device ids are never shown"


def explain(result: Any) -> str:
    """Says why an expectation failed."""
    asked = f"{_subject(result)}: {wanted(result.expectation_config)} expected"
    if messages := _exceptions(result):
        shown = f"{_HIDDEN}, and the error may quote some" if _is_about_ids(result) else "; ".join(messages)
        return f"{asked}, which cannot be answered: {shown}"
    return f"{asked}, {_found_otherwise(result)}"


def figures(results: Sequence[Any], row: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What was asked → what was found, of each expectation of a check.

    Args:
        results: What Great Expectations says of each.
        row: The evidence, where it is one row.
    """
    return {
        f"{_subject(result)}: {wanted(result.expectation_config)}": _found(result, row) for result in results
    }


def wanted(config: Any) -> str:
    """What an expectation asks of its columns, less their name.

    Raises:
        KeyError: An expectation that no check has used so far: name it here.
    """
    return _WANTED[config.type](config.kwargs)


def _between(asked: Mapping[str, Any]) -> str:
    low, high = asked.get("min_value"), asked.get("max_value")
    least, most = (
        "above" if asked.get("strict_min") else "at least",
        "below" if asked.get("strict_max") else "at most",
    )
    if low is None:
        return f"{most} {_text(high)}"
    if high is None:
        return f"{least} {_text(low)}"
    if asked.get("strict_min") or asked.get("strict_max"):
        return f"{least} {_text(low)} and {most} {_text(high)}"
    return f"{_text(low)} to {_text(high)}"


def _in_set(asked: Mapping[str, Any]) -> str:
    values = asked["value_set"]
    return _text(values[0]) if len(values) == 1 else f"one of {', '.join(map(_text, values))}"


_WANTED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "expect_column_pair_values_a_to_be_greater_than_b": lambda asked: f"at least {asked['column_B']}",
    "expect_column_pair_values_to_be_equal": lambda asked: f"equal to {asked['column_B']}",
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_be_in_set": _in_set,
    "expect_column_values_to_be_null": lambda _: "none",
    "expect_column_values_to_be_of_type": lambda asked: str(asked["type_"]),
    "expect_column_values_to_be_unique": lambda _: "nothing twice",
    "expect_column_values_to_not_be_null": lambda _: "a value",
    "expect_compound_columns_to_be_unique": lambda _: "nothing twice",
    "expect_table_row_count_to_be_between": _between,
    "expect_table_row_count_to_equal": lambda asked: _text(asked["value"]),
}


def _subject(result: Any) -> str:
    asked = result.expectation_config.kwargs
    return asked.get("column") or asked.get("column_A") or ", ".join(asked.get("column_list", ["rows"]))


def _found(result: Any, row: Mapping[str, Any] | None) -> str:
    """What was found, whether it was expected or not."""
    if _exceptions(result):
        return "no answer"
    if not result.success:
        return _found_otherwise(result)
    details = result.result
    if "observed_value" in details:
        return _text(details["observed_value"])
    if result.expectation_config.type == "expect_column_values_to_be_null":
        return "none"
    rows = details.get("element_count", 0)
    if row is None or _is_about_ids(result):
        return f"in {_rows(rows)}" if rows else "no row"
    asked = result.expectation_config.kwargs
    return _joined(
        row[name] for name in (asked.get("column"), asked.get("column_A"), asked.get("column_B")) if name
    )


def _found_otherwise(result: Any) -> str:
    details = result.result
    if "observed_value" in details:
        return f"{_text(details['observed_value'])} found"
    rows, others = details["element_count"], details["unexpected_count"]
    where = "" if rows == 1 else f" in {others:,} of {_rows(rows)}"
    if _is_about_ids(result):
        return f"others found{where} ({_HIDDEN})"
    values = dict.fromkeys(map(_text, details["partial_unexpected_list"]))
    return f"{', '.join(list(values)[:SAMPLE])} found{where}"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _exceptions(result: Any) -> list[str]:
    """What an expectation raised: described at once, or by each metric that it could not compute."""
    info = result.exception_info
    described = [info] if "raised_exception" in info else info.values()
    return sorted({str(each["exception_message"]) for each in described if each["raised_exception"]})


def _is_about_ids(result: Any) -> bool:
    return "device_id" in str(result.expectation_config.kwargs)


def _joined(values: Iterator[Any]) -> str:
    return " and ".join(map(_text, values))


def _text(value: Any) -> str:
    """A value as a person reads it: of a mapping or a tuple, its values."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Mapping):
        return _joined(iter(value.values()))
    if isinstance(value, list | tuple | set):
        return _joined(iter(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
