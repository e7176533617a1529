"""What is delivered: one file per segment and day, and the manifest that vouches for it."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipelines.steps.errors import DataError
from pipelines.steps.table_columns import Shown, TableColumn, device_id

COLUMNS = ["device_id", "probability"]
OUR_FILE = re.compile(r"devices-[0-9a-f]{12}\.(csv|parquet)")
"""The names that delivered files have; whatever has another name is somebody else's."""
READ_BYTES = 1 << 20


def table_columns() -> dict[str, TableColumn]:
    """The columns of a delivered file."""
    return {
        "device_id": device_id("segments"),
        "probability": TableColumn(
            "float", "That of the segment.", {"segments": ["probability"]}, Shown.EVERYTHING
        ),
    }


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
        segments_version: The write of `segments` that the file was taken from.
        predictions_version: The write of `predictions` that this segment was cut from.
    """

    audience: str
    segment: str
    day: str
    file: str
    format: str
    rows: int
    sha256: str
    model_version: str
    segments_version: str
    predictions_version: str

    def same_delivery(self, other: "Manifest") -> bool:
        """Whether both describe the same content; a rerun writes equal content under new versions."""
        return other == replace(
            self, segments_version=other.segments_version, predictions_version=other.predictions_version
        )


def file_name(sha256: str, format: str) -> str:
    """The delivered file's name, which tells its content."""
    return f"devices-{sha256[:12]}.{format}"


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Reads a manifest; one that does not vouch for a file of ours is refused.

    Args:
        content: The manifest's bytes.
        path: Where they lie.

    Raises:
        DataError: No JSON, not a manifest's keys and types, or another file than its hash names. The
            content is not repeated: what lies there by mistake may hold ids.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged_manifest(path, "an empty file" if not content else f"no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise damaged_manifest(path, f"JSON, but a {type(parsed).__name__} instead of an object")
    types = {field.name: field.type for field in fields(Manifest)}
    if missing := [name for name in types if name not in parsed]:
        raise damaged_manifest(path, f"no {', '.join(missing)}")
    if unknown := len(set(parsed) - set(types)):
        raise damaged_manifest(path, f"{unknown} unknown keys")
    # Exactly this type: True is an int, and 3.0 equals 3.
    if wrong := [name for name, value in parsed.items() if type(value) is not types[name]]:
        raise damaged_manifest(path, f"another type of {', '.join(wrong)}")
    manifest = Manifest(**parsed)
    if not OUR_FILE.fullmatch(manifest.file) or manifest.file != file_name(manifest.sha256, manifest.format):
        raise damaged_manifest(path, "a file name that does not tell the content's hash")
    return manifest


def damaged_manifest(path: Path, found: str) -> DataError:
    return DataError(
        f"the manifest {path} is damaged",
        found=found,
        expected=f"a JSON object with {', '.join(field.name for field in fields(Manifest))}",
        remedy="materialize deliveries of that day again: it replaces file and manifest",
    )


def stage_segment(files: Sequence[Path], segment: str, format: str, directory: Path) -> tuple[Path, int]:
    """Writes a segment's devices, ordered by id, to a file in `directory`; returns it and its rows.

    Rows stream from the segment's Parquet files, which are ordered by id already.

    Raises:
        DataError: The segment's files cannot be read.
    """
    path = directory / f"devices.{format}"
    schema = pa.schema([("device_id", pa.string()), ("probability", pa.float32())])
    rows = 0
    with pa_csv.CSVWriter(path, schema) if format == "csv" else pq.ParquetWriter(path, schema) as writer:
        for batch in _batches(files, segment, schema):
            writer.write_batch(batch)
            rows += batch.num_rows
    return path, rows


def _batches(files: Sequence[Path], segment: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    if not files:
        return
    try:
        scan = ds.dataset(files, format="parquet").scanner(
            columns=COLUMNS, filter=pc.field("segment") == segment
        )
        for batch in scan.to_batches():
            yield batch.cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the devices of segment {segment} cannot be read",
            found=error,
            expected=f"Parquet files with the columns segment, {', '.join(COLUMNS)}",
            remedy="materialize segments of that day again; nothing was published",
        ) from error


def count_rows(path: Path, read_bytes: int = READ_BYTES) -> int:
    """Counts a delivered file's rows, read again from it; ids may be as long as they like.

    Args:
        path: CSV as `stage_segment` writes it, every row with its line end, or Parquet.
        read_bytes: Held at once of a CSV file.

    Raises:
        DataError: It should be a Parquet file, and is none.
    """
    if path.suffix == ".parquet":
        return _count_parquet_rows(path)
    # Python's csv reader refuses fields above 131,072 characters, Arrow's streaming one rows above its block.
    # A line end within quotes belongs to an id; a quote within quotes is doubled, so that evenness holds.
    lines, inside_quotes = 0, 0
    with path.open("rb") as stream:
        while chunk := stream.read(read_bytes):
            characters = np.frombuffer(chunk, np.uint8)
            quotes = np.cumsum(characters == ord('"'), dtype=np.uint8) + np.uint8(inside_quotes)
            lines += int(np.count_nonzero((characters == ord("\n")) & (quotes % 2 == 0)))
            inside_quotes = int(quotes[-1] % 2)
    return lines - 1  # the header


def _count_parquet_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the delivered file {path} is damaged",
            found=error,
            expected="a Parquet file, as it was delivered",
            remedy="materialize deliveries of that day again: it replaces file and manifest",
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
