"""Counts of what became of schedules of faults, counted: of one job's, and of the chain's."""

import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from tabulate import tabulate


class HasFault(Protocol):
    """A schedule, as far as it is counted."""

    @property
    def fault(self) -> str: ...


class Result(Protocol):
    """The outcome of a schedule: a dataclass with these among its attributes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def schedule(self) -> HasFault: ...
    @property
    def ending(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def reads(self) -> int: ...
    @property
    def missed(self) -> bool: ...
    @property
    def violations(self) -> Sequence[str]: ...


def names_of(only: str, faults: Collection[str]) -> list[str]:
    """The faults asked for, comma-separated; all where none is named."""
    names = only.split(",") if only else list(faults)
    if unknown := [name for name in names if name not in faults]:
        raise SystemExit(f"there is no fault {', '.join(unknown)}; there are {', '.join(faults)}")
    return names


def summary(names: Sequence[str], results: Sequence[Result]) -> tuple[str, dict[str, dict[str, Any]]]:
    """A table of counts, and the same as figures with every schedule."""
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        of_fault = [result for result in results if result.schedule.fault == name]
        figures[name] = _counts(of_fault) | {"schedules": [asdict(result) for result in of_fault]}
    figures["all"] = _counts(results)
    headers = list(figures["all"])
    rows = [[name, *(figures[name][header] for header in headers)] for name in figures]
    table = tabulate(rows, headers=["fault", *(h.replace("_", " ") for h in headers)], floatfmt=".1f")
    return table, figures


def _counts(results: Sequence[Result]) -> dict[str, Any]:
    hit = [result for result in results if not result.missed]
    endings = Counter("violations" if result.violations else result.ending for result in hit)
    return {
        "hit": len(hit),
        "recovered": endings["recovered"],
        "named_error": endings["failed"],
        "killed": endings["killed"],
        "violations": endings["violations"],
        "missed": len(results) - len(hit),
        "reads": sum(result.reads for result in hit),
        "median_seconds": statistics.median(result.seconds for result in hit) if hit else None,
    }
