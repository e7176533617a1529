"""Ids of devices: from whatever a file stores them as to one text, and why an id is rejected.

Whatever is accepted here can be stored, scored and delivered: nothing downstream has a limit of its own.
"""

import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F

MAX_ID_CHARACTERS = 256
"""Longer ones are dirt: a payload, a stack trace; ids that are known have 64 at most."""
UUID_BYTES = 16
ZERO_ID = r"^[0:\-\s]*0[0:\-\s]*$"
"""An advertising id of zeros is what a phone sends when its owner forbids tracking."""
WHITE_SPACE = " \t\r\n"
"""Around an id it is dirt; Spark's own trim takes spaces only."""
CONTROL_CHARACTER = r"\p{Cc}"
UNDECODABLE = "\ufffd"
SCIENTIFIC = r"^-?\d+(\.\d+)?E\d+$"
_UUID = r"^(.{8})(.{4})(.{4})(.{4})(.{12})$"
_VISIBLE_ASCII = r"^[!-~]+$"


def id_text(column: Column, arrow: pa.DataType | None) -> Column:
    """The id as text; what bytes say that are no text is U+FFFD.

    16 bytes are a UUID. Only where a file stores ids of any length may they be a text of 16 letters, such
    as an Android id: no UUID of RFC 4122 consists of visible ASCII alone, for its variant bits are not.
    """
    decoded = F.make_valid_utf8(column.cast("string"))
    if arrow is None or not _is_binary(arrow):
        return decoded
    uuid = F.regexp_replace(F.lower(F.hex(column)), _UUID, "$1-$2-$3-$4-$5")
    is_uuid = F.octet_length(column) == UUID_BYTES
    if not pa.types.is_fixed_size_binary(arrow):
        is_uuid &= ~decoded.rlike(_VISIBLE_ASCII)
    return F.when(is_uuid, uuid).otherwise(decoded)


def normalized_id(column: Column, normalizer: str) -> Column:
    """The id without white space around it, in the one spelling that `id_normalizer` asks for."""
    trimmed = F.trim(column, F.lit(WHITE_SPACE))
    if normalizer == "lower":
        return F.lower(trimmed)
    if normalizer == "integer":
        # Ids with gaps are stored as floats: 12345678.0 reads "1.2345678E7", and a gap may read "NaN".
        plain = F.when(trimmed.rlike(SCIENTIFIC), trimmed.try_cast("decimal(38,4)").cast("string"))
        return F.nullif(F.regexp_replace(F.coalesce(plain, trimmed), r"\.0+$", ""), F.lit("NaN"))
    return trimmed


def id_reason(device_id: Column) -> Column:
    """Why the id is none: null for one to keep."""
    return (
        F.when(device_id.isNull() | (device_id == ""), "missing_id")
        .when(F.length(device_id) > MAX_ID_CHARACTERS, "overlong_id")
        .when(device_id.contains(UNDECODABLE), "undecodable_id")
        .when(device_id.rlike(CONTROL_CHARACTER), "control_character_in_id")
        .when(device_id.rlike(ZERO_ID), "zero_id")
    )


def _is_binary(arrow: pa.DataType) -> bool:
    kinds = pa.types
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)
    return any(test(arrow) for test in tests)
