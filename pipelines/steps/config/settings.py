"""What of a user's files a stored partition was made with, key by key, and whether that still holds.

A partition remembers the keys that decided on its content. Who reads it asks for those that it depends on:
a field or an audience that is added later makes no partition invalid for anybody else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.steps.config.behaviour_names import AMOUNTS, BEHAVIOUR, DISTINCT, PAST, is_behaviour
from pipelines.steps.config.fields import FIELDS_FILE, EventSource, FieldsConfig, FieldSpec, MeasureSpec
from pipelines.steps.config.signals import SIGNAL_PLACES, Signal
from pipelines.steps.errors import DataError, abridged, day_ranges

MADE_WITH = "made_with"
"""The property of a partition that holds its settings."""
PLACES_AND_DAYS = {"path", "written_path", "first_day", "last_day"}
"""Keys of `events` that say where events lie and on which days, not what is made of one."""
INGEST_AGAIN = "backfill ingestion_job over these days, then features_job over those to score"
BACKFILLS = {
    "app_events": INGEST_AGAIN,
    "daily_fields": INGEST_AGAIN,
    "daily_signals": "backfill the asset signals/<name> over these days, or ingestion_job for all signals",
    "feature_tokens": "backfill features_job over these days",
    "training_set": "run training_job",
}
"""Table → what makes its partitions anew, with all that they are made from."""
JOBS = {
    **dict.fromkeys(("app_events", "rejected_events", "daily_fields"), "ingestion_job"),
    "feature_tokens": "features_job",
    "training_set": "training_job",
    **dict.fromkeys(("predictions", "segments"), "daily_job"),
}
"""Table → the job that makes its partitions the first time."""
OF_DAYS, OF_TOKENS = ("column", "kind"), ("normalizer", "max_length")
"""Keys of a field that decide on its values in `daily_fields`, and on its tokens besides."""
BEHAVIOUR_FORMAT = 1
"""Moves on where a number of behaviour or a code of one is computed in another way."""
SHOWN = 4
FORMAT = "format"
DAILY_FORMAT = {FORMAT: 2}
"""Of the rows of `daily_fields`; 1 had the distinct values of a field alone, without their events."""
TOKEN_FORMAT = {FORMAT: 2}
"""Of the rows of `feature_tokens`; 1 had the tokens alone, without what they weigh."""


def event_settings(source: EventSource) -> dict[str, Any]:
    """The keys that decide on the rows of `app_events`."""
    keys = source.model_dump(mode="json")
    filters = keys.pop("filters")
    plain = {f"events.{key}": value for key, value in keys.items() if key not in PLACES_AND_DAYS}
    return (
        plain
        | {f"events.filters.{name}": sql for name, sql in filters.items()}
        | {"events.filters": sorted(filters)}
    )


def daily_settings(config: FieldsConfig, fields: Sequence[FieldSpec] | None = None) -> dict[str, Any]:
    """The keys that decide on the rows of `daily_fields`; of some fields, or of all."""
    chosen = config.fields if fields is None else fields
    return event_settings(config.events) | {
        f"fields.{field.name}.{key}": getattr(field, key) for field in chosen for key in OF_DAYS
    }


def measure_settings(config: FieldsConfig, measures: Sequence[MeasureSpec] | None = None) -> dict[str, Any]:
    """The keys that decide on the amounts of `daily_fields`; of some measures, or of all."""
    chosen = config.measures if measures is None else measures
    return {measure.key: measure.sql or measure.column for measure in chosen}


def signal_settings(source: EventSource, signal: Signal) -> dict[str, Any]:
    """The keys that decide on the rows of one signal in `daily_signals`."""
    condition = signal.condition.model_dump(mode="json", include={"event", "where"}, exclude_none=True)
    return event_settings(source) | {signal.setting: condition}


def token_settings(config: FieldsConfig, signals: Sequence[Signal]) -> dict[str, Any]:
    """The keys that decide on the rows of `feature_tokens`, as far as they tell of these signals."""
    fields = {f"fields.{f.name}.{key}": getattr(f, key) for f in config.fields for key in OF_TOKENS}
    measures = {f"measures.{measure.name}.max": measure.max for measure in config.measures}
    behaviour = {"behaviour.format": BEHAVIOUR_FORMAT, "behaviour.without": sorted(config.behaviour.without)}
    pasts: dict[str, Any] = {}
    for signal in signals:
        pasts |= signal_settings(config.events, signal)
    return (
        daily_settings(config)
        | measure_settings(config)
        | pasts
        | fields
        | measures
        | behaviour
        | {"window_days": config.window_days}
        | TOKEN_FORMAT
    )


def fields_of_settings(settings: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Those that give the tokens of some fields their meaning, whatever events they were made from.

    Args:
        settings: Of `feature_tokens`.
        fields: Names of token fields, those of behaviour among them.
    """
    prefixes, names = set(), {"window_days", FORMAT}
    for name in fields:
        if name.endswith(DISTINCT):
            own = f"fields.{name.removesuffix(DISTINCT)}."
            names |= {own + key for key in OF_DAYS}
        elif name.endswith(AMOUNTS):
            prefixes.add(f"measures.{name.removesuffix(AMOUNTS)}.")
        elif name.endswith(PAST):
            names |= {place.format(name.removesuffix(PAST)) for place in SIGNAL_PLACES}
        elif name != BEHAVIOUR:
            prefixes.add(f"fields.{name}.")
        if is_behaviour(name):
            prefixes.add("behaviour.")
    return {key: value for key, value in settings.items() if key.startswith(tuple(prefixes)) or key in names}


