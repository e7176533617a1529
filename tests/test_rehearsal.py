"""The rehearsal: what the same training, ended a horizon before the newest as-of day, does on that day."""

import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import OUT_OF_TIME, TEST, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS
from pipelines.steps.promotion.candidate_models import CANDIDATES, measure_candidate
from pipelines.steps.promotion.rehearsal import rehearsal_of
from resources.model_log import CHALLENGER
from tests.small_project import Chain, failures, materialize, write_as_of_days

VOCABULARY = Vocabulary((FieldVocabulary("apps", 1, ("a", "b")),))
SEGMENTS = (
    SegmentSpec(name="sure", min_precision=0.7),
    SegmentSpec(name="surer", min_precision=0.99),
    SegmentSpec(name="top", top_fraction=0.1),
)


class OfAppA:
    """A logistic model that has seen app a alone."""

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS
    architecture: dict[str, object] = {"name": "logistic"}  # noqa: RUF012

    def weights(self) -> bytes:
        state = {"weights": torch.tensor([[0.0], [0.0], [2.0], [0.0]]), "bias": torch.tensor([-1.0])}
        return safetensors.torch.save(state)


def rows_of(split: int, with_a: tuple[int, int], with_b: tuple[int, int]) -> TrainingRows:
    """Positives and negatives of the devices that have app a, and of those that have app b."""
    apps = [[2]] * sum(with_a) + [[3]] * sum(with_b)
    labels = [1] * with_a[0] + [0] * with_a[1] + [1] * with_b[0] + [0] * with_b[1]
    splits = np.full(len(labels), split, dtype=np.int8)
    return TrainingRows(np.array(labels, dtype=np.float32), splits, {"apps": Ragged.from_lists(apps)})


EARLIER = [rows_of(VALIDATION, (80, 20), (10, 90)), rows_of(TEST, (8, 2), (1, 9))]


def test_a_cut_that_was_found_on_earlier_days_is_held_against_the_newest() -> None:
    rows = TrainingRows.concatenated([*EARLIER, rows_of(OUT_OF_TIME, (6, 4), (1, 9))])
    rehearsal = rehearsal_of(measure_candidate(OfAppA(), VOCABULARY, rows), rows, "2025-05-30", SEGMENTS)
    later = rehearsal.later
    assert (later.day, later.rows, later.positives) == ("2025-05-30", 20, 7)
    assert later.delivered.keys() == {"sure", "surer"}
    assert later.delivered["surer"] is None
    sure = later.delivered["sure"]
    assert sure is not None
    assert sure.rows == 10
    assert sure.precision.value == pytest.approx(0.6)  # where 0.8 were promised
    assert rehearsal.metrics is not None
    assert rehearsal.metrics.auc == pytest.approx((6 * 9 + (6 * 4 + 1 * 9) / 2) / (7 * 13))


def test_a_newest_day_without_conversions_is_told_without_metrics() -> None:
    rows = TrainingRows.concatenated([*EARLIER, rows_of(OUT_OF_TIME, (0, 4), (0, 9))])
    rehearsal = rehearsal_of(measure_candidate(OfAppA(), VOCABULARY, rows), rows, "2025-05-30", SEGMENTS)
    assert rehearsal.metrics is None
    assert (rehearsal.later.rows, rehearsal.later.positives, rehearsal.later.top) == (13, 0, None)


@pytest.mark.slow
def test_a_training_of_many_days_tells_what_it_does_on_the_newest(chain: Chain, tmp_path: Path) -> None:
    days = [
        date(2025, 3, day) for day in (3, 4, 5, 8)
    ]  # three of which are over, horizon and all, by the last
    project = write_as_of_days(chain.project.copied_to(tmp_path / "data"), tmp_path / "audiences", days)

    with chain.history(tmp_path / "home") as instance:
        models = [f"{name}_model" for name in (*CANDIDATES, "champion")]
        assets = ["training_days", "feature_vocabulary"]
        assets += [f"car_buyers/{name}" for name in ("training_set", *models)]
        result = materialize(project.definitions(), instance, assets)

    assert result.success, failures(result)
    [made] = result.asset_materializations_for_node("training_days")
    assert (made.metadata["days"].value, made.metadata["made"].value) == (4, 2)
    for model in (*CANDIDATES, CHALLENGER):
        record = project.models.current("car_buyers", model)
        assert record.properties["out_of_time_day"] == "2025-03-08"
        card = (project.models.card(record) / "card.md").read_text()
        assert "All of this is of 2025-03-08" in card
        assert re.search(r"Of the most probable tenth, \d+ devices", card)
    for model in (*CANDIDATES, CHALLENGER):  # a blend, too
        record = project.models.current("car_buyers", model)
        assert set(record.properties["metrics"]) == {"validation", "test", "out_of_time"}
