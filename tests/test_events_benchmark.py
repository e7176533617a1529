"""The benchmark on event logs: figures, resamples, the script's features, and what a copied project says."""

import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from benchmarks.events import PeerError, parse, run_featuretools, script_days
from benchmarks.events_chain import copy_project, require_outcome, with_values
from benchmarks.events_figures import (
    FIGURES,
    Compared,
    Measured,
    SegmentFigures,
    average,
    compare,
    draw,
    figures_of,
    segment_figures,
)
from benchmarks.events_report import Contestant, Result, judge, mean_differences, models_table, report_of
from benchmarks.events_script import (
    Log,
    choose_variant,
    converters,
    features,
    monthly_days,
    rows_of,
    run_script,
)
from pipelines.steps.config.audience import RollingDays, SegmentSpec
from pipelines.steps.config.project import load_project
from pipelines.steps.errors import ConfigError, DataError
from tests.small_project import SmallProject, write_small_project

LABELS = np.array([1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
PROBABILITIES = np.array(
    [0.9, 0.8, 0.8, 0.8, 0.3, 0.3, 0.2, 0.1, 0.1, 0.1, 0.4, 0.6, 0.6, 0.05, 0.05, 0.2, 0.2, 0.25, 0.5, 0.1]
)
EVEN = np.ones(len(LABELS))


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn_equal_scores_included() -> None:
    found = figures_of(LABELS, PROBABILITIES)

    assert found == pytest.approx(
        {
            "auc": roc_auc_score(LABELS, PROBABILITIES),
            "average_precision": average_precision_score(LABELS, PROBABILITIES),
            "precision_in_top_tenth": 0.5,  # two of twenty; of equal ones, the first
            "log_loss": log_loss(LABELS, PROBABILITIES),
        }
    )


def test_a_device_drawn_several_times_counts_as_often() -> None:
    times = np.array([0, 3, 1, 1, 2, 1, 0, 1, 1, 1, 4, 0, 2, 1, 1, 1, 0, 0, 1, 1])
    again = np.repeat(np.arange(len(LABELS)), times)

    drawn = Measured(LABELS, PROBABILITIES)(times)

    auc, precision, _, loss = drawn
    assert auc == pytest.approx(roc_auc_score(LABELS[again], PROBABILITIES[again]))
    assert precision == pytest.approx(average_precision_score(LABELS[again], PROBABILITIES[again]))
    assert loss == pytest.approx(log_loss(LABELS[again], PROBABILITIES[again]))


def test_the_top_tenth_takes_a_part_of_a_device_that_was_drawn_more_often_than_fits() -> None:
    labels, probabilities = np.array([0, 1, *[0] * 18]), np.linspace(0.9, 0.1, 20)
    weights = np.ones(20)
    weights[1] = 2
    weights[19] = 0

    assert Measured(labels, probabilities)(weights)[2] == 0.5  # two of 20: device 0, and device 1 once


def test_fewer_than_ten_devices_have_no_top_tenth_and_one_class_no_auc() -> None:
    found = figures_of(np.zeros(5), np.linspace(0, 1, 5))
    assert np.isnan([found["auc"], found["average_precision"], found["precision_in_top_tenth"]]).all()


def test_a_certain_prediction_that_is_wrong_costs_a_finite_log_loss() -> None:
    assert 30 < figures_of(np.array([1, 0]), np.array([0.0, 1.0]))["log_loss"] < 40


# --- differences ----------------------------------------------------------------------------------


def test_models_are_measured_on_the_same_resamples() -> None:
    draws = draw(LABELS, {"one": [PROBABILITIES], "same": [PROBABILITIES / 2]}, resamples=50)
    figures = figures_of(LABELS, PROBABILITIES)

    found = compare(figures, figures, draws["one"], draws["same"])

    assert found["auc"] == Compared(0.0, 0.0, 0.0, share_not_better=1.0)
    assert draws["one"].shape == (50, len(FIGURES))


def test_a_model_that_is_better_on_every_resample_is_never_not_better() -> None:
    right, wrong = np.where(LABELS == 1, 0.9, 0.1), np.where(LABELS == 1, 0.1, 0.9)
    draws = draw(LABELS, {"right": [right], "wrong": [wrong]}, resamples=50)

    found = compare(figures_of(LABELS, right), figures_of(LABELS, wrong), draws["right"], draws["wrong"])

    assert (found["auc"].value, found["auc"].share_not_better) == (1.0, 0.0)
    assert found["log_loss"].value < 0  # lower is better
    assert found["log_loss"].share_not_better == 0.0


def test_trainings_of_one_model_count_by_their_mean() -> None:
    right, wrong = np.where(LABELS == 1, 0.9, 0.1), np.where(LABELS == 1, 0.1, 0.9)
    draws = draw(LABELS, {"both": [right, wrong]}, resamples=20)
    aucs = draws["both"][:, 0]
    assert aucs[~np.isnan(aucs)] == pytest.approx(0.5)


def test_the_mean_of_audiences_is_taken_draw_by_draw() -> None:
    one = {name: Compared(0.1, 0.0, 0.2, 0.0) for name in FIGURES}
    other = {name: Compared(0.3, 0.0, 0.4, 0.0) for name in FIGURES}
    drawn = [np.full((10, len(FIGURES)), 0.1), np.full((10, len(FIGURES)), 0.3)]

    found = average([one, other], drawn)

    assert found["auc"].value == pytest.approx(0.2)
    assert found["auc"].low == pytest.approx(0.2)
    assert found["auc"].share_not_better == 0.0
    assert found["log_loss"].share_not_better == 1.0  # more is worse


# --- segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segment", "threshold", "instead", "expected"),
    [
        (SegmentSpec(name="a", top_fraction=0.11), None, None, SegmentFigures(3, 2 / 3)),
        (SegmentSpec(name="a", size=1), None, None, SegmentFigures(1, 1.0)),
        (SegmentSpec(name="a", size=900), None, None, SegmentFigures(20, 0.2)),
        (SegmentSpec(name="a", min_precision=0.5), 0.8, None, SegmentFigures(4, 0.5)),
        (SegmentSpec(name="a", min_precision=0.5), None, None, SegmentFigures(0, None)),
        (SegmentSpec(name="a", min_precision=0.5), None, 1, SegmentFigures(1, 1.0)),
    ],
    ids=["share", "size", "more than there are", "threshold", "no threshold", "as many as the champion"],
)
def test_a_segment_is_cut_as_the_chain_cuts_it(
    segment: SegmentSpec, threshold: float | None, instead: int | None, expected: SegmentFigures
) -> None:
    assert segment_figures(segment, LABELS, PROBABILITIES, threshold, instead) == expected


# --- the script -----------------------------------------------------------------------------------

AS_OF = date(2025, 1, 31)


def log_of(rows: Sequence[tuple[str, str, str | None, float, bool]], horizon_days: int = 3) -> Log:
    columns = ["device_id", "event_time", "category", "money", "converts"]
    events = pd.DataFrame(rows, columns=columns).astype({"category": "category"})
    events["event_time"] = pd.to_datetime(events["event_time"])
    return Log(events, window_days=20, horizon_days=horizon_days)


LOG = log_of(
    [
        ("a", "2025-01-30 12:00", "tea", 2.0, True),
        ("a", "2025-01-30 18:00", "jam", 3.0, False),
        ("a", "2025-01-12 00:00", "tea", 4.0, False),  # the first moment of the window
        ("a", "2025-01-11 23:59", "tea", 100.0, True),  # before it
        ("a", "2025-02-01 00:00", "tea", 100.0, True),  # the first moment after the as-of day
        ("b", "2025-01-20 00:00", None, -1.5, False),
        ("c", "2025-01-01 00:00", "tea", 1.0, False),  # not in the window
        ("b", "2025-02-03 23:59", "tea", 9.0, True),  # the last moment of the horizon
        ("b", "2025-02-04 00:00", "tea", 9.0, True),
    ]
)


def test_the_script_counts_days_and_sums_over_its_windows() -> None:
    found = features(LOG, AS_OF, ["tea", "jam"])

    assert list(found.index) == ["a", "b"]
    a, b = found.loc["a"], found.loc["b"]
    assert (a["a_n7"], a["a_d7"], a["a_m7"]) == (2, 1, 5.0)
    assert (a["a_n20"], a["a_d20"], a["a_m20"]) == (3, 2, 9.0)
    assert (a["a_rec"], a["a_old"]) == (-0.25 - 1, 20.0)
    assert (a["y_n7"], a["y_m20"], a["y_rec"]) == (1, 2.0, -1.5)
    assert (a["c_0"], a["c_1"]) == (2, 1)
    assert (b["a_n7"], b["a_m20"], b["c_0"]) == (0, -1.5, 0)
    assert (b["y_n20"], b["y_rec"], b["y_old"]) == (0, -999, 0)


def test_the_script_without_a_category_counts_none() -> None:
    assert "c_0" in features(LOG, AS_OF, ["tea"])
    assert "c_0" not in features(LOG, AS_OF, [])


def test_the_horizon_begins_at_midnight_and_ends_before_another() -> None:
    assert sorted(converters(LOG, AS_OF)) == ["a", "b"]
    assert sorted(converters(LOG, date(2025, 1, 29))) == ["a"]
    assert list(rows_of(LOG, [date(2025, 1, 29), AS_OF], []).labels) == [1, 0, 1, 1]


def test_as_of_days_are_a_month_apart_with_a_whole_window_and_horizon() -> None:
    days = monthly_days(date(2024, 10, 1), window_days=31, horizon_days=31, scored=date(2025, 2, 28))
    assert days == [date(2024, 10, 28) + pd.Timedelta(days=n) for n in (0, 31, 61, 92)][1:]
    assert monthly_days(date(2025, 1, 1), 31, 31, date(2025, 2, 1)) == []


def test_the_author_takes_the_variant_that_validates_best() -> None:
    validated = {
        "rfm lr": {"auc": 0.7, "log_loss": 0.3},
        "rfm gbm": {"auc": 0.8, "log_loss": 0.4},
    }
    assert choose_variant(validated, "auc") == "rfm gbm"
    assert choose_variant(validated, "log_loss") == "rfm lr"


def test_the_scored_days_outcome_changes_nothing_that_the_script_says() -> None:
    rng = np.random.default_rng(0)
    times = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 60 * 86_400, 3_000), unit="s")
    converts = rng.random(3_000) < 0.1
    events = [
        (f"{device:03}", str(time), "tea", 1.0, bool(bought))
        for device, time, bought in zip(rng.integers(0, 80, 3_000), times, converts, strict=True)
    ]
    days, scored = [date(2025, 1, 25), date(2025, 2, 5)], date(2025, 2, 20)
    past = [row for row in events if pd.Timestamp(row[1]) < pd.Timestamp("2025-02-21")]

    said, said_of_past = (run_script(log_of(rows), days, scored, trees=5) for rows in (events, past))

    assert list(said.probabilities) == ["rfm lr", "rfm gbm", "rfm+counts lr", "rfm+counts gbm"]
    assert said.chosen in said.probabilities
    assert said.chosen == said_of_past.chosen
    for name, probabilities in said.probabilities.items():
        assert np.array_equal(probabilities, said_of_past.probabilities[name])
    assert set(said.validated) == set(said.probabilities)


