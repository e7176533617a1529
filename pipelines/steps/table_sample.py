"""A few rows of a table, for people to look at: no id, and no value that too few devices share.

A sample ends in the history of the orchestrator, which nobody deletes when a device is forgotten. So it holds
nothing that could tell who someone is: ids become numbers, and a value is shown only where it is on so many
devices among the first rows of one file. Fewer may be seen there than there are; then too much is hidden.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.row_groups import read_first_rows
from pipelines.steps.table_columns import Shown, TableColumn, TableColumns

SAMPLE_ROWS = 5
LOOKED_AT = 20_000
"""Rows of a file among which values are counted, at most."""
SHOWN_VALUES = 3
"""Values shown of a list, at most: together, many common ones are as good as a name."""
SHOWN_CHARACTERS = 40
RARE, HIDDEN = "(rare)", "(not shown)"
DEVICE_ID = "device_id"


def sample_rows(file: Path, columns: TableColumns) -> list[dict[str, str]]:
    """Rows from anywhere among the first of a Parquet file; the same ones whenever it is read.

    Args:
        file: With a column `device_id`.
        columns: Those to show; others are left out.

    Returns:
        Column → what is shown of its value, for each row.

    Raises:
        DataError: The file cannot be read.
    """
    table = read_first_rows(file, list(columns), LOOKED_AT)
    rows = np.random.default_rng(0).permutation(table.num_rows)[:SAMPLE_ROWS]
    shown = {
        name: _shown_values(table.column(name), table.column(DEVICE_ID), rows, column)
        for name, column in columns.items()
        if name in table.column_names
    }
    return [{name: values[place] for name, values in shown.items()} for place in range(len(rows))]


def _shown_values(
    values: pa.ChunkedArray, devices: pa.ChunkedArray, rows: np.ndarray, column: TableColumn
) -> list[str]:
    if column.shown is Shown.HOURS:
        hours = pc.strftime(values.take(rows).cast(pa.timestamp("s"), safe=False), "%Y-%m-%d %H:00")
        return [hour or "" for hour in hours.to_pylist()]
    if column.shown is Shown.EVERYTHING:
        return [_text(value) for value in values.take(rows).to_pylist()]
    if column.shown is Shown.COMMON_VALUES:
        return _common_values(values, devices, rows, column.min_devices)
    if column.shown is Shown.NUMBERS:
        ids = values.take(rows).to_pylist()
        numbers = {each: number for number, each in enumerate(dict.fromkeys(ids), start=1)}
        return [f"device {numbers[each]}" for each in ids]
    return [HIDDEN] * len(rows)


def _common_values(
    values: pa.ChunkedArray, devices: pa.ChunkedArray, rows: np.ndarray, min_devices: int
) -> list[str]:
    column, owners = values.combine_chunks(), devices.combine_chunks()
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    single = column.flatten() if is_list else column
    if pa.types.is_nested(single.type):
        return [HIDDEN] * len(rows)
    of_value = owners.take(pc.list_parent_indices(column)) if is_list else owners
    sampled = column.take(pa.array(rows))
    candidates = (sampled.flatten() if is_list else sampled).unique().drop_null()
    found = pa.table({"value": single, "device": of_value}).filter(pc.is_in(single, value_set=candidates))
    counts = found.group_by("value").aggregate([("device", "count_distinct")]).to_pylist()
    common = {each["value"] for each in counts if each["device_count_distinct"] >= min_devices}

    def shown(value: object) -> str:
        return _text(value) if value is None or value in common else RARE

    if not is_list:
        return [shown(value) for value in sampled.to_pylist()]
    return [_list_text([shown(value) for value in each or []]) for each in sampled.to_pylist()]


def _list_text(values: Sequence[str]) -> str:
    more = [f"… {len(values) - SHOWN_VALUES} more"] if len(values) > SHOWN_VALUES else []
    return ", ".join([*values[:SHOWN_VALUES], *more])


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
