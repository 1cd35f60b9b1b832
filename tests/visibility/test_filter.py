"""What a list filter may say, and how a wrong one is refused."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perdure.errors import Code, ServiceError
from perdure.visibility.filter import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TOKENS,
    And,
    Between,
    Column,
    Comparison,
    Has,
    In,
    IsNull,
    Not,
    Or,
    StartsWith,
    parse,
)

CUSTOM = {"Kw": 2, "Txt": 1, "Num": 3, "Dbl": 4, "Flag": 5, "When": 6, "Tags": 7, "My Attr": 2, "Date": 2, "StatusX": 2}
VISIBLE = IsNull(Column("TemporalNamespaceDivision", "TemporalNamespaceDivision", 2))
KW = Column("Kw", "Kw", 2)
NUM = Column("Num", "Num", 3)
DAY = 86_400_000_000_000


def one(query: str):
    """The only condition of a filter, besides that which hides divisions."""
    conditions = parse(query, CUSTOM).conditions
    assert conditions[0] == VISIBLE
    assert len(conditions) == 2
    return conditions[1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Kw = 'a'", Comparison(KW, "=", "a")),
        ('`Kw` = "a"', Comparison(KW, "=", "a")),
        ("Kw = 'it''s'", Comparison(KW, "=", "it's")),
        (r"Kw = 'it\'s \\ \n'", Comparison(KW, "=", "it's \\ \n")),
        ("Kw <> 'a'", Comparison(KW, "!=", "a")),
        ("Kw In ('a', 'b', 'a')", In(KW, ("a", "b"))),
        ("Kw not in ('a')", Not(In(KW, ("a",)))),
        ("Kw STARTS_WITH '%_'", StartsWith(KW, "%_")),
        ("Kw not starts_with 'a'", Not(StartsWith(KW, "a"))),
        ("Num between -5 and 1.5", Between(NUM, -5, 1.5)),
        ("Num not between 1 and 2", Not(Between(NUM, 1, 2))),
        ("Num is not null", Not(IsNull(NUM))),
        ("not Num is null", Not(IsNull(NUM))),
        ("Num = 1e3", Comparison(NUM, "=", 1000.0)),
        (
            "Num=1 or Num=2 and Num=3",
            Or((Comparison(NUM, "=", 1), And((Comparison(NUM, "=", 2), Comparison(NUM, "=", 3))))),
        ),
        ("not Num=1 or Num=2", Or((Not(Comparison(NUM, "=", 1)), Comparison(NUM, "=", 2)))),
        ("(Num = 1)", Comparison(NUM, "=", 1)),
        ("Num = 1 -- comment", Comparison(NUM, "=", 1)),
        ("`My Attr` = 'a'", Comparison(Column("My Attr", "My Attr", 2), "=", "a")),
        ("Date = 'a'", Comparison(Column("Date", "Date", 2), "=", "a")),
        ("Flag = true", Comparison(Column("Flag", "Flag", 5), "=", True)),
        ("Tags = 'a'", Has(Column("Tags", "Tags", 7), ("a",))),
        ("Tags != 'a'", Not(Has(Column("Tags", "Tags", 7), ("a",)))),
        ("Tags in ('a','b')", Has(Column("Tags", "Tags", 7), ("a", "b"))),
        ("Txt = 'Crème brûlée!'", Has(Column("Txt", "Txt", 1), ("creme", "brulee"))),
        ("ExecutionStatus = 'Running'", Comparison(Column("ExecutionStatus", "ExecutionStatus", 2), "=", 1)),
        ("ExecutionStatus in ('ContinuedAsNew', 2)", In(Column("ExecutionStatus", "ExecutionStatus", 2), (6, 2))),
        (
            "ExecutionDuration > '1h30m'",
            Comparison(Column("ExecutionDuration", "ExecutionDuration", 3), ">", 5_400 * 10**9),
        ),
        ("ExecutionDuration > '2d'", Comparison(Column("ExecutionDuration", "ExecutionDuration", 3), ">", 2 * DAY)),
        (
            "ExecutionDuration > '01:00:01'",
            Comparison(Column("ExecutionDuration", "ExecutionDuration", 3), ">", 3_601 * 10**9),
        ),
        ("ExecutionDuration > 5", Comparison(Column("ExecutionDuration", "ExecutionDuration", 3), ">", 5)),
        ("When > '1970-01-02T01:00:00.000000001+01:00'", Comparison(Column("When", "When", 6), ">", DAY + 1)),
        ("When > 5", Comparison(Column("When", "When", 6), ">", 5)),
        ("ScheduleId = 'a'", Comparison(Column("ScheduleId", "WorkflowId", 2), "=", "a")),
        ("ScheduledById = 'a'", Comparison(Column("ScheduledById", "TemporalScheduledById", 2), "=", "a")),
        ("TemporalWorkflowType = 'a'", Comparison(Column("TemporalWorkflowType", "WorkflowType", 2), "=", "a")),
    ],
)
def test_reads(query, expected):
    assert one(query) == expected


def test_divisions_are_hidden_unless_named():
    assert parse("", CUSTOM).conditions == (VISIBLE,)
    assert parse("  ", CUSTOM).conditions == (VISIBLE,)
    named = parse("TemporalNamespaceDivision = 'x'", CUSTOM).conditions
    assert named == (Comparison(VISIBLE.column, "=", "x"),)
    assert parse("group by TemporalNamespaceDivision", CUSTOM).conditions == ()


def test_group_by():
    assert parse("GROUP BY ExecutionStatus", CUSTOM).group_by.field == "ExecutionStatus"
    filter = parse("Num = 1 group  by `ExecutionStatus`", CUSTOM)
    assert filter.group_by.field == "ExecutionStatus"
    assert filter.conditions == (VISIBLE, Comparison(NUM, "=", 1))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("Kw = 'a", "malformed SQL query: a quote is not closed"),
        ("Kw 'a'", "malformed SQL query: syntax error at position 4 near ''a''"),
        ("Kw = 'a' and", "malformed SQL query: syntax error at position 13 at the end"),
        ("(Kw = 'a'", "malformed SQL query: syntax error at position 10 at the end"),
        ("Kw = 'a')", "malformed SQL query: syntax error at position 9 near ')'"),
        ("Kw = 'a'; drop table visibility", "malformed SQL query: syntax error at position 9 near ';'"),
        ("Kw = 'a' union select 1", "malformed SQL query: syntax error at position 10 near 'union'"),
        ("Num between 1 2", "malformed SQL query: syntax error at position 15 near '2'"),
        ("Num = - -5", "malformed SQL query: syntax error at position 7 near '-'"),
        ("Kw in 'a'", "malformed SQL query: IN takes a list of values in parentheses, for 'Kw'"),
        ("Unknown = 1", "invalid expression: column name 'Unknown' is not a valid search attribute"),
        ("kw = 'a'", "invalid expression: column name 'kw' is not a valid search attribute"),
        ("'a' = Kw", "invalid expression: must be a column name but was 'a'"),
        ("Kw", "invalid expression: incomplete expression: Kw"),
        (
            "Kw = a",
            "operation is not supported: column name on the right side of comparison expression "
            '(did you forget to quote "a"?)',
        ),
        ("Kw = 5", "invalid expression: invalid value type for search attribute Kw of type Keyword: 5 (type: int64)"),
        (
            "Num = 'a'",
            'invalid expression: invalid value type for search attribute Num of type Int: "a" (type: string)',
        ),
        (
            "Flag = 'true'",
            'invalid expression: invalid value type for search attribute Flag of type Bool: "true" (type: string)',
        ),
        ("When = 'today'", "invalid expression: unable to parse datetime 'today'"),
        ("When = '2024-13-01T00:00:00Z'", "invalid expression: unable to parse datetime '2024-13-01T00:00:00Z'"),
        ("ExecutionStatus = 'running'", "invalid expression: invalid ExecutionStatus value 'running'"),
        ("ExecutionStatus = 99", "invalid expression: invalid ExecutionStatus value 99"),
        (
            "ExecutionDuration = 'long'",
            "invalid expression: invalid duration value for search attribute ExecutionDuration: long",
        ),
        ("Kw is true", "invalid expression: 'IS' operator can only be used as 'IS NULL' or 'IS NOT NULL'"),
        ("Kw = null", "invalid expression: unexpected value for search attribute Kw: null"),
        (
            "Kw like 'a'",
            "operation is not supported: operator 'LIKE' not supported for Keyword type search attribute 'Kw'",
        ),
        (
            "Num starts_with 'a'",
            "operation is not supported: operator 'STARTS_WITH' not supported for Int type search attribute 'Num'",
        ),
        (
            "Tags > 'a'",
            "operation is not supported: operator '>' not supported for KeywordList type search attribute 'Tags'",
        ),
        (
            "Txt in ('a')",
            "operation is not supported: operator 'IN' not supported for Text type search attribute 'Txt'",
        ),
        (
            "Txt between 'a' and 'b'",
            "invalid expression: cannot do range condition on search attribute 'Txt' of type Text",
        ),
        (
            "Txt = '...'",
            "invalid expression: unexpected value for Text type search attribute Txt (no tokens found)",
        ),
        ("lower(Kw) = 'a'", "operation is not supported: function expression 'lower' at position 1"),
        ("Kw = 'a' order by StartTime", "operation is not supported: 'ORDER BY' clause"),
        ("Kw = 'a' limit 5", "operation is not supported: 'LIMIT' clause"),
        ("group by Kw", "operation is not supported: 'GROUP BY' clause is not supported for search attribute Kw"),
        (
            "group by ExecutionStatus, Kw",
            "operation is not supported: 'GROUP BY' clause supports only a single field",
        ),
        (f"{'(' * (MAX_DEPTH + 1)}Num = 1", f"nested more than {MAX_DEPTH} levels deep at position {MAX_DEPTH + 1}"),
        (f"{'not ' * (MAX_DEPTH + 1)}Num = 1", f"nested more than {MAX_DEPTH} levels deep at position 121"),
        ("Kw = '" + "a" * MAX_LENGTH + "'", f"the filter has {MAX_LENGTH + 7} characters, more than {MAX_LENGTH}"),
        (
            "Num=1" + " or Num=1" * MAX_TOKENS,
            f"the filter has {3 + 4 * MAX_TOKENS} words and signs, more than {MAX_TOKENS}",
        ),
    ],
)
def test_refuses(query, message):
    with pytest.raises(ServiceError) as raised:
        parse(query, CUSTOM)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert raised.value.message == f"invalid query: {message}"


def test_takes_what_is_just_within_its_limits():
    assert one("(" * MAX_DEPTH + "Num = 1" + ")" * MAX_DEPTH) == Comparison(NUM, "=", 1)
    assert len(one("Num=1" + " or Num=1" * (MAX_TOKENS // 4 - 1)).parts) == MAX_TOKENS // 4
    deep = "not (" * (MAX_DEPTH // 2) + "Num = 1" + ")" * (MAX_DEPTH // 2)
    assert isinstance(one(deep), Not)


WORDS = [
    "Kw",
    "Num",
    "Tags",
    "StartTime",
    "ExecutionStatus",
    "`x",
    "'a'",
    '"b"',
    "1",
    "-",
    "2.5e1",
    "(",
    ")",
    ",",
    "=",
    "!=",
    "<",
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "between",
    "starts_with",
    "group by",
    "order by",
    "like",
    "true",
    ".",
    "select",
    "case",
    "when",
    "interval",
    "date",
    "distinct",
    "from",
    "as",
    "::",
    "?",
    "@",
    "{",
    "[",
    "]",
    "*",
    "/*",
    "--",
    "\x00",
    "\\",
    "é",
    "😀",
    ";",
]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
@example("Kw = 'a' -- '")
@example("{# Kw")
@example("Kw[1] = 2")
@example("Kw::int = 2")
@example("case when Kw = 'a' then 1 end")
def test_any_text_is_read_or_refused(query):
    try:
        parse(query, CUSTOM)
    except ServiceError as e:
        assert e.code is Code.INVALID_ARGUMENT
        assert e.message.startswith("invalid query: ")