# --- the project that is run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return write_small_project(tmp_path_factory.mktemp("events_benchmark"))


def test_values_are_put_into_yaml_and_all_others_stay_as_written() -> None:
    text = "label: {event: {code: 007, day: 2025-01-01}}\nname: x\ntraining:\n  patience: 3\n"

    found = with_values(text, {"training.seed": 2, "name": "a: b", "behaviour.without": ["gaps"]})

    assert "code: 007" in found
    assert "day: 2025-01-01" in found
    assert "patience: 3" in found
    assert "seed: 2" in found
    assert "'a: b'" in found
    assert "gaps" in found


def test_a_copy_reads_the_log_and_trains_on_what_has_matured(project: SmallProject, tmp_path: Path) -> None:
    copy = copy_project(
        project.audiences_dir, tmp_path / "copy", tmp_path / "log", scored=date(2025, 3, 10), training=2
    )

    written = load_project(project.audiences_dir)
    assert copy.fields.events.path == str(tmp_path / "log")
    assert copy.fields.fields == written.fields.fields
    assert [a.training.seed for a in copy.audiences] == [2, 2]
    assert [a.as_of_days for a in copy.audiences] == [(date(2025, 3, 5),)] * 2  # 8 March ends on the 11th
    assert [a.label for a in copy.audiences] == [a.label for a in written.audiences]
    assert [a.training.seed for a in written.audiences] == [0, 0]


