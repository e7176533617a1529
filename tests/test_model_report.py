"""What is said of a model: what a cut delivers, lift, slices, tokens, and the card that tells it."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import expit

from pipelines.steps.features.encoded_rows import MISSING_ID, UNKNOWN_ID, Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS, Scorer, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.metrics import Difference, Interval, compute_metrics
from pipelines.steps.promotion.candidate_models import Measured
from pipelines.steps.promotion.champion_model import Promotion
from pipelines.steps.promotion.model_card import make_card
from pipelines.steps.promotion.model_report import (
    Share,
    at_threshold,
    lift_by_decile,
    report_later,
    report_model,
    slice_rows,
    token_effects,
)

VOCABULARY = Vocabulary(
    (FieldVocabulary("apps", 5, ("a", "b", "c|d`e")), FieldVocabulary("brand", 1, ("nokia", "pixel")))
)
WEIGHTS = [0.5, 0.1, 2.0, -1.0, 0.25, 0.0, 0.0, 1.5, -0.5]
"""Weights of apps' missing, unknown, a, b, c; then of brand's missing, unknown, nokia, pixel."""
ROWS = 2_000


class Model:
    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    @property
    def architecture(self) -> dict[str, object]:
        return {"name": "logistic"}

    def weights(self) -> bytes:
        return safetensors.torch.save(
            {"weights": torch.tensor(WEIGHTS).unsqueeze(1), "bias": torch.tensor([-1.0])}
        )


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    home = tmp_path_factory.mktemp("report") / "bundle"
    write_bundle(home, Model(), VOCABULARY, training_days=[], code_version="test", metrics={})
    return load_bundle(home)


@pytest.fixture(scope="module")
def rows() -> dict[str, Ragged]:
    random = np.random.default_rng(0)
    apps = [random.choice([1, 2, 3, 4], size=random.integers(1, 4), replace=False) for _ in range(ROWS)]
    return {
        "apps": Ragged.from_lists([ids.tolist() for ids in apps]),
        "brand": Ragged.from_lists([[int(random.integers(1, 4))] for _ in range(ROWS)]),
    }


@pytest.fixture(scope="module")
def labels(scorer: Scorer, rows: dict[str, Ragged]) -> np.ndarray:
    return (np.random.default_rng(1).random(ROWS) < scorer.score(rows)).astype(np.float32)


def measured_on_both(labels: np.ndarray, probabilities: np.ndarray) -> Measured:
    """A candidate that does alike on validation and test rows."""
    return Measured(compute_metrics(labels, probabilities), compute_metrics(labels, probabilities))


def test_a_share_has_wilsons_interval() -> None:
    share = Share.of(8, 10)  # Wilson's formula by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


def test_a_share_of_nothing_may_be_anything() -> None:
    share = Share.of(0, 0)
    assert np.isnan(share.value)
    assert (share.low, share.high) == (0, 1)


def test_a_cut_delivers_what_is_counted() -> None:
    labels = np.array([1, 0, 1, 1, 0], dtype=np.float32)
    found = at_threshold(labels, np.array([0.9, 0.8, 0.7, 0.2, 0.1], dtype=np.float32), 0.5)
    assert found.rows == 3
    assert found.precision.value == pytest.approx(2 / 3)
    assert found.recall.value == pytest.approx(2 / 3)
    assert found.size.value == pytest.approx(3 / 5)


def test_lift_is_the_rate_over_that_of_all() -> None:
    labels = np.array([1] * 5 + [0] * 15, dtype=np.float32)
    deciles = lift_by_decile(labels, np.linspace(1, 0, 20))
    assert [d.lift for d in deciles[:4]] == [4, 4, 2, 0]
    assert [d.recall for d in deciles[:3]] == pytest.approx([0.4, 0.8, 1.0])
    assert sum(d.rows for d in deciles) == 20


def test_slices_are_of_brands_and_of_activity(
    scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray
) -> None:
    slices = {s.name: s for s in slice_rows(labels, scorer.score(rows), rows, VOCABULARY)}
    nokia = rows["brand"].values == 2
    assert slices["brand = nokia"].rows == nokia.sum()
    assert slices["brand = nokia"].rate == pytest.approx(labels[nokia].mean())
    activity = [s for name, s in slices.items() if name.endswith("known tokens")]
    assert sum(s.rows for s in activity) == ROWS


def test_a_slice_of_one_class_has_no_auc() -> None:
    rows = {"apps": Ragged.from_lists([[2]] * 3), "brand": Ragged.from_lists([[2], [2], [3]])}
    slices = slice_rows(np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.6, 0.7]), rows, VOCABULARY)
    assert slices[0].name == "brand = nokia"
    assert slices[0].auc is None


def test_a_tokens_effect_is_its_weight(scorer: Scorer, rows: dict[str, Ragged]) -> None:
    alone = {
        "apps": Ragged.from_lists([[2, 3], [3, 2], [2, 4], [4, 3], [4, 2]]),
        "brand": Ragged.from_lists([[UNKNOWN_ID]] * 5),
    }
    effects = {e.token: e.effect for e in token_effects(scorer, alone)["apps"]}
    assert effects == pytest.approx({"a": 2.0, "b": -1.0, "c|d`e": 0.25}, abs=1e-4)
    # Without its only token a bag is missing, and that has a weight, too.
    single = {name: bag.slice(0, 1) for name, bag in alone.items()} | {"apps": Ragged.from_lists([[2]])}
    [effect] = token_effects(scorer, single)["apps"]
    assert effect.effect == pytest.approx(2.0 - WEIGHTS[MISSING_ID], abs=1e-4)


def test_the_strongest_token_comes_first(scorer: Scorer, rows: dict[str, Ragged]) -> None:
    assert [e.token for e in token_effects(scorer, rows)["brand"]] == ["nokia", "pixel"]


# --- the later day ----------------------------------------------------------------------------------------


def test_a_later_day_is_told_beside_what_the_model_said() -> None:
    labels = np.array([1] * 4 + [0] * 16, dtype=np.float32)
    later = report_later(
        "2025-05-30", labels, np.linspace(1, 0, 20, dtype=np.float32), {"sure": 0.9, "surer": None}
    )
    assert (later.day, later.rows, later.positives) == ("2025-05-30", 20, 4)
    assert later.probability == pytest.approx(0.5)
    assert later.top is not None
    assert (later.top.rows, later.top.rate, later.top.lift) == pytest.approx((2, 1.0, 5.0))
    sure = later.delivered["sure"]
    assert sure is not None
    assert sure.rows == 2
    assert later.delivered["surer"] is None


@pytest.mark.parametrize("labels", [[], [0, 0, 0]])
def test_a_later_day_without_a_positive_has_no_lift(labels: list[int]) -> None:
    probabilities = np.full(len(labels), 0.25, dtype=np.float32)
    later = report_later("2025-05-30", np.array(labels, dtype=np.float32), probabilities, {})
    assert later.top is None


def test_a_card_shows_the_test_devices_and_the_later_day(
    scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray
) -> None:
    probabilities = scorer.score(rows)
    report = report_model(scorer, labels, probabilities, rows, {"sure": 0.8})
    own = compute_metrics(labels, probabilities)
    measured = Measured(own, replace(own, auc=0.8125), replace(own, auc=0.7031))
    report = replace(report, later=report_later("2025-05-30", labels, probabilities, {"sure": 0.8}))

    card = make_card("cars", {}, report, {"logistic": measured}).markdown

    promised, later = card.split("## A later day")
    assert "| logistic | 0.8125 |" in promised
    assert "| logistic | 0.7031 |" in later
    assert "All of this is of 2025-05-30, the newest as-of day" in later
    assert f"{ROWS:,} devices, {int(labels.sum()):,} positive" in later
    assert "Of the most probable tenth" in later
    assert "## Promised and happened" in promised
    assert "Promised for this day, and happened:" in later
    assert f"All {ROWS:,} devices: " in later
    assert "| sure " in later.split("## Lift")[0]


def test_a_card_says_where_no_later_day_was_kept(
    scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray
) -> None:
    report = report_model(scorer, labels, scorer.score(rows), rows, {})
    card = make_card(
        "cars", {}, report, {"logistic": measured_on_both(labels, report.probabilities)}
    ).markdown
    assert "There is none: too few as-of days lie a whole horizon before the newest" in card


def test_a_card_tells_it_all(scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray) -> None:
    report = report_model(scorer, labels, scorer.score(rows), rows, {"sure": 0.8, "surer": None})
    metrics = {"logistic": measured_on_both(labels, report.probabilities)}
    card = make_card("cars", {"version": "abc"}, report, metrics, {"dnn": Difference(0.01, -0.02, 0.03)})
    for text in [
        "# cars",
        "abc",
        "| logistic |",
        "+0.0100 (-0.0200 to +0.0300)",
        "not reached",
        "nokia",
        "¦",
        "## Promised and happened",
        f"All {ROWS:,} devices: ",
        "| top 1%    | 20        |",
        "| sure      |",
    ]:
        assert text in card.markdown
    [image] = re.findall(r"\(data:image/png;base64,([^)]*)\)", card.inline())
    assert base64.b64decode(image) == card.plots


def test_a_card_of_the_same_model_is_the_same(
    scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray, tmp_path: Path
) -> None:
    metrics = {"logistic": measured_on_both(labels, scorer.score(rows))}
    report = report_model(scorer, labels, scorer.score(rows), rows, {})
    first, second = (make_card("cars", {}, report, metrics) for _ in range(2))
    assert first == second


def test_a_card_says_on_which_rows_the_promotion_was_decided_and_how(
    scorer: Scorer, rows: dict[str, Ragged], labels: np.ndarray
) -> None:
    report = report_model(scorer, labels, scorer.score(rows), rows, {})
    refused = Promotion(
        rows=1_234,
        positives=56,
        rarer_devices=43,
        auc=Interval(0.61, 0.55, 0.66),
        gain=Difference(-0.02, -0.05, 0.01),
        max_auc_loss=0.01,
        former="v1",
        former_may_have_seen_rows=True,
    )
    card = make_card(
        "cars", {}, report, {"logistic": measured_on_both(labels, report.probabilities)}, None, refused
    )
    for text in [
        "## Promotion",
        "This model **does not serve**: it ranks the promotion rows worse than the former champion v1 by",
        "trained, stopped, tuned, calibrated and chose nothing",
        "But the former may have been trained on these devices, which favours it.",
        "1,234",
        "56",
        "0.6100 (0.5500 to 0.6600)",
        "-0.0200 (-0.0500 to +0.0100)",
    ]:
        assert text in card.markdown


def test_the_report_scores_as_the_formula_does(scorer: Scorer, rows: dict[str, Ragged]) -> None:
    apps = [sum(WEIGHTS[i] for i in ids) for ids in np.split(rows["apps"].values, rows["apps"].offsets[1:-1])]
    logits = np.array(apps) + np.array(WEIGHTS)[5 + rows["brand"].values] - 1.0
    np.testing.assert_allclose(scorer.score(rows), expit(logits), atol=1e-6)
