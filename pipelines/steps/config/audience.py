"""audiences/<name>.yaml: whom to find, and where to deliver them.

The models here and in `fields` are the reference of what a user writes: one attribute a key. What is wrong
ends in one `ConfigError` that names the file, the key, the value found, what is expected and the remedy.
"""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipelines.steps.config.defaults import MAX_EPOCHS, PATIENCE
from pipelines.steps.config.metric import DEFAULT_METRIC, Metric
from pipelines.steps.config.problems import problem
from pipelines.steps.config.signals import EventCondition
from pipelines.steps.config.values import (
    FILE_KEY,
    AsOfDay,
    DestinationPath,
    Identifier,
    OneOrMore,
    Owner,
    Section,
    Share,
    normalized_path,
    require_one,
    require_unique,
)


class Label(EventCondition):
    """What makes a device positive: an event within the horizon that is a conversion.

    Its past is a signal, named by the audience.
    """


class RollingDays(Section):
    """The newest as-of days whose labels are complete.

    Attributes:
        count: How many; all that a whole window lies before, where the key is left out.
        every_days: How far apart.
    """

    count: int | None = Field(default=None, ge=1)
    every_days: int = Field(ge=1)


EVERY_WEEK = RollingDays(every_days=7)
"""The as-of days of an audience that names none."""


class Training(Section):
    """Settings of a training.

    Attributes:
        seed: Of the split, the initial weights and the order of rows.
        max_epochs: Passes over the training rows at most.
        patience: Stop after so many passes without a better validation metric.
        promotion_fraction: Share of devices that only decide whether a new champion serves. The same devices
            whatever the seed, so that the former champion has not seen them either.
        validation_fraction: Share of the other devices that stops, tunes, calibrates and chooses.
        test_fraction: Share of the other devices that is only reported on.
        negatives_kept: Share of the training devices without a conversion that are trained on, where they
            are too many; probabilities are corrected for it.
        rehearse: Whether each model is trained once more on the earlier as-of days alone, where they are
            enough, to tell on the newest one what it does later. Takes as long again.
        max_auc_loss: A new champion may rank the promotion devices worse than the former one by this much.
    """

    seed: int = Field(default=0, ge=0)
    max_epochs: int = Field(default=MAX_EPOCHS, ge=1, le=40)
    patience: int = Field(default=PATIENCE, ge=1)
    promotion_fraction: Share = 0.1
    validation_fraction: Share = 0.2
    test_fraction: Share = 0.2
    negatives_kept: float = Field(default=1.0, ge=0.0001, le=1)
    max_auc_loss: float = Field(default=0.01, ge=0, le=0.5)
    rehearse: bool = True

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        held_out = [self.validation_fraction, self.test_fraction, self.promotion_fraction]
        if sum(held_out) >= 1:
            raise problem(
                "validation_fraction, test_fraction and promotion_fraction that leave rows to train on: "
                "a sum below 1",
                "lower one of them",
                found=" + ".join(map(str, held_out)),
            )
        return self


class SegmentSpec(Section):
    """One segment of an audience; exactly one of the three rules.

    Attributes:
        name: Of the segment.
        min_precision: The largest set of devices expected to hold this share of converters.
        top_fraction: This share of devices, the most probable ones.
        size: This many devices, the most probable ones.
    """

    name: Identifier
    min_precision: Share | None = None
    top_fraction: Share | None = None
    size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        require_one(self, ("min_precision", "top_fraction", "size"))
        return self


