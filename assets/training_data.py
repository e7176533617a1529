"""An audience's training set as its models read it: one version, split for training and for a rehearsal."""

from dataclasses import dataclass

from pipelines.steps.config.audience import Audience
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import IN_TIME, TrainingFiles
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.snapshots import Partition


@dataclass(frozen=True)
class TrainingData:
    """One version of an audience's training set, whatever is published meanwhile.

    Attributes:
        partition: Its version, number of rows and properties, as they were read.
        files: Its rows.
        vocabulary: They were encoded with it.
        earlier: The same rows, split for a rehearsal.
    """

    partition: Partition
    files: TrainingFiles
    vocabulary: Vocabulary
    earlier: TrainingFiles

    @property
    def devices_a_day(self) -> float:
        """Devices of an as-of day, on average."""
        return self.partition.rows / len(self.partition.properties["as_of_days"])

    @property
    def out_of_time_day(self) -> str | None:
        """The newest as-of day, ISO, where a rehearsal is measured on it."""
        day: str | None = self.partition.properties["out_of_time_day"]
        return day


def read_training_data(audience: Audience, lake: Lake, models: ModelStore) -> TrainingData:
    """Looks once at which training set there is, so that rows, version and properties belong together."""
    snapshot = lake.snapshot("training_set", [audience.name])
    [partition] = snapshot.partitions
    vocabulary = models.vocabulary(partition.properties["vocabulary_hash"])
    paths, fields = snapshot.files(), list(vocabulary.sizes)
    return TrainingData(
        partition, TrainingFiles(paths, fields), vocabulary, TrainingFiles(paths, fields, IN_TIME)
    )
