"""`python -m pipelines.check`: whether a project fits its events, and what to run first."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.check import main
from pipelines.steps.config.project import load_project

FIELDS = """
    events:
      path: log/{day}
      id_column: customer
      time_column: happened
      first_day: 2026-01-01
    window_days: 3
    fields:
      pages: {column: page, kind: multi, normalizer: text}
    """
BUYERS = """
    label: {event: {action: order}}
    horizon_days: 2
    as_of_days: [2026-01-06, 2026-01-03]
    segments: [{name: best, size: 10}]
    deliver_to: [{type: folder, path: deliveries}]
    """


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with events on 2026-01-01 to 2026-01-08, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUDIENCES_DIR", raising=False)
    (tmp_path / "audiences").mkdir()
    for name, text in {"fields": FIELDS, "buyers": BUYERS}.items():
        (tmp_path / f"audiences/{name}.yaml").write_text(dedent(text))
    for day in (date(2026, 1, 1) + timedelta(days=ahead) for ahead in range(8)):
        moment = pa.array([datetime(day.year, day.month, day.day, tzinfo=UTC)], pa.timestamp("us", "UTC"))
        text = pa.array(["x"])
        (tmp_path / f"log/{day}").mkdir(parents=True)
        events = pa.table({"customer": text, "happened": moment, "page": text, "action": text})
        pq.write_table(events, tmp_path / f"log/{day}/part.parquet")
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def test_what_was_found_and_the_first_commands_are_printed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    materialize = "./run dagster asset materialize -m pipelines.definitions --select"
    execute = "./run dagster job execute -m pipelines.definitions -j"
    assert capsys.readouterr().out == (
        "audiences fits its events\n"
        "  events     8 days, 2026-01-01 to 2026-01-08, from log/{day}\n"
        "  fields     pages\n"
        "  audience   buyers, trained as of 2026-01-03, 2026-01-06\n"
        "\n"
        "The first run, one command after another (in the UI: docs/own_data.md):\n"
        f"  {materialize} app_events,daily_fields,signals/buyers --partition-range 2026-01-01...2026-01-08\n"
        f"  {execute} training_job\n"
        f'  {execute} daily_job --tags \'{{"dagster/partition": "2026-01-08"}}\'\n'
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        (
            "fields",
            "column: page",
            "column: pages",
            "audiences/fields.yaml: `fields.pages.column` names a column that the events do not have",
        ),
        (
            "buyers",
            "action: order",
            "actoin: order",
            "audiences/buyers.yaml: `label.event.actoin` names a column",
        ),
        ("buyers", "2026-01-06", "2026-01-07", "buyers: as-of days 2026-01-07 cannot be trained on"),
        ("fields", "2026-01-01", "2026-02-01", "there are no events on any day of the project"),
    ],
)
def test_what_does_not_fit_is_an_error_before_anything_runs(
    project: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, what: str
) -> None:
    replace(project / f"audiences/{file}.yaml", old, new)
    if old == "2026-01-01":
        replace(project / "audiences/buyers.yaml", "[2026-01-06, 2026-01-03]", "[2026-02-06]")
    assert main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {what}")
    assert "\n  remedy:   " in said.err


def test_the_example_of_the_documentation_is_a_project(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/own_data.md").read_text()
    for name, text in re.findall(r"/project/(\w+)\.yaml`.*?```yaml\n(.*?)```", page, re.DOTALL):
        (tmp_path / f"{name}.yaml").write_text(text)
    project = load_project(tmp_path)
    assert [field.name for field in project.fields.fields] == ["pages", "city", "phone"]
    assert [audience.name for audience in project.audiences] == ["grill_buyers"]


def test_another_directory_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "audiences").rename(project / "mine")
    assert main(["--audiences-dir", "mine"]) == 0
    assert capsys.readouterr().out.startswith("mine fits its events\n")
