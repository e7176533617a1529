"""The list of behaviours: name, group, meaning and unit. Docs, columns and the cards' words come from it.

How they are computed is in `behaviour`, how their numbers become tokens in `behaviour_codes`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.steps.config.behaviour import Group
from pipelines.steps.config.behaviour_names import AMOUNTS, BEHAVIOUR, DISTINCT, PAST
from pipelines.steps.config.fields import FieldsConfig

WINDOWS = (1, 7, 30)
"""Days of the windows that counts are made for, beside the look-back window and all history."""
ALL = "all"
"""The span of all history, in names of behaviours."""
Unit = Literal["events", "days", "values", "amount", "gaps", "ratio", "share"]


@dataclass(frozen=True)
class Pattern:
    """One line of the list. `{field}`, `{measure}` and `{span}` stand for each of these that there is.

    Attributes:
        name: The column's name.
        group: By which it can be turned off.
        formula: What it is, in words; the span goes in at `{span}`.
        unit: Of the number.
        with_all_history: Whether it is computed of all history, too.
    """

    name: str
    group: Group
    formula: str
    unit: Unit
    with_all_history: bool = True


DEVICE_PATTERNS = (
    Pattern("events_{span}", "activity", "events {span}", "events"),
    Pattern("active_days_{span}", "activity", "days with an event {span}", "days"),
    Pattern("distinct_{field}_{span}", "distinct", "distinct raw values of {field} {span}", "values", False),
    Pattern("{measure}_sum_{span}", "amounts", "sum of {measure} {span}", "amount"),
    Pattern("{measure}_mean_{span}", "amounts", "{measure} per event that has one, {span}", "amount"),
    Pattern("{measure}_max_{span}", "amounts", "largest {measure} {span}", "amount"),
    Pattern("recency", "recency", "days from the last event to the end of the as-of day", "days"),
    Pattern("{measure}_recency", "recency", "days since the last day with a {measure} other than 0", "days"),
    Pattern("tenure", "tenure", "days since the first event's day, that day included", "days"),
    Pattern("gap_mean", "gaps", "mean days from one active day to the next, all history", "days"),
    Pattern("gap_spread", "gaps", "standard deviation of these gaps", "days"),
    Pattern("overdue", "gaps", "days since the last active day, in mean gaps", "gaps"),
    Pattern("trend", "trend", "events of the last 7 days over a mean week before, both + 1", "ratio"),
    Pattern("night_share", "hours", "share of the window's active hours from 0 to 6 o'clock UTC", "share"),
    Pattern("weekend_share", "hours", "share of the window's active hours on weekend days, UTC", "share"),
)  # fmt: skip
"""Of every device, from `daily_fields`."""
SIGNAL_PATTERNS = (
    Pattern("times_{span}", "signals", "events that satisfy the signal, {span}", "events"),
    Pattern("days_{span}", "signals", "days with such an event {span}", "days"),
    Pattern("recency", "recency", "days from the last such event to the end of the as-of day", "days"),
    Pattern("since_first", "tenure", "days since the first such event's day, that day included", "days"),
    Pattern("gap_mean", "gaps", "mean days from one such day to the next, all history", "days"),
    Pattern("gap_spread", "gaps", "standard deviation of these gaps", "days"),
    Pattern("overdue", "gaps", "days since the last such day, in mean gaps", "gaps"),
    Pattern("trend", "trend", "such events of the last 7 days over a mean week before, both + 1", "ratio"),
)  # fmt: skip
"""Of every device and signal, from `daily_signals`."""


def layout_of(config: FieldsConfig) -> "Layout":
    """What fields.yaml asks to be computed."""
    return Layout(
        config.window_days,
        tuple(field.name for field in config.fields if field.kind == "multi"),
        {measure.name: measure.max for measure in config.measures},
        config.behaviour.without,
    )


@dataclass(frozen=True)
class Layout:
    """What behaviour is computed of.

    Attributes:
        window_days: The look-back, the as-of day included; devices without an event in it have no row.
        multi_fields: Fields whose distinct values are counted.
        measures: Measure → whether its largest value is kept, too.
        off: Groups left out.
    """

    window_days: int
    multi_fields: tuple[str, ...] = ()
    measures: Mapping[str, bool] = field(default_factory=dict)
    off: Collection[Group] = frozenset()

    @property
    def windows(self) -> tuple[int, ...]:
        """Windows in days, ascending, none twice; all history comes on top."""
        return (*(days for days in WINDOWS if days < self.window_days), self.window_days)


@dataclass(frozen=True)
class Behaviour:
    """One number of a device as of a day.

    Attributes:
        name: The column's name.
        group: By which it can be turned off.
        words: What it is.
        unit: Of the number.
        field: The field that its token goes to: what is told of one field, measure or signal is in a field
            of its own, so that another one that is added changes nothing for models that do not know it.
    """

    name: str
    group: Group
    words: str
    unit: Unit
    field: str


def device_behaviours(layout: Layout) -> list[Behaviour]:
    """Every column that is computed of a device's events, in order."""
    return list(_filled(DEVICE_PATTERNS, layout))