def test_the_money_that_a_peer_is_told_is_a_measure_where_the_project_has_none(
    project: SmallProject, tmp_path: Path
) -> None:
    fields = project.audiences_dir / "fields.yaml"
    without = shutil.copytree(project.audiences_dir, tmp_path / "without")
    bare = fields.read_text().replace("measures:\n  name_length: {sql: length(app_package)}\n", "")
    (without / "fields.yaml").write_text(bare)

    kept, added = (
        copy_project(
            source,
            tmp_path / f"copy of {source.name}",
            tmp_path / "log",
            scored=date(2025, 3, 11),
            money="length(product)",
        )
        for source in (project.audiences_dir, without)
    )

    assert [measure.name for measure in kept.fields.measures] == ["name_length"]
    assert [(measure.name, measure.sql) for measure in added.fields.measures] == [
        ("money", "length(product)")
    ]


def test_a_scored_day_before_which_nothing_matured_is_refused(project: SmallProject, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on by 2025-03-07") as refused:
        copy_project(project.audiences_dir, tmp_path / "copy", tmp_path / "log", scored=date(2025, 3, 7))
    assert "as-of days 2025-03-05, 2025-03-08, each with a horizon of 3 days" in str(refused.value)
    assert "score a later day" in str(refused.value)


def test_a_scored_day_whose_horizon_the_events_do_not_hold_is_refused(project: SmallProject) -> None:
    known = load_project(project.audiences_dir)
    require_outcome(known, date(2025, 3, 11))
    with pytest.raises(ConfigError, match="which ends on 2025-03-15, within these days"):
        require_outcome(known, date(2025, 3, 12))


def test_the_script_takes_the_audiences_days_or_months(project: SmallProject) -> None:
    known = load_project(project.audiences_dir)
    listed = known.audiences[0]
    rolling = listed.model_copy(update={"as_of_days": RollingDays(count=2, every_days=1)})
    assert script_days(listed, known, date(2025, 3, 11)) == [date(2025, 3, 5), date(2025, 3, 8)]
    assert script_days(rolling, known, date(2025, 3, 11)) == [date(2025, 3, 8)]


# --- judging --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contest() -> Result:
    devices = np.array([f"{n:02}" for n in range(22)])
    outcome = pd.DataFrame({"device_id": devices, "label": [*LABELS, 1, 0]})
    beyond = np.array([0.5, 0.5])
    champion = Contestant(devices, [np.r_[PROBABILITIES, beyond]], [{"sure": 0.8}], note="dnn")
    script = Contestant(np.array([*devices[:20], "99"]), [np.r_[1 - PROBABILITIES, 0.5]])
    segments = [SegmentSpec(name="sure", min_precision=0.9), SegmentSpec(name="top", size=2)]
    return judge(
        outcome,
        {"champion": champion, "script: rfm lr": script},
        segments,
        "script: rfm lr",
        {"featuretools": "not there"},
    )


def test_only_devices_that_all_score_are_compared(contest: Result) -> None:
    summary = contest.summary
    assert (summary["devices"], summary["devices_of_the_chain"]) == (20, 22)
    assert summary["converted"] == 0.2
    assert summary["models"]["champion"]["figures"] == pytest.approx(figures_of(LABELS, PROBABILITIES))


def test_a_model_without_thresholds_takes_as_many_devices_as_the_champion(contest: Result) -> None:
    models = contest.summary["models"]
    assert models["champion"]["segments"]["sure"] == {"devices": 4.0, "precision": 0.5}
    assert models["script: rfm lr"]["segments"]["sure"] == {"devices": 4.0, "precision": 0.0}


def test_the_champion_is_compared_with_the_scripts_choice_in_pairs(contest: Result) -> None:
    auc = contest.differences["champion - script"]["auc"]
    assert list(contest.differences) == ["champion - script"]
    assert auc.value == pytest.approx(2 * figures_of(LABELS, PROBABILITIES)["auc"] - 1)
    assert auc.low <= auc.value <= auc.high
    assert auc.share_not_better < 0.2


def test_promises_are_those_of_large_segments_of_every_training() -> None:
    devices = np.array([f"{n:04}" for n in range(2_000)])
    certain, random = np.linspace(0.02, 0.98, 2_000), np.random.default_rng(0)
    outcome = pd.DataFrame({"device_id": devices, "label": (random.random(2_000) < certain).astype(int)})
    boastful = 1 / (1 + (1 / certain - 1) ** 4)  # logits four times as large
    found = judge(
        outcome,
        {
            "champion": Contestant(devices, [certain, certain]),
            "dnn": Contestant(devices, [np.asarray(boastful)]),
        },
        [],
    ).summary["models"]
    # tops of 10 and 20%, and ten tenths
    assert found["champion"]["promises"] == {"segments": 24, "kept": 24}
    assert found["dnn"]["promises"]["segments"] == 12
    assert found["dnn"]["promises"]["kept"] <= 4


def test_the_table_has_a_line_per_model_and_the_report_the_missing_ones(contest: Result) -> None:
    table = models_table(contest.summary, ["sure", "top"], {"champion": 12.4})
    champion = next(line for line in table.splitlines() if line.startswith("champion"))
    assert "0.500 of 4" in champion
    assert champion.split()[-5:] == ["0", "of", "0", "12", "dnn"]

    written = report_of({"buyers": contest, "others": contest}, {"chain: x": [1.0]}, {"seeds": 1}).to_json()

    assert written["config"]["seeds"] == 1
    assert written["config"]["seconds"] == {"chain: x": [1.0]}
    assert written["results"]["buyers"]["missing"] == {"featuretools": "not there"}
    assert next(iter(written["ratios"])) == "buyers: champion - script: auc"
    assert written["ratios"]["all audiences: champion - script: auc"] == pytest.approx(
        written["ratios"]["buyers: champion - script: auc"]
    )


def test_devices_of_one_class_cannot_be_compared() -> None:
    devices = np.array([f"{n:02}" for n in range(12)])
    outcome = pd.DataFrame({"device_id": devices, "label": 0})
    with pytest.raises(DataError, match="12 devices that all of dnn score, 0 of them converted"):
        judge(outcome, {"dnn": Contestant(devices, [np.linspace(0, 1, 12)])}, [])


def test_one_audience_has_no_mean(contest: Result) -> None:
    assert mean_differences({"buyers": contest}) == {}


# --- the program ----------------------------------------------------------------------------------


def test_a_python_without_featuretools_is_told(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="has not the packages featuretools and xgboost"):
        run_featuretools(sys.executable, LOG, [], AS_OF, tmp_path / "dfs")


def test_unknown_peers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--events", str(tmp_path), "--project", str(tmp_path), "--scored", "2025-03-11"]
    assert parse([*given, "--peers", "none"]).peers == []
    assert parse(given).peers == ["script", "featuretools", "tokens_only"]
    with pytest.raises(SystemExit):
        parse([*given, "--peers", "script,oracle"])
    assert "unknown peers ['oracle']" in capsys.readouterr().err