class FolderDestination(Section):
    """A local folder.

    Attributes:
        type: `folder`.
        name: Tells destinations of one audience apart.
        path: Relative to DATA_DIR, and inside of it.
        outside_data_dir: Allows an absolute path.
        format: Of the files.
    """

    type: Literal["folder"]
    name: Identifier = "folder"
    path: DestinationPath
    outside_data_dir: bool = False
    format: Literal["csv", "parquet"] = "csv"

    @model_validator(mode="after")
    def _stays_in_data_dir(self) -> Self:
        is_absolute = self.path.startswith("/")
        if is_absolute and not self.outside_data_dir:
            expected = "a path relative to DATA_DIR, or the key `outside_data_dir: true` beside it"
            remedy = "write it relative to DATA_DIR, or add `outside_data_dir: true`"
        elif self.outside_data_dir and not is_absolute:
            expected = "an absolute path, as outside_data_dir is true"
            remedy = "write the path from / on, or take outside_data_dir out"
        elif normalized_path(self.path).split("/")[0] == "..":
            expected = "a path that stays inside DATA_DIR"
            remedy = "take the `..` out, or write an absolute path and `outside_data_dir: true`"
        else:
            return self
        raise problem(expected, remedy, found=self.path, at="path")


Destination = FolderDestination
"""A second type makes this Annotated[FolderDestination | Second, Field(discriminator="type")]."""


def _as_of_form(value: object) -> str:
    return "days" if isinstance(value, list | tuple) else "rolling"


def _in_order(days: tuple[date, ...]) -> tuple[date, ...]:
    return tuple(sorted(days))


ListedDays = Annotated[OneOrMore[AsOfDay], AfterValidator(_in_order), Tag("days")]
AsOfDays = Annotated[ListedDays | Annotated[RollingDays, Tag("rolling")], Discriminator(_as_of_form)]


class Audience(Section):
    """audiences/<name>.yaml: whom to find, and where to deliver them.

    Attributes:
        file: Where it was read from.
        name: Of the audience; the name of the file where the key is left out.
        description: For people.
        owner: Whom to ask: an e-mail address, or `team:` and a name. That of fields.yaml where left out.
        label: What counts as a conversion.
        horizon_days: How many days after the as-of day a conversion counts.
        as_of_days: The days to train on; each must lie early enough for its horizon to be over. A day may be
            written as `first_day + 59`, so many days after events.first_day of fields.yaml. One a week over
            all history where the key is left out.
        metric: By what models are stopped, tuned and chosen: `auc`, `average_precision`, the mean of both
            (`auc_and_average_precision`), or `precision_at:` and the share of devices that is delivered.
        training: How the network is trained.
        segments: What to cut from the scored devices.
        deliver_days_without_events: Whether a day on which no event was accepted is delivered all the same,
            from the events of the window before it.
        destinations: Where segments go. In YAML `deliver_to`.
    """

    file: Path = Field(validation_alias=FILE_KEY)
    name: Identifier
    description: str = ""
    owner: Owner | None = None
    label: Label
    horizon_days: int = Field(ge=1, le=365)
    as_of_days: AsOfDays = EVERY_WEEK
    metric: Metric = DEFAULT_METRIC
    training: Training = Field(default_factory=Training)
    segments: OneOrMore[SegmentSpec]
    deliver_days_without_events: bool = False
    destinations: OneOrMore[Destination] = Field(validation_alias="deliver_to")

    @model_validator(mode="after")
    def _names_and_days_are_unique(self) -> Self:
        if isinstance(self.as_of_days, tuple):
            require_unique("as_of_days", self.as_of_days)
        require_unique("segments", [segment.name for segment in self.segments])
        require_unique("deliver_to", [destination.name for destination in self.destinations])
        return self

    @model_validator(mode="after")
    def _destinations_have_places_of_their_own(self) -> Self:
        """Both would write <path>/<audience>/<segment>/<day>; audiences differ in their names."""
        places: dict[str, int] = {}
        for position, destination in enumerate(self.destinations):
            other = places.setdefault(normalized_path(destination.path), position)
            if other != position:
                raise problem(
                    f"a folder other than that of deliver_to[{other}].path, which it would overwrite",
                    "take one of the two out, or give it another path",
                    found=f"{destination.path}, the same folder as deliver_to[{other}].path, "
                    f"{self.destinations[other].path}",
                    at=f"deliver_to[{position}].path",
                )
        return self
