"""Conditions over one event: what they may say, and what is refused by its name."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticCustomError
from pyspark.sql import functions as F

from pipelines.steps.config.condition_language import FUNCTIONS, TYPES
from pipelines.steps.config.predicates import predicate_columns
from tests.conftest import Frame

PAGE = Path(__file__).parent.parent / "docs/conditions.md"
NAMES = [name for names in FUNCTIONS.values() for name in names]


def refusal(sql: str) -> str:
    """What is expected, and the remedy, of a condition that is refused."""
    with pytest.raises(PydanticCustomError) as caught:
        predicate_columns(sql)
    context = caught.value.context or {}
    return f"{context['expected']}; {context['remedy']}"


def test_columns_of_a_condition() -> None:
    sql = "`odd name` = \"x\" and s.inner > 1 and exists(items, i -> i = code) and not A rlike 'b'"

    assert predicate_columns(sql) == ("A", "code", "items", "odd name", "s")


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("coalesce(model, '') not rlike '(?i)^\\\\s*(sdk_gphone|generic_)|SDK built for'", "model"),
        ("quantity > 0 and invoice not like 'C%'", "invoice quantity"),
        ("event = 'purchase' and product in ('car', 'van')", "event product"),
        ("a like any ('x%', 'y') or a ilike all ('X') or a like '!_' escape '!'", "a"),
        ("a is not null and b is not true and c is distinct from d and e <=> f", "a b c d e f"),
        ("case a when 1 then b else c end between 1 and 2.5e3", "a b c"),
        ("if(a, b, c) = 1L and -d * 2 % 3 div 4 > 1.5BD", "a b c d"),
        ("cast(a as decimal(10, 2)) = 1 and try_cast(b as array<int>)[0] = 2 and c::double > 3", "a b c"),
        (
            "date_trunc('week', at) = date'2025-01-06' and at + interval 3 days > timestamp'2025-01-01'",
            "at",
        ),
        ("extract(hour from at) = 3 and position('x' in a) > 0 and trim(leading from a) = 'b'", "a at"),
        ("array(a, b)[0] = c and map('k', d)['k'] = 1 and named_struct('x', e).x = 1", "a b c d e"),
        ("a.b[0].`c d`['k'] = 'x' and transform(l, (x, i) -> x + i)[0] = 1", "a l"),
        ("aggregate(prices, 0D, (sum, x) -> sum + x) > 100", "prices"),
        ("get_json_object(payload, '$.a.b') = 'x' or from_json(payload, 'a int').a = 1", "payload"),
        ("a = 'it''s' or a = 'it\\'s' or a = r'\\d' or a = X'1F' or a || 'x' = \"y\"", "a"),
        ("a & 1 = 1 and b | 2 > 0 and c ^ 1 != 0 and ~d == 1", "a b c d"),
        ("`user` = 'x' and count > 1 and date > day and `rand` = 1", "count date day rand user"),
        ("a like 'today' and b rlike 'now'", "a b"),
        (" or ".join(["a = 1"] * 3_000), "a"),
    ],
)
def test_what_event_logs_need_is_allowed(sql: str, columns: str) -> None:
    assert predicate_columns(sql) == tuple(columns.split())


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        # runs code, or another answer on each run
        ("java_method('java.lang.System', 'setProperty', a, 'x') = 'y'", "java_method"),
        ("reflect('java.util.UUID', 'randomUUID') = a", "reflect"),
        ("a > rand()", "rand"),
        ("a > RAND (1)", "RAND"),
        ("uuid() = a", "uuid"),
        ("shuffle(a)[0] = 1", "shuffle"),
        ("`rand`() > a", "`rand`"),
        ("array(rand())[0] > a", "rand"),
        ("transform(a, x -> rand())[0] > 1", "rand"),
        ("system.builtin.rand() > a", "rand"),
        ("identifier('rand')() > a", "identifier"),
        ("at > current_timestamp()", "current_timestamp"),
        ("at > current_timestamp", "current_timestamp"),
        ("at > now()", "now"),
        ("day = CURRENT_DATE", "CURRENT_DATE"),
        ("at > localtimestamp", "localtimestamp"),
        ("unix_timestamp() > a", "UNIX_TIMESTAMP()"),
        ("raise_error(a)", "raise_error"),
        ("unheard_of(a)", "unheard_of"),
        # Spark takes these, compared with a time, for the moment of the run
        ("at > 'now'", "'now'"),
        ("day = date 'Today'", "'Today'"),
        ("day = ' yesterday UTC'", "' yesterday UTC'"),
        ("day = 'to\\u0064ay'", "'to\\u0064ay'"),
        ("at > '\\156ow'", "'\\156ow'"),
        ("at > '12:30'", "'12:30'"),
        ("at > r'now'", "r'now'"),
        ("day in ('x', 'tomorrow')", "'tomorrow'"),
        ("day = 'to' || 'day'", "'to' || 'day'"),
        ("day = concat('to', 'day')", "CONCAT('to', 'day')"),
        ("at > reverse('won')", "REVERSE('won')"),
        ("at > cast(X'6E6F77' as string)", "CAST("),
        ("at > reverse(named_struct('a', 'won').a)", "REVERSE("),
        # the file, the session
        ("input_file_name() = a", "input_file_name"),
        ("_metadata.file_path = a", "_metadata.file_path"),
        ("`_Metadata`.file_name = a", "`_Metadata`"),
        ("monotonically_increasing_id() = a", "monotonically"),
        ("spark_partition_id() = a", "spark_partition_id"),
        ("version() = a", "version"),
        ("user = a", "user"),
        ("current_user() = a", "current_user"),
        ("session_user = a", "session_user"),
        # more than one event, more than one row
        ("count(*) > 1", "count"),
        ("sum(a) > 1", "sum"),
        ("any(a)", "ANY(a)"),
        ("a rlike any ('x')", "ANY('x')"),
        ("lag(a) over (order by b) = 1", "lag"),
        ("abs(a) over (partition by b) = 1", "over"),
        ("abs(a) filter (where b) = 1", "FILTER"),
        ("a in (select 1)", "SELECT 1"),
        ("exists(select a)", "SELECT a"),
        ("(select max(a)) > 1", "max"),
        ("explode(a)", "explode"),
        ("posexplode(a)", "posexplode"),
        ("sequence(1, a)[0] = 1", "sequence"),
        # operators that nobody has looked at
        ("a at time zone 'UTC' > b", "FROM_UTC_TIMESTAMP"),
        ("a collate x = 'y'", "COLLATE"),
        ("cast(a as string collate x) = 'y'", "COLLATE"),
        ("a.* = 1", "*"),
        ("a -> b", "a, b"),
        ("a is b", "a IS b"),
        ("a in b", "a IN b"),
        ("coalesce(x => a) = 1", "x => a"),
        ("a similar to 'x'", "SIMILAR"),
    ],
)
def test_all_else_is_refused_by_its_name(sql: str, name: str) -> None:
    message = refusal(sql)

    assert message.startswith("a Spark SQL condition over one event, without ")
    assert name in message
    assert re.search(
        r"docs/conditions.md|more than one event|bare name|session|run;|same for|the file|run$|\*$", message
    )


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        # sqlglot ends this text later than Spark does, and would not see rand()
        ("a = r'\\' or rand() > 0 or 'x'", "without r, each backslash twice"),
        ("a = 1 -- \\\n or b = 1", "without comments"),
        ("a = 1 /*+ broadcast(a) */", "without comments"),
        ("a = 1 /* /* */ or rand() > 0 /* */ */", "without comments"),
        ("a = 'x' 'y'", "write the two texts as one"),
        ("a = 1; drop table x", "no second statement"),
        ("a = :x", "no parameters"),
        ("a = ?", "no parameters"),
        ("a = ${x}", "no parameters"),
        ("a = @x", "no parameters"),
        ("a = {{ x }}", "no parameters"),
        ("a = {# x #} 1", "no parameters"),
        ("a\u00a0= 1", "'\\xa0'"),
        ("größe = 1", "`backquotes`"),
        ("1a = 2", "`backquotes`"),
        ("a = 'x", "the quote is never closed"),
        ("a = \\1", "stands in quotes only"),
        ("a as b", "correct the SQL"),
        ("a b", "correct the SQL"),
        ("select a", "correct the SQL"),
    ],
)
def test_what_spark_could_read_otherwise_is_refused(sql: str, reason: str) -> None:
    assert reason in refusal(sql)


@pytest.mark.parametrize(
    ("sql", "limit"),
    [
        ("(" * 5_000 + "a" + ")" * 5_000, "nested at most 100 deep"),
        ("not " * 5_000 + "a", "nested at most 100 deep"),
        ("a" + " + 1" * 5_000 + " = 1", "nested at most 100 deep"),
        ("a" + ".b" * 5_000 + " = 1", "nested at most 100 deep"),
        ("case when a then " * 1_000 + "b" + " end" * 1_000, "nested at most 100 deep"),
        ("a = '" + "x" * 50_000 + "'", "at most 50,000 characters"),
    ],
)
def test_a_condition_out_of_all_proportion_is_refused(sql: str, limit: str) -> None:
    assert limit in refusal(sql)


def test_a_misspelt_function_is_told_the_right_one() -> None:
    assert "did you mean `regexp_replace`?" in refusal("regex_replace(a, 'x', 'y') = 'z'")


def test_the_page_lists_what_the_code_allows() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (`[a-z_0-9]+`(?:, `[a-z_0-9]+`)*) \|$", PAGE.read_text(), re.MULTILINE)
    listed = {topic: tuple(re.findall(r"\w+", names)) for topic, names in rows}
    types = re.search(r"^\| convert \| .* to (.*) \|$", PAGE.read_text(), re.MULTILINE)

    assert listed == dict(FUNCTIONS)
    assert types is not None
    assert tuple(re.findall(r"\w+", types[1])) == tuple(TYPES)


def test_spark_knows_each_function_and_takes_the_operators(frame: Frame) -> None:
    """Two names of a function that is none would do no harm, but mislead."""
    events = frame("a string, n int, at timestamp, l array<int>", [("x", 1, None, [1, 2])])
    known = {row.function for row in events.sparkSession.sql("SHOW FUNCTIONS").collect()}
    conditions = [
        "a like any ('x%', 'y') and a ilike all ('X') and a not like '!_' escape '!'",
        "n is not null and (n = 1) is true and n is distinct from 2 and n <=> 1",
        "case n when 1 then 1 else 2 end between 1 and 2.5e3 and if(n = 1, true, false)",
        "cast(n as decimal(10, 2)) = 1 and try_cast(array('1') as array<int>)[0] = 1 and n::double = 1",
        "coalesce(extract(hour from at) = 3, at + interval 3 days > timestamp'2025-01-01 10:00:00', true)",
        "position('x' in a) = 1 and trim(leading from a) = 'x' and overlay(a placing 'y' from 1) = 'y'",
        "array(n, 2)[0] = 1 and map('k', n)['k'] = 1 and named_struct('x', n).x = 1 and struct(n).n = 1",
        "transform(l, (v, i) -> v + i)[1] = 3 and aggregate(l, 0, (s, v) -> s + v) = 3",
        "exists(l, v -> v = n) and size(filter(l, v -> v > 1)) = 1 and l[0] = 1",
        "a || 'y' = 'xy' and n & 1 = 1 and n | 2 = 3 and n ^ 1 = 0 and ~n = -2 and n div 1 = 1",
        "a != 'it''s' and a <> r'\\d' and cast(a as binary) = X'78' and n = 1L and n == 1.0BD",
    ]
    for sql in conditions:
        assert predicate_columns(sql)

    assert set(NAMES) - known == set()
    counts = events.select(*[F.expr(sql).cast("int") for sql in conditions]).head()
    assert counts is not None
    assert list(counts) == [1] * len(conditions)
