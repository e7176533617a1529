"""The rows of raw event files as Spark reads them: one table, whatever columns and types each file has.

- A column that a file lacks is null there.
- A column that fields.yaml or an audience names has one type in all tables and on all days: that of the
  oldest file that has it. A value that another file has in another type is converted where nothing is
  lost (101.0 to 101); else its row says so, and is rejected. Bytes are text; undecodable ones are U+FFFD.
- A column that nobody names may be of any type, come and go; it is kept, so that an audience that names
  it later finds it. What Spark cannot read is left out, nanoseconds excepted, which are kept as numbers.
- A raw column that bears one of our own names is kept as `raw:<name>`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa
from pyspark.errors import PySparkTypeError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    NumericType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from pipelines.steps.errors import DataError
from pipelines.steps.events.event_files import EventFile, is_nanoseconds, is_readable, spellings
from pipelines.steps.events.event_ids import id_text
from pipelines.steps.events.event_names import OUR_COLUMNS, quoted, stored_name

RAW_ID, FILE_PATH, MISTYPED = "our:id", "our:file_path", "our:mistyped"
"""Beside the raw columns: the id as text, the file's path, and the first named column of another type."""

_INTEGERS = (ByteType, ShortType, IntegerType, LongType)
_TIMES = (DateType, TimestampType, TimestampNTZType)
_WHOLE_NUMBERS = "decimal(38,0)"


@dataclass
class _Alike:
    """Files that Spark can read together: no column has two types among them."""

    files: list[EventFile] = field(default_factory=list)
    columns: dict[str, StructField] = field(default_factory=dict)
    folders: dict[str, StructField] = field(default_factory=dict)
    id_type: pa.DataType | None = None


@dataclass(frozen=True)
class _Layout:
    """The columns of the table, by lower-case name, which of them the project's files name, and the id's."""

    columns: Mapping[str, StructField]
    named: frozenset[str]
    id_column: str

    @property
    def schema(self) -> StructType:
        ours = [StructField(name, StringType()) for name in (RAW_ID, FILE_PATH, MISTYPED)]
        return StructType(
            [*ours, *(StructField(stored_name(c.name), c.dataType) for c in self.columns.values())]
        )


def column_type(arrow: pa.DataType) -> DataType:
    """The type that a named column has in our tables: integers are bigint, and bytes are text.

    A column of nothing but nulls, or of a type that Spark cannot read, has none: text will do.
    """
    found = None if pa.types.is_null(arrow) else _spark_type(arrow)
    if found is None:
        return StringType()
    if isinstance(found, _INTEGERS):
        return LongType()
    if isinstance(found, FloatType):
        return DoubleType()
    return StringType() if isinstance(found, BinaryType) else found


def read_rows(
    spark: SparkSession, files: Sequence[EventFile], named: Mapping[str, DataType], id_column: str
) -> DataFrame:
    """All rows of the files, with the raw columns under the names that they are stored by.

    Args:
        spark: The session.
        files: The files; none make a table without rows.
        named: The columns that fields.yaml and audiences name, and their types; each is there, or null.
        id_column: Whom a row is about.

    Returns:
        `our:id`, `our:file_path`, `our:mistyped`, and the raw columns but the id, by name.
    """
    ours = {name.lower(): StructField(name, kind) for name, kind in named.items()}
    groups = _alike(files, id_column, ours)
    columns = dict(ours)
    for name, found in (item for group in groups for item in (group.columns | group.folders).items()):
        if name not in columns:
            columns[name] = found
        elif name not in ours:
            columns[name] = StructField(found.name, _common(columns[name].dataType, found.dataType))
    columns.pop(id_column.lower(), None)
    layout = _Layout(dict(sorted(columns.items())), frozenset(ours), id_column.lower())
    if not groups:
        return spark.createDataFrame([], layout.schema)
    return reduce(DataFrame.union, [_table(spark, group, layout) for group in groups])


