"""A demo beside a running one touches nothing of it; an interrupted one says so."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest

from pipelines import demo, simulate
from pipelines.demo_lock import lock_demo
from pipelines.simulated_world.world import stored_world

SMALL = ["--devices", "60", "--events-per-day", "3"]
TODAY = date(2026, 11, 25)
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo writes to `data` of the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUDIENCES_DIR", "DATA_DIR", "DAGSTER_HOME", "RETAIL_EVENTS", "WORLD_DIR"):
        monkeypatch.setenv(name, "set, so that what the demo sets is taken back")
        monkeypatch.delenv(name)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["simulated", *SMALL], Path("data")),
        (["retail", "--data", "events.parquet"], Path("data/online_retail")),
    ],
)
def test_a_second_demo_is_refused_before_it_changes_anything(
    arguments: list[str], data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("events.parquet").touch()
    with lock_demo(data):
        before = files(elsewhere)
        assert demo.main(arguments, TODAY) == 1
        assert files(elsewhere) == before
    refusal = capsys.readouterr()
    assert f"another demo is running on {data}" in refusal.err
    assert "remedy:   wait for it, or stop it" in refusal.err
    assert refusal.out == ""


def test_the_world_of_a_running_demo_is_not_replaced(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_demo(Path("data")):
        before = files(elsewhere)
        assert simulate.main(["--out", "data/world", *SMALL], TODAY) == 2
        assert files(elsewhere) == before
    assert "another demo is running on data" in capsys.readouterr().err


def test_worlds_elsewhere_know_no_lock(elsewhere: Path) -> None:
    first_day = ["--first-day", "2026-11-22"]
    assert simulate.main(["--out", "worlds/small", *SMALL, *first_day], TODAY) == 0
    assert [path.name for path in Path("worlds").iterdir()] == ["small"]


def test_the_lock_is_free_again_after_a_demo_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["retail", "--data", "missing.parquet"], TODAY) == 1
    assert "there is no file missing.parquet" in capsys.readouterr().err
    lock_demo(Path("data/online_retail")).close()


def test_the_world_goes_on_from_demo_to_demo(elsewhere: Path) -> None:
    """Days already made stay valid: the first day and the days trained on do not move."""
    shutil.copytree(REPOSITORY / "audiences", elsewhere / "audiences")
    shutil.copy(REPOSITORY / "dagster_instance.yaml", elsewhere)
    options = demo.parse(["simulated", *SMALL])

    first = demo.prepare(options, TODAY)
    later = demo.prepare(options, TODAY + timedelta(days=3))

    for made, ended in ((first, date(2026, 11, 24)), (later, date(2026, 11, 27))):
        assert made.last_day == made.newest_day == ended
        assert made.scored_day == ended - timedelta(days=90)
        assert made.project.fields.events.first_day == date(2026, 3, 25)
        [audience] = made.project.audiences
        assert audience.as_of_days == (date(2026, 4, 23), date(2026, 5, 23))
        labels_end = audience.as_of_days[-1] + timedelta(days=audience.horizon_days)
        assert labels_end < made.scored_day  # what it is compared with was never trained on
    assert (elsewhere / "data/world/events/day=2026-11-27/part-1.parquet").exists()


def test_the_demo_reads_the_world_that_it_makes(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_DIR", "elsewhere")
    shutil.copytree(REPOSITORY / "audiences", elsewhere / "audiences")

    made = demo.prepare(demo.parse(["simulated", *SMALL]), TODAY)

    assert made.project.fields.events.path == str(elsewhere / "elsewhere/events/day={day}")
    assert made.world == stored_world(elsewhere / "elsewhere")
    assert made.project.fields.events.first_day == date(2026, 3, 25)
