"""The days that are trained on, and the days that decide their labels."""

from collections.abc import Collection, Sequence
from datetime import date, timedelta

from pipelines.steps.config.audience import Audience, RollingDays
from pipelines.steps.errors import DataError, day_ranges

LEAST_DAYS_BEFORE, LEAST_SHARE_BEFORE = 3, 0.5
"""As-of days that a rehearsal trains on."""


def label_days(as_of: date, horizon_days: int) -> list[date]:
    """The days whose events decide the label of an as-of day: the `horizon_days` after it."""
    return [as_of + timedelta(days=ahead) for ahead in range(1, horizon_days + 1)]


def out_of_time_day(as_of_days: Sequence[date], horizon_days: int) -> date | None:
    """The newest as-of day, where history is long enough to rehearse a training without it.

    What is trained on then lies a whole horizon before it, so that no label is decided after it. So many days
    must stay: three at least, and half of all, so that the rehearsal is much like the training itself.

    Args:
        as_of_days: All of them, oldest first.
        horizon_days: How many days after an as-of day decide its labels.
    """
    newest = as_of_days[-1]
    staying = [day for day in as_of_days if day + timedelta(days=horizon_days) <= newest]
    enough = max(LEAST_DAYS_BEFORE, LEAST_SHARE_BEFORE * len(as_of_days))
    return newest if len(staying) >= enough else None


def matured_as_of_days(audience: Audience, known_days: Sequence[date], window_days: int) -> list[date]:
    """The as-of days to train on, oldest first.

    Args:
        audience: Names the days, or asks for the newest matured ones; all of these where it says no number,
            but for those with a day missing in their window or horizon.
        known_days: Days whose events are in the lake.
        window_days: The look-back; a rolling as-of day needs a whole window.

    Raises:
        DataError: A day named has not matured, or too few have.
    """
    known = set(known_days)

    def matured(as_of: date) -> bool:
        return known.issuperset(label_days(as_of, audience.horizon_days))

    if not isinstance(audience.as_of_days, RollingDays):
        unripe = [day for day in audience.as_of_days if not matured(day)]
        if unripe:
            raise _not_matured(audience, unripe, known, window_days=0)
        return list(audience.as_of_days)
    rolling = audience.as_of_days
    if not known:
        raise DataError(
            f"{audience.name}: there are no days to train on",
            found="no app_events",
            expected=f"as-of days with {window_days} days up to each, and {audience.horizon_days} days after",
            remedy="run ingestion_job over the past",
        )
    newest, first = max(known) - timedelta(days=audience.horizon_days), min(known)

    def before(count: int) -> list[date]:
        return [newest - timedelta(days=back * rolling.every_days) for back in range(count)]

    if rolling.count is None:
        reach = max(0, (newest - (first + timedelta(days=window_days - 1))).days // rolling.every_days + 1)
        whole = [day for day in before(reach) if matured(day) and known.issuperset(_window(day, window_days))]
        if not whole:
            raise _not_matured(audience, [newest], known, window_days)
        return sorted(whole)
    days = before(rolling.count)
    unripe = [d for d in days if not matured(d) or d - timedelta(days=window_days - 1) < first]
    if unripe:
        raise _not_matured(audience, unripe, known, window_days)
    return sorted(days)


def _window(as_of: date, window_days: int) -> list[date]:
    return [as_of - timedelta(days=back) for back in range(window_days)]


def _not_matured(
    audience: Audience, unripe: Sequence[date], known: Collection[date], window_days: int
) -> DataError:
    needed = {
        day
        for as_of in unripe
        for day in (
            *_window(as_of, window_days),
            *label_days(as_of, audience.horizon_days),
        )
    }
    missing = day_ranges(map(str, needed.difference(known)))
    return DataError(
        f"{audience.name}: as-of days {day_ranges(map(str, unripe))} cannot be trained on",
        found=f"app_events of {day_ranges(map(str, known))}" if known else "no app_events",
        expected=f"a whole window before, and all of the {audience.horizon_days} days after, each as-of day",
        remedy=f"run ingestion_job for {missing} once their events are there, or ask for earlier as-of days "
        "in the audience's file",
    )
