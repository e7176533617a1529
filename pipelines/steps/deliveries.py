"""What is delivered: one file per segment and day, and the manifest that vouches for it."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

COLUMNS = ["device_id", "probability"]


@dataclass(frozen=True)
class Manifest:
    """Describes one delivered file.

    Attributes:
        audience: The audience.
        segment: The segment.
        day: The as-of day, ISO.
        file: The file's name, beside the manifest; it contains the content's hash.
        format: csv or parquet.
        rows: Devices in the file.
        sha256: Of the file.
        model_version: The bundle that made the probabilities.
    """

    audience: str
    segment: str
    day: str
    file: str
    format: str
    rows: int
    sha256: str
    model_version: str


def stage_segment(files: Sequence[Path], segment: str, format: str, directory: Path) -> tuple[Path, int]:
    """Writes a segment's devices, ordered by id, to a file in `directory`; returns it and its rows.

    Rows stream from the segment's Parquet files, which are ordered by id already.
    """
    path = directory / f"devices.{format}"
    schema = pa.schema([("device_id", pa.string()), ("probability", pa.float32())])
    rows = 0
    with pa_csv.CSVWriter(path, schema) if format == "csv" else pq.ParquetWriter(path, schema) as writer:
        if files:
            scan = ds.dataset(files, format="parquet").scanner(
                columns=COLUMNS, filter=pc.field("segment") == segment
            )
            for batch in scan.to_batches():
                writer.write_batch(batch.cast(schema))
                rows += batch.num_rows
    return path, rows


def count_rows(path: Path) -> int:
    """Rows of a delivered file, read again from it."""
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    with path.open(newline="") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
