"""The daily chain under faults: what the benchmark draws and judges, and two of its schedules."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_chain import Result, endings
from benchmarks.chaos_chain_drivers import Answer
from benchmarks.chaos_chain_faults import Outcome, Schedule
from benchmarks.chaos_chain_world import Broken, judge, read_delivered
from benchmarks.chaos_summary import summary
from pipelines.steps.targeting.deliveries import file_name, sha256
from tests.chaos_schedules import run_schedules

EXPECTED = {"old": (("d-1", 0.5), ("d-2", 0.25)), "new": (("d-2", 0.25), ("d-3", 0.75))}
GREEN, RED = Answer("answered", success=True), Answer("answered", error="its file x.parquet is cut")

# --- drawing and judging --------------------------------------------------------------------------


def test_a_schedule_is_drawn_from_its_seed_again() -> None:
    drawn = Schedule.drawn(3, "kill_driver", seed=1)
    assert drawn == Schedule.drawn(3, "kill_driver", seed=1)
    assert len({drawn, Schedule.drawn(3, "kill_driver", 2), Schedule.drawn(3, "kill_driver", 1, 1)}) == 3
    assert all(0 <= Schedule.drawn(n, "two_runs", 1).share < 0.9 for n in range(50))
    assert all(Schedule.drawn(n, "two_runs", 1, attempt=2).share < 0.3 for n in range(50))


def test_content_is_the_old_the_new_or_neither() -> None:
    assert judge(EXPECTED["old"], EXPECTED) == "old"
    assert judge(EXPECTED["new"], EXPECTED) == "new"
    mixed = (*EXPECTED["old"], ("d-3", 0.75))
    assert judge(mixed, EXPECTED) == "3 rows, 2 of the 2 old and 2 of the 2 new"
    assert judge(EXPECTED["old"][:1], EXPECTED) == "1 rows, 1 of the 2 old and 0 of the 2 new"


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome("", (GREEN, GREEN)), []),
        (Outcome("", (RED,), named=("x.parquet",)), []),
        (Outcome("", (GREEN,), named=("x.parquet",), may_succeed=True), []),
        (Outcome("", (Answer("died"),), killed=True), []),
        (Outcome("", (GREEN, RED)), ["it was to be survived, but ended a run: its file x.parquet is cut"]),
        (Outcome("", (RED,), named=("y",)), ["the error does not name y: its file x.parquet is cut"]),
        (Outcome("", (Answer("answered", error=f"{'a' * 9_000} x"),), named=("x",)), []),
        (Outcome("", (GREEN,), named=("y",)), ["a run succeeded that was to fail"]),
        (Outcome("", (Answer("died"),)), ["a driver died"]),
        (Outcome("", (Answer("hung"),)), ["a run had not ended after 400 s"]),
    ],
)
def test_how_runs_may_end(outcome: Outcome, said: list[str]) -> None:
    assert list(endings(outcome)) == said


def test_the_summary_counts_what_hit() -> None:
    hit = Result(Schedule.drawn(0, "kill_jvm", 0), "it", "failed", "old", "error", 2.0, 3, missed=False)
    missed, bad = replace(hit, missed=True), replace(hit, violations=("mixed",))
    _, figures = summary(["kill_jvm"], [hit, missed, bad])
    counts = {key: value for key, value in figures["all"].items() if value}
    assert counts == {
        "hit": 2,
        "named_error": 1,
        "violations": 1,
        "missed": 1,
        "reads": 6,
        "median_seconds": 2.0,
    }


# --- what a receiver sees -------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A delivery of two devices."""
    place = tmp_path / "buyers" / "top" / "2025-03-07"
    place.mkdir(parents=True)
    draft = place / "draft"
    draft.write_text('"device_id","probability"\n"d-1",0.5\n"d-2",0.25\n')
    digest = sha256(draft)
    file = draft.rename(place / file_name(digest, "csv"))
    versions = {"model_version": "m", "segments_version": "s", "predictions_version": "p"}
    content = {"file": file.name, "format": "csv", "rows": 2, "sha256": digest}
    names = {"audience": "buyers", "segment": "top", "day": "2025-03-07"}
    (place / "manifest.json").write_text(json.dumps(names | content | versions))
    return place


def test_a_whole_delivery_is_read(place: Path) -> None:
    assert read_delivered(place).rows == EXPECTED["old"]


def test_a_file_that_is_cut_missing_or_other_is_broken(place: Path) -> None:
    [file] = place.glob("devices-*")
    content = file.read_bytes()
    for other in (content[:-3], content.replace(b"d-1", b"d-9")):
        file.write_bytes(other)
        with pytest.raises(Broken, match="its manifest says other"):
            read_delivered(place)
    file.unlink()
    with pytest.raises(Broken, match="is missing, which its manifest names"):
        read_delivered(place)


@pytest.mark.parametrize("content", ["", "null", '{"file": '])
def test_a_manifest_that_is_none_is_broken(place: Path, content: str) -> None:
    (place / "manifest.json").write_text(content)
    with pytest.raises(Broken, match="is damaged"):
        read_delivered(place)


# --- two schedules --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schedules(
    program_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Fault → its last schedule, which hit; those before it missed."""
    figures = tmp_path_factory.mktemp("chaos_chain") / "figures.json"
    faults = ["two_runs", "kill_driver"]
    return run_schedules("benchmarks.chaos_chain", faults, figures, program_environment)


@pytest.mark.slow
def test_two_runs_at_once_both_succeed_and_deliver_the_new_rows(
    schedules: dict[str, dict[str, Any]],
) -> None:
    schedule = schedules["two_runs"]
    assert (schedule["ending"], schedule["delivered"], schedule["violations"]) == ("recovered", "new", [])
    assert schedule["reads"] > 1


@pytest.mark.slow
def test_a_killed_run_leaves_whole_deliveries_and_no_process(schedules: dict[str, dict[str, Any]]) -> None:
    schedule = schedules["kill_driver"]
    assert (schedule["ending"], schedule["violations"]) == ("killed", [])