def _table(spark: SparkSession, group: _Alike, layout: _Layout) -> DataFrame:
    paths = [_escaped(str(file.path)) for file in group.files]
    raw = spark.read.schema(StructType(list(group.columns.values()))).parquet(*paths)
    path = F.col("_metadata.file_path")
    found = {name: (F.col(quoted(f.name)), f.dataType) for name, f in group.columns.items()}
    found |= {name: (_folder_value(path, f), f.dataType) for name, f in group.folders.items()}
    nothing = F.lit(None).cast("string")
    columns, mistyped = [], []
    for name, column in layout.columns.items():
        value = F.lit(None).cast(column.dataType)
        if name in found:
            value = _converted(*found[name], column.dataType)
        if name in layout.named:
            if name in found and not _always_converts(found[name][1], column.dataType):
                lost = found[name][0].isNotNull() & ~F.coalesce(_kept(*found[name], value), F.lit(False))
                mistyped.append(F.when(lost, F.lit(column.name)))
            if isinstance(column.dataType, StringType):
                value = F.make_valid_utf8(value)
        columns.append(value.alias(stored_name(column.name)))
    device = id_text(found[layout.id_column][0], group.id_type) if layout.id_column in found else nothing
    first_mistyped = F.coalesce(*mistyped) if mistyped else nothing
    return raw.select(device.alias(RAW_ID), path.alias(FILE_PATH), first_mistyped.alias(MISTYPED), *columns)


def _alike(files: Iterable[EventFile], id_column: str, wanted: Mapping[str, StructField]) -> list[_Alike]:
    groups: list[_Alike] = []
    for file in files:
        columns, folders = _columns(file, file.schema, wanted), _columns(file, file.folders, wanted)
        # In a source that is one folder, those named day=… within it say nothing that a row does not.
        folders = {n: column for n, column in folders.items() if n not in OUR_COLUMNS or n in wanted}
        columns = {name: column for name, column in columns.items() if name not in folders}
        ids = [f.type for f in file.columns if f.name.lower() == id_column.lower()]
        id_type = ids[0] if ids else None
        for group in groups:
            known = group.columns | group.folders
            same = all(known[n].dataType == c.dataType for n, c in (columns | folders).items() if n in known)
            # A folder's column in one file and a file's own in another are read in two ways.
            apart = group.columns.keys() & folders.keys() or group.folders.keys() & columns.keys()
            if same and not apart and group.id_type == id_type:
                break
        else:
            group = _Alike(id_type=id_type)
            groups.append(group)
        group.files.append(file)
        group.columns = columns | group.columns
        group.folders = folders | group.folders
    return groups


def _columns(file: EventFile, schema: pa.Schema, wanted: Mapping[str, StructField]) -> dict[str, StructField]:
    """Lower-case name → what Spark reads; without what it cannot read, and no column says nothing."""
    columns = {}
    for arrow in schema:
        name = arrow.name.lower()
        same = spellings(schema, arrow.name)
        if name in wanted and len(same) > 1:
            raise DataError(
                f"{file.shown}: the names of columns differ in case only",
                found=", ".join(same),
                expected="names that differ in more than case, which Spark does not tell apart",
                remedy="write the file again with other names",
            )
        if pa.types.is_null(arrow.type) or len(same) > 1:
            continue
        found = _spark_type(arrow.type)
        if name in wanted:
            if found is None or not is_readable(arrow.type):
                raise DataError(
                    f"{file.shown}: the column {arrow.name!r} is of a type that Spark cannot read",
                    found=str(arrow.type),
                    expected=wanted[name].dataType.simpleString(),
                    remedy="write the file again with this type",
                )
            if _is_nested(found) and type(found) is type(wanted[name].dataType):
                found = wanted[name].dataType  # Parquet gives the inner columns that are asked for
        if found is not None:
            columns[name] = StructField(arrow.name, found)
    return columns


