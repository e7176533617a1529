"""A sample of rows shows what a table is like, and nobody in it."""

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.steps.errors import DataError
from pipelines.steps.table_columns import Shown, TableColumn
from pipelines.steps.table_sample import HIDDEN, RARE, SAMPLE_ROWS, sample_rows

ID = TableColumn("string", "Whom the row is about.", shown=Shown.NUMBERS)
COMMON = TableColumn("string", "The model.", shown=Shown.COMMON_VALUES, min_devices=2)
DAY = date(2025, 3, 11)


def written(tmp_path: Path, **columns: list[object]) -> Path:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def test_ids_become_numbers_that_tell_devices_apart(tmp_path: Path) -> None:
    file = written(tmp_path, device_id=["feed-1", "feed-2", "feed-1"])

    shown = [row["device_id"] for row in sample_rows(file, {"device_id": ID})]

    assert {name: shown.count(name) for name in shown} in (
        {"device 1": 2, "device 2": 1},
        {"device 1": 1, "device 2": 2},
    )


def test_a_value_on_too_few_devices_is_not_shown(tmp_path: Path) -> None:
    # Three rows of "mine", but of one device alone.
    file = written(
        tmp_path, device_id=["a", "a", "a", "b", "c"], model=["mine", "mine", "mine", "common", "common"]
    )

    shown = [row["model"] for row in sample_rows(file, {"device_id": ID, "model": COMMON})]

    assert sorted(shown) == [RARE, RARE, RARE, "common", "common"]


def test_of_a_list_common_values_are_shown_and_only_the_first(tmp_path: Path) -> None:
    apps: list[object] = [["shop", "mine", "news"], ["shop", "news"], ["w", "x", "y", "z"], None, []]
    file = written(tmp_path, device_id=["a", "b", "c", "d", "e"], apps=apps)

    shown = [row["apps"] for row in sample_rows(file, {"device_id": ID, "apps": COMMON})]

    of_c = f"{RARE}, {RARE}, {RARE}, … 1 more"
    assert sorted(shown) == sorted([f"shop, {RARE}, news", "shop, news", of_c, "", ""])


def test_times_are_shown_to_the_hour_and_what_nobody_allows_not_at_all(tmp_path: Path) -> None:
    noon = datetime(2025, 3, 11, 12, 34, 56, 789, tzinfo=UTC)
    file = written(tmp_path, device_id=["a"], day=[DAY], at=[noon], session=["s-1"], ip=["10.0.0.1"])
    columns = {
        "device_id": ID,
        "day": TableColumn("date", "The day.", shown=Shown.EVERYTHING),
        "at": TableColumn("timestamp", "When.", shown=Shown.HOURS),
        "session": TableColumn("string", "The session."),
    }

    [row] = sample_rows(file, columns)

    assert row == {
        "device_id": "device 1",
        "day": "2025-03-11",
        "at": "2025-03-11 12:00",
        "session": HIDDEN,
    }


def test_nested_values_are_not_shown_and_missing_columns_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, device_id=["a", "b"], model=[{"name": "x"}, {"name": "x"}])

    rows = sample_rows(file, {"device_id": ID, "model": COMMON, "gone": COMMON})

    assert [row["model"] for row in rows] == [HIDDEN, HIDDEN]
    assert rows[0].keys() == {"device_id", "model"}


def test_a_sample_is_small_and_the_same_whenever_it_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, device_id=list(map(str, range(100))), copies=list(range(100)))
    columns = {"device_id": ID, "copies": TableColumn("bigint", "Rows.", shown=Shown.EVERYTHING)}

    rows = sample_rows(file, columns)

    assert len(rows) == SAMPLE_ROWS
    assert rows == sample_rows(file, columns)


def test_a_file_without_rows_has_an_empty_sample(tmp_path: Path) -> None:
    pq.write_table(pa.table({"device_id": pa.array([], pa.string())}), tmp_path / "rows.parquet")

    assert sample_rows(tmp_path / "rows.parquet", {"device_id": ID}) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1 no more")

    with pytest.raises(DataError, match=r"rows\.parquet cannot be read"):
        sample_rows(file, {"device_id": ID})
