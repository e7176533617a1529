"""What is unusual about a day's events: far fewer than on the same weekday, or more rejected for one reason.

The counts are given; a message is for a person, and names what may be the cause.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from math import sqrt
from statistics import median

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.events.event_names import COPIES, REASON

WEEKS_BEFORE = 4
WEEKS_OF_SILENCE = 3
"""After so many without an event on the weekday, none is usual."""
FEWEST_OF_USUAL = 0.5
"""Below this share of what is usual on the weekday, a day's events are far fewer."""

DAYS_BEFORE = 14
MORE_THAN_USUAL = 0.02
"""A reason's share of raw rows may be higher than usual by this much, and up to twice as high."""
STANDARD_ERRORS = 3
ROWS_BY_CHANCE = 3

MISREAD_SHARE = 0.1
"""Above this share of raw rows a reason that tells of misreading is an alarm without any days before."""
MISREAD_CAUSES: Mapping[str, str] = {
    "misfiled_event": "are the folders named by the days of another time zone?",
    "missing_time": "is events.time_column the right one, and filled?",
    "missing_arrival": "is events.arrival_column the right one, and filled?",
    "future_event": "are time_column and arrival_column exchanged, or in different time zones?",
    "late_event": "are time_column and arrival_column in different time zones, or max_late_hours too few?",
    "undecodable_id": "are the ids written in another encoding than UTF-8?",
    "control_character_in_id": "is events.id_column the right one?",
    "overlong_id": "is events.id_column the right one?",
}
MISTYPED, MISTYPED_CAUSE = "mistyped:", "has the column another type now? Files that agree mend it"


@dataclass(frozen=True)
class DayCounts:
    """Numbers of a day: its raw rows, and those of them that were rejected for each reason."""

    raw: int
    rejected: Mapping[str, int] = field(default_factory=dict)

    def share(self, reason: str) -> float:
        return self.rejected.get(reason, 0) / self.raw if self.raw else 0.0


def days_before(days: Sequence[date], known: Collection[date]) -> list[date]:
    """The days, and those known of the days before whose shares of rejected rows tell what is usual."""
    before = {day - timedelta(days=back) for day in days for back in range(1, DAYS_BEFORE + 1)}
    return sorted({*days, *before.intersection(known)})


def count_days(accepted: DataFrame, rejected: DataFrame) -> dict[date, DayCounts]:
    """The counts of each day that has a row.

    Args:
        accepted: `day` and `copies` of the accepted events.
        rejected: `day` and `rejected_because` of the rejected rows.
    """
    kept = {row[0]: row[1] for row in accepted.groupBy("day").agg(F.sum(COPIES)).collect()}
    reasons: dict[date, dict[str, int]] = {}
    for day, reason, rows in rejected.groupBy("day", REASON).count().collect():
        reasons.setdefault(day, {})[reason] = rows
    return {
        day: DayCounts(kept.get(day, 0) + sum(reasons.get(day, {}).values()), reasons.get(day, {}))
        for day in kept.keys() | reasons.keys()
    }


def days_to_compare(day: date) -> list[date]:
    """The same weekday of the weeks before, whose accepted events tell how many are usual."""
    return [day - timedelta(weeks=back) for back in range(1, WEEKS_BEFORE + 1)]


def unusual_number(day: date, accepted: Mapping[date, int]) -> str | None:
    """What is wrong with the number of a day's accepted events, if anything.

    Args:
        day: The day.
        accepted: Its events, and those of other days as far as they are known.
    """
    events = accepted[day]
    before = [accepted[other] for other in days_to_compare(day) if other in accepted]
    usual = median(before) if before else 0
    if events == 0:
        # A shop that is closed on Saturdays is not out of order.
        is_usual = len(before) >= WEEKS_OF_SILENCE and not any(before)
        return None if is_usual else f"no events yet for {day}"
    if events >= FEWEST_OF_USUAL * usual:
        return None
    return f"{events:,} events on {day}, where {usual:,.0f} are usual on a {day:%A}"


def unusual_rejections(day: date, counts: Mapping[date, DayCounts]) -> str | None:
    """The reasons for which unusually many of a day's rows were rejected, if any.

    Args:
        day: The day.
        counts: Its counts, and those of other days as far as they are known.
    """
    today = counts.get(day, DayCounts(0))
    days = (day - timedelta(days=back) for back in range(1, DAYS_BEFORE + 1))
    before = [counts[other] for other in days if other in counts and counts[other].raw]
    said = []
    for reason in sorted(today.rejected):
        cause = MISTYPED_CAUSE if reason.startswith(MISTYPED) else MISREAD_CAUSES.get(reason)
        usual = median(other.share(reason) for other in before) if before else None
        highest = max((other.share(reason) for other in before), default=0.0)
        unusual = (
            usual is not None
            and today.share(reason) > highest
            and _is_more(today.rejected[reason], today.raw, usual)
        )
        if unusual or (cause is not None and today.share(reason) > MISREAD_SHARE):
            compared = f", usually {usual:.1%}" if usual is not None else ""
            hint = f" ({cause})" if cause else ""
            said.append(f"{reason}: {today.share(reason):.1%} of the rows of {day}{compared}{hint}")
    return "; ".join(said) or None


def _is_more(rejected: int, raw: int, usual: float) -> bool:
    """Whether the share is higher than usual: by so much that it matters, and beyond chance."""
    share = rejected / raw
    if share <= max(usual + MORE_THAN_USUAL, 2 * usual):
        return False
    return rejected - usual * raw > STANDARD_ERRORS * sqrt(usual * raw) + ROWS_BY_CHANCE
