"""The one hierarchy of errors. Each message says what, found, expected and remedy."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta


class AudienceFactoryError(Exception):
    """Something the user can act on.

    Args:
        what: What is wrong, naming the file, table, partition or key.
        found: The value found.
        expected: The value or the form expected.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, found: object, expected: object, remedy: str) -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"{what}\n  found:    {found}\n  expected: {expected}\n  remedy:   {remedy}")


class ConfigError(AudienceFactoryError):
    """A file under the audiences directory, or a setting, is wrong."""


class DataError(AudienceFactoryError):
    """A table or partition is missing, incomplete or inconsistent."""


class TrainingError(AudienceFactoryError):
    """A model cannot be trained from the rows given."""


class BundleError(AudienceFactoryError):
    """A model bundle is missing, damaged or does not match what it is asked to score."""


def abridged(names: Sequence[str], most: int = 6) -> str:
    """Names for a message: all, or the first few, the last one and how many there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])}, … {names[-1]} ({len(names)} in all)"


def day_ranges(keys: Iterable[str]) -> str:
    """Partition keys for a message, in order, with consecutive days as one range.

    "car_buyers/2025-03-01" and "car_buyers/2025-03-02" are "car_buyers 2025-03-01 to 2025-03-02"; a key that
    ends with no day stays as it is.
    """
    ranges: list[tuple[str, str, str]] = []
    for key in sorted(set(keys)):
        prefix, _, day = key.rpartition("/")
        if ranges and ranges[-1][0] == prefix and _follows(ranges[-1][2], day):
            ranges[-1] = (prefix, ranges[-1][1], day)
        else:
            ranges.append((prefix, day, day))
    return abridged([f"{prefix} {_range(first, last)}".lstrip() for prefix, first, last in ranges])


def _follows(before: str, day: str) -> bool:
    try:
        return date.fromisoformat(before) + timedelta(days=1) == date.fromisoformat(day)
    except ValueError:  # no days
        return False


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"
