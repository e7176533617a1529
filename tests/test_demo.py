"""A demo beside a running one touches nothing of it; an interrupted one says so."""

from pathlib import Path

import pytest

from pipelines import demo, simulate
from pipelines.demo_lock import lock_demo

SMALL = ["--devices", "60", "--events", "600"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo writes to `data` of the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUDIENCES_DIR", "DATA_DIR", "DAGSTER_HOME", "RETAIL_EVENTS"):
        monkeypatch.delenv(name, raising=False)
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
        assert demo.main(arguments) == 1
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
        assert simulate.main(["--out", "data/world", *SMALL]) == 2
        assert files(elsewhere) == before
    assert "another demo is running on data" in capsys.readouterr().err


def test_worlds_elsewhere_know_no_lock(elsewhere: Path) -> None:
    assert simulate.main(["--out", "worlds/small", *SMALL, "--days", "3"]) == 0
    assert [path.name for path in Path("worlds").iterdir()] == ["small"]


def test_the_lock_is_free_again_after_a_demo_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["retail", "--data", "missing.parquet"]) == 1
    assert "there is no file missing.parquet" in capsys.readouterr().err
    lock_demo(Path("data/online_retail")).close()