def signal_behaviours(layout: Layout) -> list[Behaviour]:
    """Every column that is computed of one signal's days, in order; none where signals are off."""
    return [] if "signals" in layout.off else list(_filled(SIGNAL_PATTERNS, layout))


def _filled(patterns: tuple[Pattern, ...], layout: Layout) -> Iterator[Behaviour]:
    for pattern in patterns:
        if pattern.group in layout.off:
            continue
        for names in _names(pattern, layout):
            for span, words in _spans(pattern, layout):
                name = pattern.name.format(span=span, **names)
                meaning = pattern.formula.format(span=words, **names)
                yield Behaviour(name, pattern.group, meaning, pattern.unit, _field_of(names))


def _field_of(names: Mapping[str, str]) -> str:
    if "field" in names:
        return names["field"] + DISTINCT
    return names["measure"] + AMOUNTS if "measure" in names else BEHAVIOUR


def _names(pattern: Pattern, layout: Layout) -> list[dict[str, str]]:
    if "{field}" in pattern.name:
        return [{"field": name} for name in layout.multi_fields]
    if "{measure}" in pattern.name:
        largest_only = "_max_" in pattern.name
        return [
            {"measure": name} for name, with_max in layout.measures.items() if with_max or not largest_only
        ]
    return [{}]


def _spans(pattern: Pattern, layout: Layout) -> list[tuple[str, str]]:
    if "{span}" not in pattern.name:
        return [("", "")]
    spans = [f"{days}d" for days in layout.windows] + ([ALL] if pattern.with_all_history else [])
    return [(span, _span_in_words(span) or span) for span in spans]


def found_behaviour(field: str, name: str) -> Behaviour | None:
    """The behaviour of a name in a field of tokens; None where it is none.

    Whatever was computed when a model was trained is found, though fields.yaml may ask for it no more.
    """
    patterns = SIGNAL_PATTERNS if field.endswith(PAST) else DEVICE_PATTERNS
    owner = {"field": field.removesuffix(DISTINCT), "measure": field.removesuffix(AMOUNTS)}
    for pattern in patterns:
        before, _, after = pattern.name.partition("{span}")
        begin, end = before.format(**owner), after.format(**owner)
        span = name[len(begin) : len(name) - len(end)]
        if not name.startswith(begin) or not name.endswith(end):
            continue
        words = _span_in_words(span) if "{span}" in pattern.name else "" if not span else None
        if words is not None:
            told = pattern.formula.format(span=words, **owner)
            if field.endswith(PAST):
                told = f"{field.removesuffix(PAST)}: {told}"
            return Behaviour(name, pattern.group, told, pattern.unit, field)
    return None


def _span_in_words(span: str) -> str | None:
    if span == ALL:
        return "in all history"
    days = span.removesuffix("d")
    if not days.isdecimal() or span == days:
        return None
    return f"in the last {days} days" if int(days) > 1 else "on the as-of day"


def documented() -> str:
    """The list as a Markdown table, as docs/features.md has it."""
    lines = ["| behaviour | group | what it is | unit |", "|---|---|---|---|"]
    for prefix, patterns in (("", DEVICE_PATTERNS), ("*signal*: ", SIGNAL_PATTERNS)):
        for pattern in patterns:
            span = (
                ""
                if "{span}" not in pattern.name
                else "; 1, 7, 30, window" + (", all" if pattern.with_all_history else "")
            )
            formula = (
                pattern.formula.replace(", {span}", "")
                .replace(" {span}", "")
                .replace("{", "*")
                .replace("}", "*")
            )
            name = pattern.name.replace("{span}", "…").replace("{", "*").replace("}", "*")
            lines.append(f"| {prefix}{name} | {pattern.group} | {formula}{span} | {pattern.unit} |")
    return "\n".join(lines)
