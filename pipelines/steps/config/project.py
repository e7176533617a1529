"""Reads a project: fields.yaml and every audience beside it, checked before any JVM starts.

Reading needs neither Spark nor data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pydantic import (
    ValidationError,
)

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.fields import FIELDS_FILE, EventSource, FieldsConfig
from pipelines.steps.config.problems import config_error, shown, shown_path
from pipelines.steps.config.signals import SIGNALS, Signal
from pipelines.steps.config.values import FILE_KEY, FIRST_DAY_KEY
from pipelines.steps.config.yaml_files import read_yaml
from pipelines.steps.errors import ConfigError


@dataclass(frozen=True)
class Project:
    """All that a user has written.

    Attributes:
        directory: Where it was read from.
        fields: fields.yaml.
        audiences: One per other file, in the order of their names.
    """

    directory: Path
    fields: FieldsConfig
    audiences: tuple[Audience, ...]

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Those of fields.yaml, and each audience's label, named by the audience."""
        declared = [Signal(s.name, s, self.fields.file, f"signals.{s.name}") for s in self.fields.signals]
        own = [Signal(a.name, a.label, a.file, "label", audience=a.name) for a in self.audiences]
        return (*declared, *own)

    @property
    def declared_signals(self) -> tuple[Signal, ...]:
        """Those of fields.yaml."""
        return tuple(signal for signal in self.signals if not signal.audience)

    def signals_of(self, audience: Audience) -> tuple[Signal, ...]:
        """Those that an audience's models are told of: none is another audience's label."""
        return tuple(signal for signal in self.signals if signal.audience in ("", audience.name))


def load_project(directory: Path) -> Project:
    """Reads fields.yaml and every audience beside it.

    Args:
        directory: Holds fields.yaml and one other *.yaml or *.yml file per audience.

    Raises:
        ConfigError: What a file says is wrong, or a file is missing.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"there is no directory {shown_path(directory)}",
            found="nothing" if not directory.exists() else "a file",
            expected=f"a directory with {FIELDS_FILE} and one YAML file per audience",
            remedy="correct the path, or copy audiences/ of this project and edit it",
        )
    fields_path = directory / FIELDS_FILE
    files = sorted(path for path in directory.iterdir() if path.suffix in {".yaml", ".yml"})
    if fields_path not in files:
        raise ConfigError(
            f"{shown_path(directory)} holds no {FIELDS_FILE}",
            found=", ".join(path.name for path in files) or "no YAML file",
            expected=f"{FIELDS_FILE}, which says where events lie and which columns become fields",
            remedy="copy audiences/fields.yaml of this project and edit it",
        )
    files.remove(fields_path)
    if not files:
        raise ConfigError(
            f"{shown_path(directory)} holds no audience",
            found=f"{FIELDS_FILE} only",
            expected="one YAML file per audience beside it",
            remedy="copy audiences/car_buyers.yaml of this project and edit it",
        )
    fields = _read(FieldsConfig, fields_path)
    first_day = {FIRST_DAY_KEY: fields.events.first_day}
    audiences = sorted((_read(Audience, path, first_day) for path in files), key=lambda a: a.name)
    _check_names(audiences, fields)
    for audience in audiences:
        _check_days(audience, fields.events)
    return Project(directory, fields, tuple(audiences))


S = TypeVar("S", FieldsConfig, Audience)


def _read(model: type[S], path: Path, context: Mapping[str, object] | None = None) -> S:
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(
            f"{shown_path(path)} is no mapping" if document is not None else f"{shown_path(path)} is empty",
            found=shown(document),
            expected=f"the keys {', '.join(model.keys())}",
            remedy="copy the file of that kind in audiences/ of this project and edit it",
        )
    defaults = {"name": path.stem} if model is Audience else {}
    try:
        return model.model_validate(
            defaults | document | {FILE_KEY: path}, context={"file": path, **(context or {})}
        )
    except ValidationError as error:
        raise config_error(path, document, error) from error


def _check_names(audiences: list[Audience], fields: FieldsConfig) -> None:
    by_name: dict[str, Audience] = {}
    for audience in audiences:
        other = by_name.setdefault(audience.name, audience)
        if other is not audience:
            raise ConfigError(
                f"{shown_path(other.file)} and {shown_path(audience.file)}: `name` is the same",
                found=audience.name,
                expected="a name of its own for each audience",
                remedy="change `name` in one of the two files, or remove one",
            )
    if named := by_name.get(SIGNALS):
        raise ConfigError(
            f"{shown_path(named.file)}: `name` is that of the assets of all signals",
            found=SIGNALS,
            expected="another name",
            remedy="rename the audience",
        )
    for kind in ("fields", "measures", "signals"):
        for section in getattr(fields, kind):
            if named := by_name.get(section.name):
                raise ConfigError(
                    f"{shown_path(named.file)}: `name` is that of {FIELDS_FILE}'s `{kind}.{section.name}`",
                    found=section.name,
                    expected="a name of its own: the audience's label is a signal, which bears its name",
                    remedy=f"rename the audience, or `{kind}.{section.name}`",
                )


def _check_days(audience: Audience, events: EventSource) -> None:
    """An as-of day needs events before it, and its whole horizon after it."""
    if not isinstance(audience.as_of_days, tuple):
        return
    for day in audience.as_of_days:
        end = day + timedelta(days=audience.horizon_days)
        if day <= events.first_day:
            expected = f"a day after events.first_day in {FIELDS_FILE}, {events.first_day}"
        elif events.last_day is not None and end > events.last_day:
            newest = events.last_day - timedelta(days=audience.horizon_days)
            expected = (
                f"a day not after {newest}: horizon_days of {audience.horizon_days} "
                f"before events.last_day in {FIELDS_FILE}, {events.last_day}"
            )
        else:
            continue
        raise ConfigError(
            f"{shown_path(audience.file)}: `as_of_days` of audience {audience.name!r}",
            found=day,
            expected=expected,
            remedy="choose another day, shorten horizon_days, or correct the days of the events",
        )
