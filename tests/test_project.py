"""What a user writes: read as it says, and refused with the file, the key, the value and the remedy."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.steps.config import values
from pipelines.steps.config.audience import Label, RollingDays
from pipelines.steps.config.metric import Metric, PrecisionAt
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.errors import ConfigError
from pipelines.steps.events.event_columns import check_event_columns

REPOSITORY = Path(__file__).parent.parent
RETAIL_EVENTS = Path(os.environ.get("SAMPLE_DATA", "")) / "online_retail/events.parquet"

FIELDS = """\
events:
  path: events/day={day}
  id_column: device_id
  time_column: event_time
  arrival_column: received_at
  filters:
    known_model: device_model is not null
  first_day: 2025-01-01
  last_day: 2025-06-30
window_days: 30
fields:
  model:
    column: device_model
    kind: single
    normalizer: device_model
  apps:
    column: app_package
    kind: multi
    normalizer: package
    min_devices: 7
"""

AUDIENCE = """\
label:
  event:
    event_name: purchase
horizon_days: 30
as_of_days:
  - "2025-03-01"
  - 2025-02-01
segments:
  - name: best
    top_fraction: 0.05
  - name: sure
    min_precision: 0.5
deliver_to:
  - type: folder
    path: out
"""


@dataclass(frozen=True)
class Workplace:
    """A working directory with a correct project, to be spoilt."""

    root: Path

    @property
    def fields(self) -> Path:
        return self.root / "audiences/fields.yaml"

    @property
    def audience(self) -> Path:
        return self.root / "audiences/car_buyers.yaml"

    def replace(self, old: str, new: str) -> Path:
        """Replaces a text that occurs once, in whichever of the two files; returns that file."""
        holders = [path for path in (self.fields, self.audience) if path.read_text().count(old) == 1]
        assert len(holders) == 1, f"{old!r} is not in exactly one file, once"
        holders[0].write_text(holders[0].read_text().replace(old, new))
        return holders[0].relative_to(self.root)

    def load(self) -> Project:
        return load_project(Path("audiences"))

    def write_events(self, *, day: str = "2025-01-02", without: str = "", **columns: "pa.Array[Any]") -> Path:
        """One event with the usual columns but `without`; a column given replaces the usual one."""
        moment = pa.array([datetime(2025, 1, 2, tzinfo=UTC)], pa.timestamp("us", "UTC"))
        text = pa.array(["x"])
        table: dict[str, pa.Array[Any]] = {"device_id": text, "event_time": moment, "received_at": moment}
        table |= {"event_name": text, "device_model": text, "app_package": text} | columns
        table.pop(without, None)
        path = self.root / f"events/day={day}/part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table), path)
        return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    place = Workplace(tmp_path)
    place.fields.parent.mkdir()
    place.fields.write_text(FIELDS)
    place.audience.write_text(AUDIENCE)
    return place


# --- reading what is right ------------------------------------------------------------------------


def test_fields_are_read_in_their_order_with_defaults(workplace: Workplace) -> None:
    fields = workplace.load().fields

    assert [(f.name, f.kind, f.max_length, f.min_devices) for f in fields.fields] == [
        ("model", "single", 1, 5),
        ("apps", "multi", 100, 7),
    ]
    assert fields.file == Path("audiences/fields.yaml")
    assert (fields.events.max_late_hours, fields.events.id_normalizer) == (2, "none")


def test_a_relative_path_is_absolute_once_read(workplace: Workplace) -> None:
    assert workplace.load().fields.events.path == str(workplace.root / "events/day={day}")


def test_days_are_sorted_quoted_or_not(workplace: Workplace) -> None:
    (audience,) = workplace.load().audiences

    assert audience.as_of_days == (date(2025, 2, 1), date(2025, 3, 1))


def test_days_may_roll(workplace: Workplace) -> None:
    workplace.replace(
        'as_of_days:\n  - "2025-03-01"\n  - 2025-02-01', "as_of_days: {count: 2, every_days: 30}"
    )

    assert workplace.load().audiences[0].as_of_days == RollingDays(count=2, every_days=30)


def test_days_may_roll_over_all_history(workplace: Workplace) -> None:
    workplace.replace('as_of_days:\n  - "2025-03-01"\n  - 2025-02-01', "as_of_days: {every_days: 30}")

    assert workplace.load().audiences[0].as_of_days == RollingDays(count=None, every_days=30)


def test_an_audience_that_names_no_days_is_trained_on_one_a_week_of_all_history(workplace: Workplace) -> None:
    workplace.replace('as_of_days:\n  - "2025-03-01"\n  - 2025-02-01\n', "")

    assert workplace.load().audiences[0].as_of_days == RollingDays(count=None, every_days=7)


def test_days_may_be_counted_from_the_first_day_of_events(workplace: Workplace) -> None:
    workplace.replace('as_of_days:\n  - "2025-03-01"', "as_of_days:\n  - first_day + 59\n  - first_day+3")

    as_of_days = workplace.load().audiences[0].as_of_days

    assert as_of_days == (date(2025, 1, 4), date(2025, 2, 1), date(2025, 3, 1))


def test_the_first_day_may_be_the_oldest_that_is_there(workplace: Workplace) -> None:
    workplace.replace("first_day: 2025-01-01", "first_day: oldest")
    workplace.replace("2025-02-01", "first_day + 1")
    for folder in ("day=2025-01-09", "day=2025-01-08", "day=2025-01-0x", "day=0000-00-00", "elsewhere"):
        (workplace.root / "events" / folder).mkdir(parents=True)

    project = workplace.load()

    assert project.fields.events.first_day == date(2025, 1, 8)
    assert project.audiences[0].as_of_days == (date(2025, 1, 9), date(2025, 3, 1))


def test_the_oldest_day_is_yesterday_as_long_as_there_is_none(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "today", lambda: date(2025, 1, 9))
    workplace.replace("first_day: 2025-01-01", "first_day: oldest")

    assert workplace.load().fields.events.first_day == date(2025, 1, 8)


def test_the_oldest_day_needs_a_path_that_names_days(workplace: Workplace) -> None:
    workplace.replace("day={day}", "all.parquet")
    workplace.replace("first_day: 2025-01-01", "first_day: oldest")

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert str(caught.value) == (
        "audiences/fields.yaml: `events.first_day`\n"
        "  found:    'oldest'\n"
        "  expected: a day such as 2025-01-31: `oldest` needs a path with {day}\n"
        "  remedy:   write the day as YYYY-MM-DD, or say in `path` where each day has its folder: {day}"
    )


def test_audiences_are_named_by_file_or_key_and_sorted(workplace: Workplace) -> None:
    (workplace.root / "audiences/zebra.yml").write_text("name: a_first_one\n" + AUDIENCE)

    assert [audience.name for audience in workplace.load().audiences] == ["a_first_one", "car_buyers"]


def test_an_audience_has_defaults(workplace: Workplace) -> None:
    (audience,) = workplace.load().audiences

    assert audience.training.model_dump() == {
        "seed": 0,
        "max_epochs": 40,
        "patience": 15,
        "negatives_kept": 1.0,
        "max_auc_loss": 0.01,
        "rehearse": True,
        "promotion_fraction": 0.1,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    assert audience.metric == "auc_and_average_precision"
    assert [(d.name, d.path, d.format) for d in audience.destinations] == [("folder", "out", "csv")]


@pytest.mark.parametrize(
    ("written", "metric"),
    [("average_precision", "average_precision"), ("{precision_at: 0.1}", PrecisionAt(precision_at=0.1))],
)
def test_an_audience_may_name_its_metric(workplace: Workplace, written: str, metric: Metric) -> None:
    workplace.replace("horizon_days: 30", f"horizon_days: 30\nmetric: {written}")
    (audience,) = workplace.load().audiences
    assert audience.metric == metric


def test_variables_are_taken_from_the_environment(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace.replace("path: events/", "path: ${WORLD_OF_TEST:-elsewhere}/events/")
    without = workplace.load().fields.events.path
    monkeypatch.setenv("WORLD_OF_TEST", "/here")

    assert without == str(workplace.root / "elsewhere/events/day={day}")
    assert workplace.load().fields.events.path == "/here/events/day={day}"


@pytest.mark.parametrize(
    "path", ["${SECRET_OF_TEST}/{hour}", "s3://${SECRET_OF_TEST}/x", "${SECRET_OF_TEST}/" + "e" * 300]
)
def test_a_path_error_keeps_the_values_of_variables_to_itself(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "/k3y")
    workplace.replace("events/day={day}", path)

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert "${SECRET_OF_TEST}" in str(caught.value.found)
    assert "k3y" not in str(caught.value)


def test_a_destination_may_be_outside_of_data_dir_where_it_says_so(workplace: Workplace) -> None:
    workplace.replace("    path: out", "    path: /srv/out\n    outside_data_dir: true")

    assert workplace.load().audiences[0].destinations[0].path == "/srv/out"


def test_a_path_may_turn_back_inside_of_data_dir(workplace: Workplace) -> None:
    workplace.replace("    path: out", "    path: a/../out")

    assert workplace.load().audiences[0].destinations[0].path == "a/../out"


@pytest.mark.parametrize("directory", ["audiences", "examples/online_retail"])
def test_the_projects_own_files_are_right(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIL_EVENTS", "events.parquet")

    project = load_project(REPOSITORY / directory)

    assert len(project.audiences) == 1


@pytest.mark.skipif(
    not RETAIL_EVENTS.exists(), reason="SAMPLE_DATA names no folder with online_retail/events.parquet"
)
def test_the_retail_example_fits_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIL_EVENTS", str(RETAIL_EVENTS.absolute()))

    check_event_columns(load_project(REPOSITORY / "examples/online_retail"))


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["1.10", "007", "NO", "yes", "true", "1e3", "2025-01-31", "1_000", "0x1F", "1:30", "+1", ".5"]
)
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_labels_value_keeps_its_text(workplace: Workplace, value: str, quote: str) -> None:
    workplace.replace("event_name: purchase", f"event_name: {quote}{value}{quote}")

    assert workplace.load().audiences[0].label.event == {"event_name": value}


def test_values_merged_or_aliased_into_a_label_keep_their_text(workplace: Workplace) -> None:
    workplace.replace(
        "label:\n  event:\n    event_name: purchase\nhorizon_days: 30",
        "horizon_days: &days 030\nlabel:\n  event:\n    <<: {a: 1.10, b: 2}\n    b: 2.0\n    c: *days",
    )
    (audience,) = workplace.load().audiences

    assert audience.label.event == {"a": "1.10", "b": "2.0", "c": "030"}
    assert audience.horizon_days == 24  # an octal number to YAML, and no label's value


def test_column_names_of_a_label_keep_their_text(workplace: Workplace) -> None:
    workplace.replace("event_name: purchase", "on: 1\n    2: x")

    assert workplace.load().audiences[0].label.event == {"on": "1", "2": "x"}


def test_a_signals_value_keeps_its_text(workplace: Workplace) -> None:
    signals = "signals:\n  new: {event: {app_version: 1.10, 007: yes}}\n  old: {where: app_version < '1.10'}"
    workplace.replace("window_days: 30", f"window_days: 30\n{signals}")

    new, old = workplace.load().fields.signals

    assert (new.name, new.event) == ("new", {"app_version": "1.10", "007": "yes"})
    assert (old.name, old.where) == ("old", "app_version < '1.10'")


def test_every_label_is_a_signal_named_by_its_audience(workplace: Workplace) -> None:
    workplace.replace("window_days: 30", "window_days: 30\nsignals: {returns: {where: pieces < 0}}")

    declared, own = workplace.load().signals

    assert (declared.name, declared.key, declared.setting) == (
        "returns", "signals.returns", "signals.returns"
    )  # fmt: skip
    assert (own.name, own.key, own.setting) == ("car_buyers", "label", "car_buyers: label")
    assert own.condition.event == {"event_name": "purchase"}


def test_values_given_by_code_become_the_text_that_a_file_would_have() -> None:
    label = Label.model_validate({"event": {"name": "purchase", "amount": 2, "price": 0.5, "paid": True}})

    assert label.event == {"name": "purchase", "amount": "2", "price": "0.5", "paid": "true"}


# --- refusing what is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "found", "expected", "remedy"),
    [
        # unknown keys, at every depth
        ("min_devices: 7", "min_device: 7",
         "fields.apps.min_device", "7", "min_devices", "did you mean `min_devices`?"),
        ("window_days: 30", "window_days: 30\ncolour: red",
         "colour", "'red'", "events, window_days, fields", "take the key out"),
        ("window_days: 30", "window_days: 30\nfile: x",
         "file", "'x'", "events, window_days, fields", "`fields`"),
        ("min_devices: 7", "name: x", "fields.apps.name", "'x'", "column, kind", "take the key out"),
        ("deliver_to", "destinations", "destinations", "destinations", "deliver_to", "take the key out"),
        ("top_fraction: 0.05", "top_fractoin: 0.05",
         "segments[0].top_fractoin", "0.05", "top_fraction", "did you mean `top_fraction`?"),
        ("    path: out", "    path: out\n    fromat: csv",
         "deliver_to[0].fromat", "'csv'", "format", "did you mean `format`?"),
        # a metric that there is not
        ("horizon_days: 30\n", "horizon_days: 30\nmetric: average_precison\n",
         "metric", "'average_precison'", "one of auc, average_precision, auc_and_average_precision, or",
         "did you mean `average_precision`?"),
        ("horizon_days: 30\n", "horizon_days: 30\nmetric: 0.1\n",
         "metric", "0.1", "`precision_at:` and a share of the devices", "write {precision_at: 0.1}"),
        ("horizon_days: 30\n", "horizon_days: 30\nmetric: {precision_at: 10}\n",
         "metric.precision_at", "10", "less than 1", "correct the value"),
        ("horizon_days: 30\n", "horizon_days: 30\nmetric: {recall_at: 0.1}\n",
         "metric.recall_at", "0.1", "one of the keys precision_at", "take the key out"),
        # missing keys
        ("horizon_days: 30\n", "",
         "horizon_days", "no such key", "the key `horizon_days`", "add `horizon_days:`"),
        ("    kind: multi\n", "", "fields.apps.kind", "no such key", "the key `kind`", "add `kind:`"),
        # impossible numbers
        ("min_devices: 7", "min_devices: 0",
         "fields.apps.min_devices", "0", "greater than or equal to 1", "correct the value"),
        ("min_devices: 7", "min_devices: '7'",
         "fields.apps.min_devices", "'7'", "a whole number", "correct the value"),
        ("min_devices: 7", "min_devices: true",
         "fields.apps.min_devices", "True", "a whole number", "correct the value"),
        ("min_devices: 7", "min_devices:",
         "fields.apps.min_devices", "nothing", "a whole number", "correct the value"),
        ("kind: single", "kind: single\n    max_length: 2",
         "fields.model.max_length", "2", "1, as the field is single-valued", "kind: multi"),
        ("window_days: 30", "window_days: 366",
         "window_days", "366", "less than or equal to 365", "correct the value"),
        ("window_days: 30", "window_days: 7.5",
         "window_days", "7.5", "a whole number", "correct the value"),
        ("  first_day", "  max_late_hours: 24\n  first_day",
         "events.max_late_hours", "24", "less than or equal to 23", "correct the value"),
        ("top_fraction: 0.05", "top_fraction: 5",
         "segments[0].top_fraction", "5", "less than 1", "correct the value"),
        ("min_precision: 0.5", "min_precision: 0",
         "segments[1].min_precision", "0", "greater than 0", "correct the value"),
        ("min_precision: 0.5", "size: 0",
         "segments[1].size", "0", "greater than or equal to 1", "correct the value"),
        ("horizon_days: 30", "horizon_days: 30\ntraining: {max_epochs: 41}",
         "training.max_epochs", "41", "less than or equal to 40", "correct the value"),
        ("horizon_days: 30", "horizon_days: 30\ntraining: {test_fraction: 0.8}",
         "training", "0.2 + 0.8 + 0.1", "a sum below 1", "lower one"),
        ("horizon_days: 30", "horizon_days: 30\ntraining: {promotion_fraction: 0.6}",
         "training", "0.2 + 0.2 + 0.6", "promotion_fraction that leave rows to train on", "lower one"),
        ("horizon_days: 30", "horizon_days: 30\ntraining: {promotion_fraction: 0}",
         "training.promotion_fraction", "0", "greater than 0", "correct the value"),
        # words outside a set
        ("kind: multi", "kind: mutli",
         "fields.apps.kind", "'mutli'", "'single', 'multi'", "did you mean `multi`?"),
        ("normalizer: package", "normalizer: pakage",
         "fields.apps.normalizer", "'pakage'", "log_bucket", "did you mean `package`?"),
        ("type: folder", "type: ftp", "deliver_to[0].type", "'ftp'", "'folder'", "use one of these"),
        # names
        ("  apps:", "  Apps:", "fields.Apps", "Apps", "lower_snake", "rename the field"),
        ("  apps:", "  day:", "fields.day", "day", "none of", "rename the field"),
        ("  apps:", "  model_weights:", "fields.model_weights", "model_weights",
         "a name other than that of the column of weights of model", "rename the field"),
        ("label:", "name: Car-Buyers\nlabel:", "name", "'Car-Buyers'", "lower_snake", "`car_buyers`"),
        ("known_model:", "Known Model:",
         "events.filters.Known Model", "'Known Model'", "lower_snake", "`known_model`"),
        ("name: sure", "name: best", "segments", "best twice", "each one once", "rename"),
        ("window_days: 30", "window_days: 30\nmeasures: {hours: {column: x}}",
         "measures.hours", "hours", "none of", "rename the measure"),
        ("window_days: 30", "window_days: 30\nsignals: {Big: {where: x > 1}}",
         "signals.Big", "Big", "lower_snake", "rename the signal"),
        ("window_days: 30", "window_days: 30\nmeasures: {apps: {column: x}}",
         "measures.apps", "apps, as in fields.apps", "a name of its own", "rename one"),
        ("window_days: 30", "window_days: 30\nmeasures: {a: {column: x}}\nsignals: {a: {where: x > 1}}",
         "signals.a", "a, as in measures.a", "a name of its own", "rename one"),
        ("label:", "name: apps\nlabel:",
         "name` is that of fields.yaml's `fields.apps", "apps", "bears its name", "rename the audience"),
        ("label:", "name: signals\nlabel:",
         "name", "signals", "another name", "rename the audience"),
        # measures and signals
        ("window_days: 30", "window_days: 30\nmeasures:",
         "measures", "nothing", "at least one", "add a measure, such as `revenue:`"),
        ("window_days: 30", "window_days: 30\nmeasures: {m: {}}",
         "measures.m", "none of them", "exactly one of column, sql", "add one"),
        ("window_days: 30", "window_days: 30\nmeasures: {m: {column: x, sql: x * 2}}",
         "measures.m", "'sql': 'x * 2'", "exactly one of column, sql", "keep one"),
        ("window_days: 30", "window_days: 30\nmeasures: {m: {column: x, max: often}}",
         "measures.m.max", "'often'", "a valid boolean", "correct the value"),
        ("window_days: 30", "window_days: 30\nmeasures: {m: {sql: sum(x)}}",
         "measures.m.sql", "sum(x)", "over one event", "an aggregate"),
        ("window_days: 30", "window_days: 30\nmeasures: {m: {sql: 1 + 1}}",
         "measures.m.sql", "1 + 1", "expression that uses a column", "name a column"),
        ("window_days: 30", "window_days: 30\nsignals: {s: {where: x > rand()}}",
         "signals.s.where", "x > rand()", "without rand(…)", "take rand(…) out"),
        ("window_days: 30", "window_days: 30\nsignals: {s: {where: x > 1, event: {x: 1}}}",
         "signals.s", "'where': 'x > 1'", "exactly one of event, where", "keep one"),
        # ids are never features
        ("window_days: 30", "window_days: 30\nmeasures: {m: {sql: length(device_id)}}",
         "measures.m.sql", "device_id", "an id is never a feature", "take the measure out"),
        ("column: app_package", "column: device_id",
         "fields.apps.column", "device_id", "an id is never a feature", "take the field out"),
        # days
        ("2025-02-01", "2025-02-30",
         "as_of_days[1]", "'2025-02-30'", "a day of the calendar", "correct the day"),
        ("2025-02-01", "1 February", "as_of_days[1]", "'1 February'", "such as 2025-01-31", "YYYY-MM-DD"),
        ("2025-02-01", "20250201", "as_of_days[1]", "20250201", "such as 2025-01-31", "YYYY-MM-DD"),
        ("2025-02-01", "first_day - 3", "as_of_days[1]", "'first_day - 3'", "first_day + 59", "YYYY-MM-DD"),
        ("2025-02-01", "-90", "as_of_days[1]", "-90", "first_day + 59", "YYYY-MM-DD"),
        ("2025-02-01", "first_day + 0",
         "as_of_days", "2025-01-01", "after events.first_day", "choose another day"),
        ("2025-02-01", "first_day + 59", "as_of_days", "2025-03-01 twice", "each one once", "take one out"),
        ("first_day: 2025-01-01", "first_day: yesterday",
         "events.first_day", "'yesterday'", "such as 2025-01-31, or `oldest`", "YYYY-MM-DD"),
        ("2025-02-01", "2025-03-01", "as_of_days", "2025-03-01 twice", "each one once", "take one out"),
        ("2025-02-01", "2025-01-01",
         "as_of_days", "2025-01-01", "after events.first_day", "choose another day"),
        ("2025-02-01", "2025-06-01",
         "as_of_days", "2025-06-01", "not after 2025-05-31", "shorten horizon_days"),
        ("  last_day: 2025-06-30", "  last_day: 2024-06-30",
         "events.last_day", "2024-06-30", "not before first_day, 2025-01-01", "exchange"),
        ('  - "2025-03-01"\n  - 2025-02-01', "  count: 0\n  every_days: 7",
         "as_of_days.count", "0", "greater than or equal to 1", "correct the value"),
        ('as_of_days:\n  - "2025-03-01"\n  - 2025-02-01', "as_of_days: []",
         "as_of_days", "[]", "at least 1", "correct the value"),
        # one of several
        ("min_precision: 0.5", "min_precision: 0.5\n    size: 9",
         "segments[1]", "{'min_precision': 0.5, 'size': 9}",
         "exactly one of min_precision, top_fraction, size", "keep one"),
        ("\n    min_precision: 0.5", "", "segments[1]", "none of them", "exactly one of", "add one"),
        ("  event:\n    event_name: purchase", "  {}",
         "label", "none of them", "exactly one of event, where", "add one"),
        ("event_name: purchase", "event_name: [purchase]",
         "label.event.event_name", "['purchase']", "text, a number", "one value"),
        # SQL
        ("is not null", "is nott null",
         "events.filters.known_model", "is nott null", "Spark SQL condition", "line 1, column"),
        ("event_name: purchase", "event_name:",
         "label.event.event_name", "nothing", "text, a number", "one value"),
        ("is not null", "= java_method('java.lang.System', 'getProperty', 'user.home')",
         "events.filters.known_model", "java_method", "without java_method(…)", "docs/conditions.md"),
        ("event:\n    event_name: purchase", "where: score > rand()",
         "label.where", "score > rand()", "without rand(…)", "take rand(…) out"),
        ("event:\n    event_name: purchase", "where: count(*) > 1",
         "label.where", "count(*) > 1", "over one event", "an aggregate"),
        ("event:\n    event_name: purchase", "where: 1 = 1",
         "label.where", "1 = 1", "uses a column", "name a column"),
        ("event:\n    event_name: purchase", "where: a > 1; drop table x",
         "label.where", "drop table", "over one event", "correct the SQL"),
        ("event:\n    event_name: purchase", "where: name = 'x",
         "label.where", "name = 'x", "over one event", "correct the SQL"),
        # the path
        ("events/day={day}", "${NOT_SET_IN_TEST}/x",
         "events.path", "${NOT_SET_IN_TEST}/x", "variable NOT_SET_IN_TEST to be set", "NOT_SET_IN_TEST=<"),
        ("events/day={day}", "events/{hour}",
         "events.path", "events/{hour}", "no placeholder but {day}", "correct the braces"),
        ("events/day={day}", "s3://bucket/events",
         "events.path", "s3://bucket/events", "a local path", "copy the events"),
        ("path: events/day={day}", 'path: "events\\0/day={day}"',
         "events.path", "'events\\x00/day={day}'", "printable characters", "take the control character out"),
        ("events/day={day}", "~nobody_of_this_name/events",
         "events.path", "~nobody_of_this_name/events", "a home directory", "write the path out"),
        ("events/day={day}", "e" * 256, "events.path", "e" * 256, "at most 255 bytes", "part of 256 bytes"),
        ("events/day={day}", "events/" * 700, "events.path", "events/", "at most 4096 bytes", "shorter"),
        ("    path: out", "    path: ../out",
         "deliver_to[0].path", "../out", "inside DATA_DIR", "take the `..` out"),
        ("    path: out", "    path: a/.././../out",
         "deliver_to[0].path", "a/.././../out", "inside DATA_DIR", "outside_data_dir: true"),
        ("    path: out", "    path: ../out\n    outside_data_dir: true",
         "deliver_to[0].path", "../out", "an absolute path", "write the path from / on"),
        ("    path: out", "    path: /srv/out",
         "deliver_to[0].path", "/srv/out", "relative to DATA_DIR", "add `outside_data_dir: true`"),
        ("    path: out", "    path: /srv/out\n    outside_data_dir: false",
         "deliver_to[0].path", "/srv/out", "relative to DATA_DIR", "add `outside_data_dir: true`"),
        ("    path: out", "    path: ~/out",
         "deliver_to[0].path", "'~/out'", "without ~", "write the home directory out"),
        ("    path: out", "    path: ${HOME}/out",
         "deliver_to[0].path", "'${HOME}/out'", "without placeholders", "the folder's own name"),
        ("    path: out", '    path: "out\\0"',
         "deliver_to[0].path", "'out\\x00'", "printable characters", "take the control character out"),
        ("    path: out", f"    path: a/{'é' * 128}",
         "deliver_to[0].path", "é", "at most 255 bytes", "shorten the part of 256 bytes"),
        ("    path: out", f"    path: {'out/' * 1000}",
         "deliver_to[0].path", "out/out", "at most 3584 bytes", "shorter path"),
        ("name: best", f"name: {'b' * 101}",
         "segments[0].name", "bbb", "at most 100 characters", "a shorter name"),
        ("deliver_to:\n  - type: folder\n    path: out",
         "deliver_to:\n  - {type: folder, name: a, path: out}\n"
         "  - {type: folder, name: b, path: other}\n  - {type: folder, name: c, path: ./x/..//out/}",
         "deliver_to[2].path", "./x/..//out/, the same folder as deliver_to[0].path, out",
         "a folder other than that of deliver_to[0].path", "give it another path"),
        # sections that are no sections
        ("  event:\n    event_name: purchase", "  purchase",
         "label", "'purchase'", "a mapping with the keys event, where", "key: value"),
        ("filters:\n    known_model: device_model is not null", "filters:",
         "events.filters", "nothing", "a mapping", "correct the value"),
        ("  - type: folder\n    path: out", "  type: folder\n  path: out",
         "deliver_to", "folder", "a list", "correct the value"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused(
    workplace: Workplace, old: str, new: str, key: str, found: str, expected: str, remedy: str
) -> None:
    file = workplace.replace(old, new)

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert caught.value.what.startswith(f"{file}: `{key}`")
    assert found in str(caught.value.found)
    assert expected in str(caught.value.expected)
    assert remedy in caught.value.remedy


def test_all_wrong_entries_are_named_at_once(workplace: Workplace) -> None:
    workplace.replace("min_devices: 7", "min_devices: 0")
    workplace.replace("window_days: 30", "window_days: 0")

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert "`window_days`" in caught.value.what
    assert caught.value.remedy.endswith("then look at `fields.apps.min_devices`")


def test_a_key_written_twice_is_refused(workplace: Workplace) -> None:
    workplace.replace("    min_devices: 7\n", "    min_devices: 7\n    min_devices: 70\n")

    with pytest.raises(ConfigError, match=r"fields.yaml: `fields.apps.min_devices` is there twice") as caught:
        workplace.load()

    assert caught.value.found == "line 20: '7', line 21: '70'"
    assert caught.value.remedy == "take one of the two out"


def test_a_key_written_twice_within_a_list_is_refused(workplace: Workplace) -> None:
    workplace.replace("    path: out\n", "    path: out\n    path: [a]\n")

    with pytest.raises(
        ConfigError, match=r"car_buyers.yaml: `deliver_to\[0\].path` is there twice"
    ) as caught:
        workplace.load()

    assert caught.value.found == "line 15: 'out', line 16: a sequence"


def test_two_audiences_of_one_name_are_refused(workplace: Workplace) -> None:
    (workplace.root / "audiences/other.yaml").write_text("name: car_buyers\n" + AUDIENCE)

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert caught.value.what == "audiences/car_buyers.yaml and audiences/other.yaml: `name` is the same"
    assert caught.value.found == "car_buyers"
    assert "change `name`" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "what", "found"),
    [
        (b"", "is empty", "nothing"),
        (b"# only a comment\n", "is empty", "nothing"),
        (b"- a\n- b\n", "is no mapping", "['a', 'b']"),
        (b"label: {\n", "cannot be read as YAML", "line 2"),
        (b"label:\n\tevent: 1\n", "cannot be read as YAML", "line 2"),
        (b"label: \xff\n", "cannot be read as YAML", "invalid start byte"),
        (b"a: 1\n---\nb: 2\n", "cannot be read as YAML", "another document"),
        (
            b"label: !!python/object:os.system {}\n",
            "cannot be read as YAML",
            "could not determine a constructor",
        ),
        (b"{[a]: 1}\n", "cannot be read as YAML", "unhashable key"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(
    workplace: Workplace, content: bytes, what: str, found: str
) -> None:
    workplace.audience.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert caught.value.what == f"audiences/car_buyers.yaml {what}"
    assert found in str(caught.value.found)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "what", "found"),
    [
        # Billion laughs: nine lists of nine aliases each
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
         "holds too much", "more than 10,000 entries in line 5"),
        ("a: &a " + "x" * 5_000 + "\nb: [" + ", ".join(["*a"] * 1_000) + "]\n",
         "holds too much", "more than 10,000 entries in line 2"),
        ("a:\n" + "- b\n" * 10_001, "holds too much", "more than 10,000 entries"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "is nested too deeply", "more than 50 levels in line 1"),
        ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "is nested too deeply", "more than 50 levels"),
        ("a: " + "[" * 5_000, "is nested too deeply", "more than 50 levels"),
        ("".join("- " * depth + "a\n" for depth in range(1, 60)), "is nested too deeply", "more than 50"),
        ("# " + "x" * 300_000, "is too large", "more than 262,144 bytes"),
        ("label: &itself\n  event: *itself\n", "holds an alias to what it is part of", "*itself in line 2"),
        ("a: &a [&b [*a]]\n", "holds an alias to what it is part of", "*a in line 1"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_quickly(workplace: Workplace, content: str, what: str, found: str) -> None:
    workplace.audience.write_text(content)
    began = time.process_time()

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert caught.value.what == f"audiences/car_buyers.yaml {what}"
    assert found in str(caught.value.found)
    assert caught.value.remedy
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", ["a folder", "a pipe, socket or device"])
def test_what_is_no_file_is_refused(workplace: Workplace, kind: str) -> None:
    workplace.audience.unlink()
    if kind == "a folder":
        workplace.audience.mkdir()
    else:
        os.mkfifo(workplace.audience)  # reading it would wait for ever

    with pytest.raises(ConfigError, match=r"audiences/car_buyers.yaml is no file") as caught:
        workplace.load()

    assert caught.value.found == kind


def test_an_alias_that_is_used_with_reason_is_read(workplace: Workplace) -> None:
    workplace.replace(
        "    event_name: purchase\nhorizon_days: 30",
        "    event_name: &n purchase\nname: *n\nhorizon_days: 30",
    )

    assert workplace.load().audiences[0].name == "purchase"


def test_a_missing_directory_is_refused(workplace: Workplace) -> None:
    with pytest.raises(ConfigError, match="there is no directory nowhere") as caught:
        load_project(Path("nowhere"))

    assert "correct the path" in caught.value.remedy


def test_a_directory_without_fields_is_refused(workplace: Workplace) -> None:
    workplace.fields.unlink()

    with pytest.raises(ConfigError, match=r"audiences holds no fields.yaml") as caught:
        workplace.load()

    assert caught.value.found == "car_buyers.yaml"
    assert "copy audiences/fields.yaml" in caught.value.remedy


def test_a_directory_without_audiences_is_refused(workplace: Workplace) -> None:
    workplace.audience.unlink()

    with pytest.raises(ConfigError, match="audiences holds no audience") as caught:
        workplace.load()

    assert "copy audiences/car_buyers.yaml" in caught.value.remedy


# --- held against the events ----------------------------------------------------------------------


def test_events_with_all_columns_are_accepted(workplace: Workplace) -> None:
    workplace.write_events()

    check_event_columns(workplace.load())


def test_columns_that_ingestion_adds_are_known_to_conditions(workplace: Workplace) -> None:
    workplace.write_events(id=pa.array(["x"]), without="device_id")
    workplace.replace("id_column: device_id", "id_column: id")
    workplace.replace("device_model is not null", "device_id != 'x' and day > '2025-01-01'")

    check_event_columns(workplace.load())


def test_columns_named_by_folders_are_known(workplace: Workplace) -> None:
    written = workplace.write_events(without="device_model")
    folder = written.parent / "device_model=pixel"
    folder.mkdir()
    written.rename(folder / written.name)

    check_event_columns(workplace.load())


def test_a_single_file_is_accepted(workplace: Workplace) -> None:
    workplace.write_events().rename(workplace.root / "all.parquet")
    workplace.replace("events/day={day}", "all.parquet")

    check_event_columns(workplace.load())


@pytest.mark.parametrize(
    ("old", "new", "key", "found", "remedy"),
    [
        ("id_column: device_id", "id_column: device",
         "events.id_column", "'device'", "did you mean `device_id`?"),
        ("time_column: event_time", "time_column: when",
         "events.time_column", "'when'", "name a column that is there"),
        ("arrival_column: received_at", "arrival_column: receivedat",
         "events.arrival_column", "'receivedat'", "did you mean `received_at`?"),
        ("column: app_package", "column: App_Package",
         "fields.apps.column", "'App_Package'", "did you mean `app_package`?"),
        ("device_model is", "lower(device_modle) is",
         "events.filters.known_model", "'device_modle' in 'lower(device_modle) is not null'",
         "did you mean `device_model`?"),
        ("event_name: purchase", "event_nam: purchase",
         "label.event.event_nam", "'event_nam'", "did you mean `event_name`?"),
        ("event:\n    event_name: purchase", "where: evnt_name = 'purchase'",
         "label.where", "'evnt_name' in", "did you mean `event_name`?"),
    ],
)  # fmt: skip
def test_a_missing_column_is_refused(
    workplace: Workplace, old: str, new: str, key: str, found: str, remedy: str
) -> None:
    workplace.write_events()
    file = workplace.replace(old, new)

    with pytest.raises(ConfigError) as caught:
        check_event_columns(workplace.load())

    assert caught.value.what == f"{file}: `{key}` names a column that the events do not have"
    assert found in str(caught.value.found)
    assert "device_model, app_package" in str(caught.value.expected)
    assert remedy in caught.value.remedy


def test_a_condition_on_the_raw_id_is_told_its_new_name(workplace: Workplace) -> None:
    workplace.write_events(phone=pa.array(["x"]), without="device_id")
    workplace.replace("id_column: device_id", "id_column: phone")
    workplace.replace("device_model is not null", "phone is not null")

    with pytest.raises(ConfigError, match="write device_id"):
        check_event_columns(workplace.load())


def test_nanoseconds_which_spark_cannot_read_are_refused(workplace: Workplace) -> None:
    workplace.write_events(precise=pa.array([0], pa.timestamp("ns", tz="UTC")))
    workplace.replace("time_column: event_time", "time_column: precise")

    with pytest.raises(ConfigError, match=r"(?s)`events.time_column` names a column of nanoseconds.*coerce"):
        check_event_columns(workplace.load())


@pytest.mark.parametrize("key", ["time_column", "arrival_column"])
def test_a_time_that_is_text_is_refused(workplace: Workplace, key: str) -> None:
    column = {"time_column": "event_time", "arrival_column": "received_at"}[key]
    workplace.write_events(time_as_text=pa.array(["2025-01-02"]))
    workplace.replace(f"{key}: {column}", f"{key}: time_as_text")

    with pytest.raises(
        ConfigError, match=f"fields.yaml: `events.{key}` names a column that holds no times"
    ) as caught:
        check_event_columns(workplace.load())

    assert caught.value.found == "'time_as_text' of type string"
    assert "timestamp" in caught.value.remedy


def test_no_events_at_all_are_refused(workplace: Workplace) -> None:
    (workplace.root / "events/day=2025-01-01").mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"fields.yaml: there are no events at `events.path`") as caught:
        check_event_columns(workplace.load())

    assert "events/day={day}" in str(caught.value.found)
    assert "make demo" in caught.value.remedy


def test_unfinished_files_and_empty_days_are_passed_over(workplace: Workplace) -> None:
    unfinished = workplace.root / "events/day=2025-01-01/_temporary/part.parquet"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    workplace.write_events(day="2025-01-02")

    check_event_columns(workplace.load())


def test_a_file_that_is_no_parquet_is_refused(workplace: Workplace) -> None:
    path = workplace.write_events()
    path.write_bytes(b"not Parquet at all")

    with pytest.raises(ConfigError, match=r"`events.path` holds a file that is no Parquet") as caught:
        check_event_columns(workplace.load())

    assert "events/day=2025-01-02/part-0.parquet" in str(caught.value.found)


@pytest.mark.parametrize(
    ("column", "label", "found", "expected"),
    [
        (pa.array([True]), "1", "1 for the column 'converted' of type boolean", "true or false"),
        (pa.array([True]), "yes", "yes for the column 'converted' of type boolean", "true or false"),
        (pa.array([1]), "true", "true for the column 'converted' of type bigint", "a whole number"),
        (pa.array([1]), "1.5", "1.5 for the column 'converted' of type bigint", "a whole number"),
        (
            pa.array([1], pa.uint8()),
            str(2**63),
            f"{2**63} for the column 'converted' of type bigint",
            "holds",
        ),
        (pa.array([1.5]), "often", "often for the column 'converted' of type double", "a number"),
        (pa.array([date(2025, 1, 2)]), "soon", "soon for the column 'converted' of type date", "2025-01-31"),
        (pa.array([["a"]]), "a", "a for the column 'converted' of type list<", "a column of texts"),
    ],
)
def test_a_labels_value_of_another_type_than_its_column_is_refused(
    workplace: Workplace, column: "pa.Array[Any]", label: str, found: str, expected: str
) -> None:
    workplace.write_events(converted=column)
    file = workplace.replace("event_name: purchase", f"converted: {label}")

    with pytest.raises(ConfigError) as caught:
        check_event_columns(workplace.load())

    assert caught.value.what == f"{file}: `label.event.converted` does not fit its column"
    assert found in str(caught.value.found)
    assert expected in str(caught.value.expected)
    assert "write " in caught.value.remedy


def test_the_type_of_a_dictionary_is_that_of_its_values(workplace: Workplace) -> None:
    workplace.write_events(version=pa.array(["1.10"]).dictionary_encode())
    workplace.replace("event_name: purchase", "version: 1.10")

    check_event_columns(workplace.load())


def test_errors_about_events_keep_the_values_of_variables_to_themselves(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", str(workplace.root / "k3y"))
    workplace.replace("events/day={day}", "${SECRET_OF_TEST}/day={day}")
    with pytest.raises(ConfigError, match="there are no events") as absent:
        check_event_columns(workplace.load())
    broken = workplace.root / "k3y/day=2025-01-02/x/part-0.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not Parquet at all")
    with pytest.raises(ConfigError, match="a file that is no Parquet") as torn:
        check_event_columns(workplace.load())

    assert absent.value.found == "no Parquet file at ${SECRET_OF_TEST}/day={day}"
    assert str(torn.value.found).startswith("${SECRET_OF_TEST}/day=2025-01-02/x/part-0.parquet: ")
    assert "k3y" not in f"{absent.value}{torn.value}"


# --- before any JVM starts ------------------------------------------------------------------------


def test_reading_needs_neither_spark_nor_torch(workplace: Workplace) -> None:
    """A wrong file must be told in a second, and definitions load without a JVM."""
    workplace.write_events()
    program = """
import sys
from pathlib import Path
from pipelines.steps.events.event_columns import check_event_columns
from pipelines.steps.config.project import load_project
check_event_columns(load_project(Path("audiences")))
heavy = {"pyspark", "torch", "dagster", "great_expectations", "sklearn", "xgboost", "pandas"}
print(",".join(sorted(heavy & {name.partition(".")[0] for name in sys.modules})))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout.strip() == ""


def test_a_message_reads_well(workplace: Workplace) -> None:
    workplace.replace("min_devices: 7", "min_device: 7")

    with pytest.raises(ConfigError) as caught:
        workplace.load()

    assert str(caught.value) == (
        "audiences/fields.yaml: `fields.apps.min_device`\n"
        "  found:    unknown key `min_device` with the value 7\n"
        "  expected: one of the keys column, kind, normalizer, min_devices, max_vocabulary, max_length\n"
        "  remedy:   did you mean `min_devices`?, or take the key out"
    )
    assert not re.search(r"pydantic|https?://", str(caught.value))
