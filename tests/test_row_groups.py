"""Row groups: listed, packed into tasks, read as codes where they are stored so; damage is named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.steps.errors import DataError
from pipelines.steps.row_groups import RowGroup, list_row_groups, plan_tasks, read_row_group

COLUMNS = ["device_id", "apps"]
ROWS = 1_000
COMMON = [[f"app-{(row + place) % 30}" for place in range(row % 5)] for row in range(ROWS)]
RARE = [[f"app-{row}-{place}" * 20 for place in range(row % 5)] for row in range(ROWS)]


def write(path: Path, apps: list[list[str]], **options: Any) -> Path:
    table = pa.table({"device_id": [f"device-{row}" for row in range(len(apps))], "other": range(len(apps))})
    table = table.append_column("apps", pa.array(apps, pa.list_(pa.string())))
    pq.write_table(table, path, **options)
    return path


def alter_last_byte(file: Path, row_group: int, column: int) -> None:
    """Damages one column chunk: what no checksum covers would read as another value."""
    chunk = pq.read_metadata(file).row_group(row_group).column(column)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(file.read_bytes())
    content[begin + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(content)


def is_coded(table: pa.Table) -> bool:
    return bool(pa.types.is_dictionary(table.column("apps").type.value_type))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.parquet", COMMON, row_group_size=400, write_page_checksum=True)


def test_row_groups_are_listed_in_order(file: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", [])
    groups = list_row_groups([empty, file, file], COLUMNS)
    assert [(g.file, g.index, g.rows) for g in groups] == 2 * [
        (str(file), 0, 400), (str(file), 1, 400), (str(file), 2, 200),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "per_task", "tasks"),
    [
        ([], 10, []),
        ([4, 4, 4, 4], 8, [[4, 4], [4, 4]]),
        ([4, 5, 4], 8, [[4], [5], [4]]),
        ([20, 1, 1, 20], 8, [[20], [1, 1], [20]]),  # one larger than a task is never split
    ],
)
def test_small_row_groups_share_a_task(rows: list[int], per_task: int, tasks: list[list[int]]) -> None:
    groups = [RowGroup("file", index, count) for index, count in enumerate(rows)]
    packed = plan_tasks(groups, per_task)
    assert [[group.rows for group in task] for task in packed] == tasks
    assert [group for task in packed for group in task] == groups


def test_rows_are_read_as_they_were_written(file: Path) -> None:
    tables = [read_row_group(group, COLUMNS) for group in list_row_groups([file], COLUMNS)]
    assert all(table.column_names == COLUMNS for table in tables)
    assert [row for table in tables for row in table.column("apps").to_pylist()] == COMMON


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_strings_in_a_dictionary_are_read_as_codes(tmp_path: Path, version: Any) -> None:
    file = write(tmp_path / "tokens.parquet", COMMON, data_page_version=version)
    [group] = list_row_groups([file], COLUMNS)
    assert is_coded(read_row_group(group, COLUMNS))


def test_strings_that_are_not_are_read_as_strings(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.parquet", COMMON, use_dictionary=False)
    [group] = list_row_groups([file], COLUMNS)
    table = read_row_group(group, COLUMNS)
    assert not is_coded(table)
    assert table.column("apps").to_pylist() == COMMON


def test_strings_of_a_dictionary_that_was_given_up_are_read_as_strings(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tokens.parquet", RARE, version="1.0", dictionary_pagesize_limit=1_000, data_page_size=500
    )
    [group] = list_row_groups([file], COLUMNS)
    assert {"PLAIN_DICTIONARY", "PLAIN"} <= set(pq.read_metadata(file).row_group(0).column(2).encodings)
    table = read_row_group(group, COLUMNS)
    assert not is_coded(table)
    assert table.column("apps").to_pylist() == RARE


# --- failures -------------------------------------------------------------------------------------


def test_a_column_that_is_missing_is_named_with_its_file(file: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)tokens.parquet: there is no column games.*found.*apps"):
        list_row_groups([file], [*COLUMNS, "games"])


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the footer of .*nowhere.parquet cannot be read"):
        list_row_groups([tmp_path / "nowhere.parquet"], COLUMNS)


def test_a_file_cut_short_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"the footer of .*tokens.parquet cannot be read"):
        list_row_groups([file], COLUMNS)


def test_a_damaged_footer_is_an_error_with_a_name(file: Path) -> None:
    """PyArrow itself fails on some with a KeyError, or with a UnicodeDecodeError."""
    groups = list_row_groups([file], COLUMNS)
    content = file.read_bytes()
    first = content.index(b"element", pq.read_metadata(file).row_group(2).column(2).data_page_offset)
    messages = []
    for place in range(first, first + 60):
        file.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        messages.append(read_error(groups[0]))
    assert sum("tokens.parquet" in message for message in messages) > 10


def read_error(group: RowGroup) -> str:
    try:
        list_row_groups([Path(group.file)], COLUMNS)
        read_row_group(group, COLUMNS)
    except DataError as error:
        return error.what
    return ""


def test_a_row_group_with_altered_bytes_is_named(file: Path) -> None:
    groups = list_row_groups([file], COLUMNS)
    alter_last_byte(file, row_group=1, column=2)
    read_row_group(groups[0], COLUMNS)
    with pytest.raises(DataError, match=r"(?s)row group 1 of .*tokens.parquet cannot be read"):
        read_row_group(groups[1], COLUMNS)


def test_a_file_that_was_replaced_since_it_was_planned_is_named(file: Path) -> None:
    groups = list_row_groups([file], COLUMNS)
    write(file, COMMON[:900], row_group_size=300)
    with pytest.raises(DataError, match=r"(?s)row group 0 of .* is not what was planned.*300 rows.*400 rows"):
        read_row_group(groups[0], COLUMNS)
