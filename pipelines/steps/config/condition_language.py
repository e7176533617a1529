"""The part of Spark SQL that a condition may use: functions, types, words; docs/conditions.md prints it.

Each function is deterministic, and tells of one row. A function is added here, with a line of its own in
the page.
"""

from collections.abc import Mapping

from sqlglot import expressions as exp

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "Choices and nulls": (
        "coalesce", "equal_null", "greatest", "if", "ifnull", "isnan", "isnotnull", "isnull", "least",
        "nanvl", "nullif", "nullifzero", "nvl", "nvl2", "zeroifnull",
    ),
    "Text": (
        "ascii", "base64", "bit_length", "btrim", "char", "char_length", "character_length", "chr",
        "concat", "concat_ws", "contains", "decode", "encode", "endswith", "find_in_set", "format_number",
        "initcap", "instr", "lcase", "left", "len", "length", "levenshtein", "locate", "lower", "lpad",
        "ltrim", "octet_length", "overlay", "parse_url", "position", "regexp_count", "regexp_extract",
        "regexp_extract_all", "regexp_instr", "regexp_like", "regexp_replace", "regexp_substr", "replace",
        "reverse", "right", "rpad", "rtrim", "soundex", "split", "split_part", "startswith", "substr",
        "substring", "substring_index", "translate", "trim", "ucase", "unbase64", "unhex", "upper",
        "url_decode", "url_encode",
    ),
    "Numbers": (
        "abs", "acos", "asin", "atan", "atan2", "bin", "bit_count", "bround", "cbrt", "ceil", "ceiling",
        "conv", "cos", "degrees", "e", "exp", "floor", "hex", "ln", "log", "log10", "log1p", "log2", "mod",
        "negative", "pi", "pmod", "pow", "power", "radians", "round", "shiftleft", "shiftright", "sign",
        "signum", "sin", "sqrt", "tan", "to_number", "try_add", "try_divide", "try_mod", "try_multiply",
        "try_subtract", "try_to_number", "width_bucket",
    ),
    "Days and times": (
        "add_months", "date", "date_add", "date_diff", "date_format", "date_from_unix_date", "date_part",
        "date_sub", "date_trunc", "datediff", "datepart", "day", "dayname", "dayofmonth", "dayofweek",
        "dayofyear", "extract", "from_unixtime", "from_utc_timestamp", "hour", "last_day", "make_date",
        "make_timestamp", "minute", "month", "monthname", "months_between", "next_day", "quarter", "second",
        "timestamp_micros", "timestamp_millis", "timestamp_seconds", "to_date", "to_timestamp",
        "to_unix_timestamp", "to_utc_timestamp", "trunc", "try_to_timestamp", "unix_date", "unix_micros",
        "unix_millis", "unix_seconds", "unix_timestamp", "weekday", "weekofyear", "year",
    ),
    "Lists, maps and structs": (
        "aggregate", "array", "array_compact", "array_contains", "array_distinct", "array_except",
        "array_intersect", "array_join", "array_max", "array_min", "array_position", "array_remove",
        "array_size", "array_sort", "array_union", "arrays_overlap", "cardinality", "element_at", "exists",
        "filter", "flatten", "forall", "get", "map", "map_contains_key", "map_entries", "map_filter",
        "map_keys", "map_values", "named_struct", "size", "slice", "sort_array", "str_to_map", "struct",
        "transform", "try_element_at",
    ),
    "JSON": (
        "from_json", "get_json_object", "json_array_length", "json_object_keys",
    ),
    "Hashes": (
        "crc32", "hash", "md5", "sha", "sha1", "sha2", "xxhash64",
    ),
}  # fmt: skip
"""Functions that a condition may call, by topic."""

TYPES: Mapping[str, exp.DType] = {
    "boolean": exp.DType.BOOLEAN, "tinyint": exp.DType.TINYINT, "byte": exp.DType.TINYINT,
    "smallint": exp.DType.SMALLINT, "short": exp.DType.SMALLINT, "int": exp.DType.INT,
    "integer": exp.DType.INT, "bigint": exp.DType.BIGINT, "long": exp.DType.BIGINT,
    "float": exp.DType.FLOAT, "real": exp.DType.FLOAT, "double": exp.DType.DOUBLE,
    "decimal": exp.DType.DECIMAL, "dec": exp.DType.DECIMAL, "numeric": exp.DType.DECIMAL,
    "string": exp.DType.TEXT, "char": exp.DType.CHAR, "varchar": exp.DType.VARCHAR,
    "binary": exp.DType.BINARY, "date": exp.DType.DATE, "timestamp": exp.DType.TIMESTAMPTZ,
    "timestamp_ltz": exp.DType.TIMESTAMPLTZ, "timestamp_ntz": exp.DType.TIMESTAMPNTZ,
    "array": exp.DType.ARRAY, "map": exp.DType.MAP,
}  # fmt: skip
"""The types to cast to."""

KEYWORDS = frozenset(
    {
        "all", "and", "any", "as", "between", "both", "case", "cast", "distinct", "div", "else", "end",
        "escape", "false", "for", "from", "ilike", "in", "interval", "is", "leading", "like", "not", "null",
        "or", "placing", "regexp", "rlike", "some", "then", "to", "trailing", "true", "try_cast", "when",
    }
)  # fmt: skip
"""Words of the language itself; each of the other words is a name."""

WITHOUT_ARGUMENTS = frozenset(
    {
        "array", "e", "map", "pi",
    }
)  # fmt: skip
"""Functions that may be called without an argument: without one, others tell of the run."""

OF_CONSTANTS = frozenset(
    {
        "add_months", "array", "date", "date_add", "date_sub", "e", "make_date", "make_timestamp", "map",
        "named_struct", "pi", "struct", "timestamp_micros", "timestamp_millis", "timestamp_seconds",
        "to_date", "to_timestamp",
    }
)  # fmt: skip
"""Functions that may be called without a column: none of them makes a text."""

ANSWERS_OF_THE_SESSION = frozenset(
    {
        "current_catalog", "current_database", "current_date", "current_path", "current_role",
        "current_schema", "current_time", "current_timestamp", "current_timezone", "current_user",
        "localtime", "localtimestamp", "session_user", "user",
    }
)  # fmt: skip
"""Names that Spark takes for functions where no column bears them."""