def _spark_type(arrow: pa.DataType) -> DataType | None:
    """What Spark reads a Parquet column of this type as; None where it cannot."""
    kinds = pa.types
    if kinds.is_dictionary(arrow):
        return _spark_type(arrow.value_type)
    if kinds.is_time64(arrow) or kinds.is_duration(arrow) or is_nanoseconds(arrow):
        return LongType()
    if kinds.is_time32(arrow):
        return IntegerType()
    if kinds.is_large_string(arrow) or kinds.is_string_view(arrow):
        return StringType()
    if kinds.is_fixed_size_binary(arrow) or kinds.is_large_binary(arrow) or kinds.is_binary_view(arrow):
        return BinaryType()
    unsigned = {pa.uint8(): ShortType(), pa.uint16(): IntegerType(), pa.uint32(): LongType()}
    if arrow in unsigned:
        return unsigned[arrow]
    if arrow == pa.uint64():
        return DecimalType(20, 0)
    if kinds.is_map(arrow):
        key, item = _spark_type(arrow.key_type), _spark_type(arrow.item_type)
        return None if key is None or item is None else MapType(key, item)
    if kinds.is_list(arrow) or kinds.is_large_list(arrow) or kinds.is_fixed_size_list(arrow):
        element = _spark_type(arrow.value_type)
        return None if element is None else ArrayType(element)
    if kinds.is_struct(arrow):
        fields = [(f.name, _spark_type(f.type)) for f in arrow]
        readable = [StructField(name, kind) for name, kind in fields if kind is not None]
        return StructType(readable) if len(readable) == len(fields) else None
    try:
        return from_arrow_type(arrow, prefer_timestamp_ntz=True)
    except PySparkTypeError:
        return None


def _is_nested(kind: DataType) -> bool:
    return isinstance(kind, ArrayType | MapType | StructType)


def _common(one: DataType, other: DataType) -> DataType:
    """A type for a column that nobody names and that files have in two types."""
    if one == other:
        return one
    if isinstance(one, _INTEGERS) and isinstance(other, _INTEGERS):
        return LongType()
    if isinstance(one, NumericType) and isinstance(other, NumericType):
        return DoubleType()
    return StringType()


def _always_converts(found: DataType, wanted: DataType) -> bool:
    return (
        found == wanted
        or isinstance(wanted, StringType)
        or (isinstance(found, _INTEGERS) and isinstance(wanted, LongType | DoubleType))
        or (isinstance(found, FloatType) and isinstance(wanted, DoubleType))
        or (isinstance(found, _TIMES) and isinstance(wanted, TimestampType))
    )


def _converted(value: Column, found: DataType, wanted: DataType) -> Column:
    """The value in another type; null where it has no such value."""
    if found == wanted:
        return value
    if isinstance(wanted, StringType):
        return text(value, found)
    if isinstance(found, FloatType) and isinstance(wanted, DoubleType):
        return value.cast("string").cast("double")  # 0.1, not 0.10000000149011612
    if isinstance(found, DoubleType | FloatType) and isinstance(wanted, LongType):
        return F.when(value == F.rint(value), value.try_cast(_WHOLE_NUMBERS).try_cast("bigint"))
    if isinstance(found, NumericType) and isinstance(wanted, NumericType):
        return value.try_cast(wanted)
    if isinstance(found, _TIMES) and isinstance(wanted, _TIMES):
        return value.cast(wanted)
    if isinstance(found, StringType | BinaryType) and not _is_nested(wanted):
        return value.cast("string").try_cast(wanted)
    return F.lit(None).cast(wanted)


def _kept(value: Column, found: DataType, converted: Column) -> Column:
    """Whether the conversion lost nothing; of a number that is none there is nothing to lose."""
    if isinstance(found, DoubleType | FloatType):
        return F.isnan(value) | (converted == value)
    if isinstance(found, NumericType):
        return converted == value
    return converted.isNotNull()


def text(value: Column, found: DataType) -> Column:
    """A value as text: a whole number has no decimal point, however the file stored it."""
    if isinstance(found, DoubleType | FloatType):
        whole = value.try_cast(_WHOLE_NUMBERS).cast("string")
        return F.coalesce(F.when(value == F.rint(value), whole), value.cast("string"))
    return value.cast("string")


def _folder_value(path: Column, column: StructField) -> Column:
    # Decoded twice: once from the URI, once as Hive writes a value into a folder's name.
    value = F.regexp_extract(_decoded(path), rf"/\Q{column.name}\E=([^/]*)/", 1)
    value = F.nullif(F.nullif(_decoded(value), F.lit("__HIVE_DEFAULT_PARTITION__")), F.lit(""))
    return value.try_cast(column.dataType)


def _decoded(value: Column) -> Column:
    return F.url_decode(F.replace(value, F.lit("+"), F.lit("%2B")))


def _escaped(path: str) -> str:
    """A path that Spark, which takes it for a glob, reads as it is."""
    return "".join(f"\\{character}" if character in "*?[]{}\\" else character for character in path)
