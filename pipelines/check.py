"""Command line: check a project's files against its events, and print the commands of its first run.

    ./run python -m pipelines.check

It reads no row and starts no Spark, so that a wrong name is found in seconds.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from assets.partitions import split_range
from pipelines.steps.config.fields import EventSource
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.config.values import DAY_PLACEHOLDER
from pipelines.steps.errors import AudienceFactoryError, DataError, abridged
from pipelines.steps.events.event_columns import check_event_columns
from pipelines.steps.labels.as_of_days import matured_as_of_days

MATERIALIZE = "./run dagster asset materialize -m pipelines.definitions --select"
EXECUTE = "./run dagster job execute -m pipelines.definitions -j"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the project and prints what was found; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        project = load_project(options.audiences_dir)
        check_event_columns(project)
        lines = list(_found(project, options.audiences_dir))
    except AudienceFactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.check",
        description="Check a project's files against its events, and print the commands of its first run.",
    )
    parser.add_argument(
        "--audiences-dir",
        type=Path,
        default=Path(os.environ.get("AUDIENCES_DIR", "audiences")),
        help="directory of fields.yaml and the audiences (default: $AUDIENCES_DIR, else audiences)",
    )
    return parser


def _found(project: Project, directory: Path) -> Iterator[str]:
    """Lines for people: the project, and what to run first."""
    source = project.fields.events
    days = _days_with_events(source)
    first, last = days[0], days[-1]
    as_of_days = {
        audience.name: matured_as_of_days(audience, days, project.fields.window_days)
        for audience in project.audiences
    }
    yield f"{directory} fits its events"
    yield f"  events     {len(days):,} days, {first} to {last}, from {source.written_path}"
    yield f"  fields     {', '.join(field.name for field in project.fields.fields)}"
    for name, chosen in as_of_days.items():
        yield f"  audience   {name}, trained as of {abridged([str(day) for day in chosen])}"
    ingested = ",".join(["app_events", "daily_fields", *(f"signals/{s.name}" for s in project.signals)])
    yield "\nThe first run, one command after another (in the UI: docs/own_data.md):"
    for start, end in split_range(first, last):
        yield f"  {MATERIALIZE} {ingested} --partition-range {start}...{end}"
    yield f"  {EXECUTE} training_job"
    yield f'  {EXECUTE} daily_job --tags \'{{"dagster/partition": "{last}"}}\''


def _days_with_events(source: EventSource) -> list[date]:
    """The days of the project, up to yesterday, for which there are events: all, where folders tell nothing.

    Raises:
        DataError: There is none.
    """
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    last = min(source.last_day or yesterday, yesterday)
    length = max(0, (last - source.first_day).days + 1)
    days = [source.first_day + timedelta(days=ahead) for ahead in range(length)]
    if DAY_PLACEHOLDER in source.path:
        days = [day for day in days if Path(source.path.replace(DAY_PLACEHOLDER, str(day))).exists()]
    if not days:
        raise DataError(
            "there are no events on any day of the project",
            found=f"nothing in {source.written_path}",
            expected=f"events of a day from {source.first_day} to {last}",
            remedy="change events.first_day, or write the events there",
        )
    return days


if __name__ == "__main__":
    sys.exit(main())
