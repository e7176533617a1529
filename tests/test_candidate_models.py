"""Candidates and their blend: calibrated, bundled and measured alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import OUT_OF_TIME, TEST, TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import (
    NO_MEMBERS,
    TORCH_WEIGHTS,
    TrainedModel,
    bundle_version,
    read_manifest,
)
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.promotion.candidate_models import (
    Measured,
    Scores,
    blend_of,
    blend_scores,
    measure_candidate,
    write_candidate,
)
from pipelines.steps.promotion.champion_model import ask_former

VOCABULARY = Vocabulary((FieldVocabulary("apps", 3, ("a", "b", "c")),))
ROWS = 3_000


def bundle_candidate(
    directory: Path,
    trained: TrainedModel,
    vocabulary: Vocabulary,
    rows: TrainingRows,
    days: Sequence[str],
    negatives_kept: float = 1.0,
) -> Measured:
    candidate = measure_candidate(trained, vocabulary, rows, negatives_kept=negatives_kept)
    write_candidate(directory, candidate, vocabulary, days)
    return candidate.measured


class Weights:
    """A logistic model of given weights."""

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    def __init__(self, weights: list[float]) -> None:
        self.architecture: dict[str, object] = {"name": "logistic"}
        self._state = {"weights": torch.tensor(weights).unsqueeze(1), "bias": torch.tensor([-1.0])}

    def weights(self) -> bytes:
        return safetensors.torch.save(self._state)


@pytest.fixture(scope="module")
def rows() -> TrainingRows:
    """Apps a and b make a positive likely, c does not; splits take turns."""
    random = np.random.default_rng(0)
    apps = [random.integers(2, 5, size=random.integers(1, 4)).tolist() for _ in range(ROWS)]
    logits = np.array([sum({2: 1.0, 3: 0.7, 4: -1.0}[app] for app in row) - 1 for row in apps])
    labels = (random.random(ROWS) < expit(logits)).astype(np.float32)
    split = np.asarray([[TRAIN, VALIDATION, TEST][row % 3] for row in range(ROWS)], dtype=np.int8)
    return TrainingRows(labels, split, {"apps": Ragged.from_lists(apps)})


@pytest.fixture
def members(tmp_path: Path, rows: TrainingRows) -> dict[str, Path]:
    """Each knows one app, and is too sure of it."""
    found = {}
    for name, weights in {
        "dnn": [0, 0, 3.0, 0, 0],
        "xgboost": [0, 0, 0, 2.0, 0],
        "logistic": [0, 0, 0, 0, -2.0],
    }.items():
        found[name] = tmp_path / name
        bundle_candidate(found[name], Weights(weights), VOCABULARY, rows, ["2025-01-31"])
    return found


def test_a_candidate_is_measured_as_its_bundle_scores(members: dict[str, Path], rows: TrainingRows) -> None:
    manifest, test = read_manifest(members["dnn"]), rows.subset(TEST)
    assert manifest.calibration is not None
    scored = load_bundle(members["dnn"]).score(test.bags)
    assert roc_auc_score(test.labels, scored) == pytest.approx(manifest.metrics["test"]["auc"])
    assert manifest.metrics["validation"]["calibration_error"] < 0.05


def test_a_blend_is_the_calibrated_mean_of_logits(
    members: dict[str, Path], rows: TrainingRows, tmp_path: Path
) -> None:
    measured = bundle_candidate(tmp_path / "blend", blend_of(members), VOCABULARY, rows, ["2025-01-31"])
    test = rows.subset(TEST)
    logits = [logit(load_bundle(path).score(test.bags).astype(np.float64)) for path in members.values()]
    found = load_bundle(tmp_path / "blend").score(test.bags)
    assert roc_auc_score(test.labels, found) == pytest.approx(
        roc_auc_score(test.labels, np.mean(logits, axis=0)), abs=1e-3
    )
    assert measured.test.auc > max(read_manifest(p).metrics["test"]["auc"] for p in members.values()) + 0.05
    alone = [
        load_bundle(tmp_path / "blend").score({"apps": test.bags["apps"].take(np.array([r]))})[0]
        for r in range(20)
    ]
    assert alone == found[:20].tolist()


def test_a_candidates_scores_are_those_that_its_bundle_gives(
    members: dict[str, Path], rows: TrainingRows, tmp_path: Path
) -> None:
    validation, test = rows.subset(VALIDATION).bags, rows.subset(TEST).bags
    scorers = {name: load_bundle(path) for name, path in members.items()}
    scores = {n: Scores(each.score(validation), each.score(test)) for n, each in scorers.items()}
    blend = measure_candidate(blend_of(members), VOCABULARY, rows, scores=blend_scores(scores))
    write_candidate(tmp_path / "blend", blend, VOCABULARY, [])
    written = load_bundle(tmp_path / "blend")
    assert blend.scores.validation.tolist() == written.score(validation).tolist()
    assert blend.scores.test.tolist() == written.score(test).tolist()


def later_rows(rows: TrainingRows, labels: np.ndarray | None = None) -> TrainingRows:
    """The rows, those to train on as ones of a later day."""
    split = np.where(rows.split == TRAIN, OUT_OF_TIME, rows.split).astype(np.int8)
    return TrainingRows(rows.labels if labels is None else labels, split, rows.bags)


def test_scores_are_read_as_they_were_kept() -> None:
    given = Scores(*(np.array(values, dtype=np.float32) for values in ([0.1, 0.2], [0.3], [])))
    read = Scores.from_bytes(given.to_bytes())
    for name in ("validation", "test", "out_of_time"):
        kept, found = getattr(given, name), getattr(read, name)
        np.testing.assert_array_equal(found, kept)
        assert found.dtype == np.float32


def test_a_candidate_is_measured_on_the_later_day_too(rows: TrainingRows, tmp_path: Path) -> None:
    given = later_rows(rows)
    measured = bundle_candidate(tmp_path / "later", Weights([0, 0, 1, 0.7, -1]), VOCABULARY, given, [])
    later = given.subset(OUT_OF_TIME)
    scored = load_bundle(tmp_path / "later").score(later.bags)
    assert measured.out_of_time is not None
    assert measured.out_of_time.auc == pytest.approx(roc_auc_score(later.labels, scored))
    assert Measured.from_dict(measured.to_dict()) == measured


def test_the_later_day_calibrates_nothing(rows: TrainingRows) -> None:
    turned = np.where(rows.split == TRAIN, 1 - rows.labels, rows.labels).astype(np.float32)
    model = Weights([0, 0, 1, 0.7, -1])
    one, other = (measure_candidate(model, VOCABULARY, later_rows(rows, y)) for y in (rows.labels, turned))
    assert one.calibration == other.calibration
    assert one.measured.validation == other.measured.validation


def test_without_a_later_day_or_with_one_class_on_it_nothing_is_measured_on_it(rows: TrainingRows) -> None:
    one_class = np.where(rows.split == TRAIN, 0, rows.labels).astype(np.float32)
    for given in (rows, later_rows(rows, one_class)):
        measured = measure_candidate(Weights([0, 0, 1, 0.7, -1]), VOCABULARY, given).measured
        assert measured.out_of_time is None
        assert set(measured.to_dict()) == {"validation", "test"}


def test_a_blend_whose_member_was_changed_is_refused(
    members: dict[str, Path], rows: TrainingRows, tmp_path: Path
) -> None:
    blend = tmp_path / "blend"
    bundle_candidate(blend, blend_of(members), VOCABULARY, rows, ["2025-01-31"])
    version = bundle_version(blend)
    vocabulary = blend / "members" / "xgboost" / "vocabulary.json"
    vocabulary.write_bytes(vocabulary.read_bytes() + b" ")
    assert bundle_version(blend) != version
    with pytest.raises(BundleError, match=r"member xgboost of the blend .* is not the one"):
        load_bundle(blend)


def test_a_former_champion_is_asked_in_its_own_vocabulary(tmp_path: Path, rows: TrainingRows) -> None:
    weights = {"a": 1.0, "b": 0.7, "c": -1.0}
    scorers = []
    for order in ("abc", "cba"):
        vocabulary = Vocabulary((FieldVocabulary("apps", 3, tuple(order)),))
        model = Weights([0, 0, *(weights[app] for app in order)])
        translated = TrainingRows(rows.labels, rows.split, vocabulary.translate(rows.bags, VOCABULARY))
        bundle_candidate(tmp_path / order, model, vocabulary, translated, [])
        scorers.append(load_bundle(tmp_path / order))
    new, former = scorers
    np.testing.assert_allclose(ask_former(former, rows.bags, new.vocabulary), new.score(rows.bags), atol=1e-6)


def test_fewer_negatives_in_training_change_no_probability_by_much(
    tmp_path: Path, rows: TrainingRows
) -> None:
    bundle_candidate(tmp_path / "all", Weights([0, 0, 1, 0.7, -1]), VOCABULARY, rows, [])
    bundle_candidate(tmp_path / "some", Weights([0, 0, 1, 0.7, -1]), VOCABULARY, rows, [], negatives_kept=0.2)
    whole, some = (load_bundle(tmp_path / name).score(rows.bags) for name in ("all", "some"))
    np.testing.assert_allclose(some, whole, atol=0.01)  # the same model, shifted: calibration undoes it