def code_version(settings: Any) -> str:
    """A short hash, by which the UI sees that an asset's settings have changed."""
    canonical = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def remedy_for_missing(table: str, keys: Iterable[str]) -> str:
    """The remedy where partitions were never made: the job to run, and for which days."""
    if table not in JOBS:
        return f"materialize {table} for {day_ranges(keys)} first"
    days = {key.rpartition("/")[2] for key in keys}
    return (
        f"run {JOBS[table]}" if JOBS[table] == "training_job" else f"run {JOBS[table]} for {day_ranges(days)}"
    )


def settings_hold(made_with: Mapping[str, Any], needed: Mapping[str, Any]) -> bool:
    """Whether the settings needed are those that something was made with; others do not matter."""
    missing = object()
    return all(made_with.get(key, missing) == value for key, value in _as_stored(needed).items())


def _as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a partition gives them back."""
    return dict(json.loads(json.dumps(settings, default=str)))


def require_settings(
    table: str,
    made_with: Mapping[str, Mapping[str, Any]],
    needed: Mapping[str, Any],
    by: str | None = None,
) -> None:
    """Refuses partitions that were made with other settings than are needed.

    Args:
        table: Their table.
        made_with: Partition → its settings.
        needed: Those that must be equal; others do not matter.
        by: Who needs them, where that is a model and not the present fields.yaml.

    Raises:
        DataError: A setting differs; names the first key, both values, the partitions and what mends them.
    """
    missing = object()
    plain = _as_stored(needed)
    changed: dict[str, list[str]] = {}
    for partition, settings in made_with.items():
        for key, value in plain.items():
            if settings.get(key, missing) != value:
                changed.setdefault(key, []).append(partition)
    if not changed:
        return
    key, partitions = next(iter(changed.items()))
    before = made_with[partitions[0]].get(key, missing)
    others = [other for other in changed if other != key]
    stale = f"{table} {abridged(partitions, SHOWN)}"
    if by is None:
        audience, _, place = key.rpartition(": ")
        file = f"the file of audience {audience}" if audience else FIELDS_FILE
        what = f"{stale} was made before {file} said what it says now: `{place}`"
        remedy = f"{BACKFILLS.get(table, f'materialize {table} again')}; or set {file} back. "
        remedy += "A new project wants a DATA_DIR and DAGSTER_HOME of its own"
    else:
        what = f"{stale} was made with another `{key}` than {by} was trained with"
        remedy = "run features_job for the as-of days, then training_job: a model goes with its settings"
    if key == FORMAT:
        what = f"{stale} was made by a former version of this program"
        remedy = BACKFILLS[table]
    raise DataError(
        what,
        found="nothing was said of it then" if before is missing else repr(before),
        expected=repr(plain[key]) + (f" (also changed: {abridged(others, SHOWN)})" if others else ""),
        remedy=remedy,
    )
