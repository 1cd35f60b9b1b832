"""What every store of visibility does: it finds what the filter says, page by page, whatever the filter holds."""

import asyncio
import itertools
from contextlib import asynccontextmanager
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from temporalio.api.common.v1 import SearchAttributes
from tests import databases

from perdure.errors import Code, ServiceError
from perdure.persistence.mysql import open_store as open_mysql
from perdure.persistence.postgresql import open_store as open_postgresql
from perdure.persistence.sqlite.database import open_database
from perdure.visibility.api import VisibilityRecord
from perdure.visibility.attributes import PREDEFINED, encode_value, format_datetime
from perdure.visibility.evaluate import evaluate
from perdure.visibility.filter import parse
from perdure.visibility.mysql import MysqlVisibility
from perdure.visibility.postgresql import PostgresVisibility
from perdure.visibility.sqlite import SqliteVisibility

CUSTOM = {"Kw": 2, "Txt": 1, "Num": 3, "Dbl": 4, "Flag": 5, "When": 6, "Tags": 7, "o'dd \"%name": 2}
NS = "namespace-1"
OTHER = "namespace-2"
RUNNING, COMPLETED, FAILED = 1, 2, 3
counter = itertools.count()


def search_attributes(**values) -> bytes:
    types = {**CUSTOM, **PREDEFINED}
    fields = {name: encode_value(value, types[name]) for name, value in values.items()}
    return SearchAttributes(indexed_fields=fields).SerializeToString(deterministic=True)


def record(run_id: str, **fields) -> VisibilityRecord:
    values = {
        "namespace_id": NS,
        "workflow_id": f"workflow-{run_id}",
        "run_id": run_id,
        "version": 1,
        "workflow_type": "Order",
        "task_queue": "queue",
        "status": RUNNING,
        "start_time": 1000,
        "execution_time": 1000,
        "root_workflow_id": f"workflow-{run_id}",
        "root_run_id": run_id,
    }
    return VisibilityRecord(**{**values, **fields})


@asynccontextmanager
async def sqlite():
    database = await open_database(None)
    visibility = SqliteVisibility(database)
    await visibility.open()
    yield visibility
    await database.close()


@cache
def postgresql_url() -> str:
    return databases.postgresql().url()


@asynccontextmanager
async def postgresql():
    store = await open_postgresql(postgresql_url())
    await store.database.write("DELETE FROM visibility")
    await store.database.write("DELETE FROM visibility_attributes")
    yield PostgresVisibility(store.database)
    await store.close()


@cache
def mysql_url() -> str:
    return databases.mysql().url()


@asynccontextmanager
async def mysql():
    store = await open_mysql(mysql_url())
    await store.database.repeatable(b"DELETE FROM visibility")
    await store.database.repeatable(b"DELETE FROM visibility_attributes")
    yield MysqlVisibility(store.database)
    await store.close()


BACKENDS = [sqlite, postgresql, mysql]
"""Each gives an empty store."""

each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__)


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__)
async def store(request):
    async with request.param() as store:
        yield store


async def list_all(store, query="", page_size=1000, namespace=NS):
    runs, token = [], b""
    while True:
        page = await store.list(namespace, query, CUSTOM, page_size, token)
        assert len(page.records) <= page_size
        runs += [r.run_id for r in page.records]
        token = page.next_page_token
        if not token:
            return runs


async def test_a_record_comes_back_as_it_was_written(store):
    closed = record(
        "a",
        status=COMPLETED,
        close_time=2000,
        history_length=5,
        history_size_bytes=600,
        state_transition_count=7,
        memo=b"memo",
        search_attributes=search_attributes(Kw="x", Tags=["a", "b"]),
        parent_workflow_id="parent",
        parent_run_id="parent-run",
    )
    await store.upsert(closed)
    assert await store.get(NS, "a") == closed
    assert (await store.list(NS, "", CUSTOM, 10, b"")).records == [closed]
    assert await store.get(OTHER, "a") is None
    assert await list_all(store, namespace=OTHER) == []


async def test_a_lower_version_is_ignored(store):
    await store.upsert(record("a", version=2, status=COMPLETED, close_time=2000))
    await store.upsert(record("a", version=1))
    assert (await store.get(NS, "a")).status == COMPLETED
    await store.delete(NS, "a", 1)
    assert await store.get(NS, "a") is not None
    await store.delete(NS, "a", 2)
    assert await store.get(NS, "a") is None
    assert (await store.count(NS, "", CUSTOM)).count == 0


async def test_values_that_were_replaced_or_deleted_are_not_found(store):
    await store.upsert(record("a", search_attributes=search_attributes(Kw="x", Txt="one two")))
    await store.upsert(record("a", version=2, search_attributes=search_attributes(Kw="y")))
    assert await list_all(store, "Kw = 'x'") == []
    assert await list_all(store, "Txt = 'one'") == []
    assert await list_all(store, "Kw = 'y'") == ["a"]
    await store.upsert(record("a", version=3))
    assert await list_all(store, "Kw = 'y'") == []
    assert await list_all(store, "Kw is null") == ["a"]
    await store.upsert(record("a", version=4, search_attributes=search_attributes(Kw="y")))
    await store.delete(NS, "a", 5)
    await store.upsert(record("b"))  # may get the place of the deleted one
    assert await list_all(store, "Kw = 'y'") == []


async def test_an_attribute_that_changed_its_type_does_not_meet_old_values(store):
    await store.upsert(record("a", search_attributes=search_attributes(Kw="5")))
    page = await store.list(NS, "Kw > 1 or Kw <= 1", {"Kw": 3}, 10, b"")
    assert page.records == []


async def test_open_runs_come_first_then_the_last_closed(store):
    await store.upsert(record("open-old", start_time=1))
    await store.upsert(record("open-new", start_time=9))
    await store.upsert(record("closed-early", start_time=5, status=COMPLETED, close_time=20))
    await store.upsert(record("closed-late", start_time=2, status=FAILED, close_time=30))
    assert await list_all(store) == ["open-new", "open-old", "closed-late", "closed-early"]
    assert await list_all(store, "CloseTime is not null") == ["closed-late", "closed-early"]


async def test_divisions_are_hidden_unless_named(store):
    await store.upsert(record("user"))
    await store.upsert(record("system", search_attributes=search_attributes(TemporalNamespaceDivision="scheduler")))
    assert await list_all(store) == ["user"]
    assert await list_all(store, "TemporalNamespaceDivision = 'scheduler'") == ["system"]
    any_division = "TemporalNamespaceDivision is null or TemporalNamespaceDivision is not null"
    assert sorted(await list_all(store, any_division)) == ["system", "user"]
    groups = (await store.count(NS, "group by TemporalNamespaceDivision", CUSTOM)).groups
    assert [(g.values, g.count) for g in groups] == [([None], 1), (["scheduler"], 1)]


async def test_counts_by_status(store):
    for i, status in enumerate([RUNNING, COMPLETED, COMPLETED, 6]):
        await store.upsert(record(f"r{i}", status=status, close_time=0 if status == RUNNING else 5))
    counted = await store.count(NS, "StartTime > 0 GROUP BY ExecutionStatus", CUSTOM)
    assert counted.count == 4
    assert [(g.values, g.count) for g in counted.groups] == [
        (["Running"], 1),
        (["Completed"], 2),
        (["ContinuedAsNew"], 1),
    ]
    assert (await store.count(NS, "ExecutionStatus = 'Completed'", CUSTOM)).count == 2
    with pytest.raises(ServiceError, match="GROUP BY"):
        await store.list(NS, "group by ExecutionStatus", CUSTOM, 10, b"")


@pytest.mark.parametrize("token", [b"x", b"\x93\x01\x02", b"\x93\x01\xcf" + b"\xff" * 8 + b"\xa1r", b"\xc0"])
async def test_a_wrong_page_token_is_refused(store, token):
    with pytest.raises(ServiceError) as raised:
        await store.list(NS, "", CUSTOM, 10, token)
    assert raised.value.code is Code.INVALID_ARGUMENT


async def test_pages_make_up_the_whole_while_others_are_inserted(store):
    runs = [
        record(
            f"r{i:03}",
            start_time=i // 4,
            status=RUNNING if i % 3 else COMPLETED,
            close_time=0 if i % 3 else 100 + i // 6,
            search_attributes=search_attributes(Kw="x"),
        )
        for i in range(150)
    ]
    await asyncio.gather(*map(store.upsert, runs))
    for query in ("", "Kw = 'x'", "WorkflowType = 'Order'", "StartTime >= 0", "WorkflowId starts_with 'workflow-r'"):
        whole = (await store.list(NS, query, CUSTOM, 1000, b"")).records
        assert len(whole) >= 150
        paged, token = [], b""
        for i in itertools.count():
            page = await store.list(NS, query, CUSTOM, 7, token)
            paged += page.records
            await store.upsert(
                record(f"{query}{i}", start_time=10_000 + next(counter), search_attributes=search_attributes(Kw="x"))
            )  # newer than all: before the first page
            token = page.next_page_token
            if not token:
                break
        assert [r.run_id for r in paged] == [r.run_id for r in whole]


async def test_the_longest_filters_run(store):
    await store.upsert(record("a", search_attributes=search_attributes(Num=3, Tags=["t"])))
    numbers = ", ".join(map(str, range(2000)))
    assert await list_all(store, f"Num in ({numbers})") == ["a"]
    assert await list_all(store, " or ".join(f"Num = {i}" for i in range(1000))) == ["a"]
    assert await list_all(store, " and ".join(f"Tags != '{i}'" for i in range(1000))) == ["a"]
    assert await list_all(store, " and ".join(f"WorkflowId != '{i}'" for i in range(1000))) == ["a"]
    assert await list_all(store, "not (" * 15 + "Num = 4" + ")" * 15) == ["a"]


async def test_persists_in_a_file(tmp_path):
    path = str(tmp_path / "perdure.db")
    database = await open_database(path)
    store = SqliteVisibility(database)
    await store.open()
    await store.upsert(record("a", search_attributes=search_attributes(Kw="x")))
    await database.close()
    database = await open_database(path)
    store = SqliteVisibility(database)
    await store.open()
    assert await list_all(store, "Kw = 'x'") == ["a"]
    await database.close()


# --- what SQL finds is what the filter says --------------------------------------------------------------------------

STRINGS = ["", "a", "ab", "A", "b", "é", "e", "퟿", "\U0010ffff", "a'b", '"', "%", "\\", "a b", "1", "💥"]
TIMES = [0, 1, 5, 10, 20, 1_700_000_000_123_456_789]
NUMBERS = [-3, 0, 1, 2, 1 << 62]
FLOATS = [-1.5, 0.0, 1.0, 2.25, 1e300]
storable = st.characters(exclude_characters="\0", exclude_categories=["Cs"])  # what the frontend takes
string = st.one_of(st.sampled_from(STRINGS), st.text(storable, max_size=3))
asked_string = st.one_of(string, st.text(max_size=3))
time = st.sampled_from(TIMES)
ATTRIBUTES = {
    "Kw": string,
    "o'dd \"%name": string,
    "Txt": st.lists(string, max_size=3).map(" ".join),
    "Num": st.sampled_from(NUMBERS),
    "Dbl": st.sampled_from(FLOATS),
    "Flag": st.booleans(),
    "When": time,
    "Tags": st.lists(string, min_size=1, max_size=3),
    "BuildIds": st.lists(string, min_size=1, max_size=3),
    "TemporalNamespaceDivision": st.sampled_from(["a", "b"]),
    "TemporalSchedulePaused": st.booleans(),
}


@st.composite
def records(draw):
    closed = draw(st.booleans())
    fields = draw(st.fixed_dictionaries({}, optional=ATTRIBUTES))
    if draw(st.integers(0, 3)):
        fields.pop("TemporalNamespaceDivision", None)
    return record(
        f"run-{next(counter)}",
        workflow_id=draw(string),
        workflow_type=draw(string),
        task_queue=draw(string),
        status=draw(st.integers(2, 7)) if closed else RUNNING,
        start_time=draw(time),
        execution_time=draw(time),
        close_time=draw(st.sampled_from(TIMES[1:])) if closed else 0,
        history_length=draw(st.sampled_from([0, 1, 2])),
        history_size_bytes=draw(st.sampled_from([0, 1, 2])),
        state_transition_count=draw(st.sampled_from([0, 1, 2])),
        search_attributes=search_attributes(**fields),
        parent_workflow_id=draw(string),
        parent_run_id=draw(string),
        root_workflow_id=draw(string),
        root_run_id=draw(string),
    )


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


LITERALS = {
    1: st.sampled_from(["a", "e b", "É 1", "💥"]).map(lambda text: quoted(text) if text != "💥" else "'a💥'"),
    2: asked_string.map(quoted),
    3: st.sampled_from([*NUMBERS, *FLOATS, 10**25]).map(repr),
    4: st.sampled_from([*NUMBERS, *FLOATS]).map(repr),
    5: st.sampled_from(["true", "false"]),
    6: st.one_of(st.sampled_from(TIMES).map(repr), st.sampled_from(TIMES).map(lambda t: f"'{format_datetime(t)}'")),
    7: asked_string.map(quoted),
}
FIELDS = {
    **dict.fromkeys(("WorkflowId", "RunId", "WorkflowType", "TaskQueue", "ParentWorkflowId", "RootRunId"), 2),
    **dict.fromkeys(("HistoryLength", "HistorySizeBytes", "StateTransitionCount"), 3),
    **dict.fromkeys(("StartTime", "ExecutionTime", "CloseTime"), 6),
    "ExecutionStatus": 2,
    "ExecutionDuration": 3,
    **{name: kind for name, kind in PREDEFINED.items() if name in ATTRIBUTES},
    **{f"`{name}`": kind for name, kind in CUSTOM.items()},
}
STATUS = st.sampled_from(["'Running'", "'Completed'", "3", "'ContinuedAsNew'"])
DURATION = st.sampled_from(["0", "-5", "5", "'10ns'", "'1h'"])


@st.composite
def comparisons(draw):
    name, kind = draw(st.sampled_from(sorted(FIELDS.items())))
    literal = {"ExecutionStatus": STATUS, "ExecutionDuration": DURATION}.get(name, LITERALS[kind])
    shapes = ["null"]
    shapes += {1: ["equal"], 5: ["compare", "in"], 7: ["equal", "in"]}.get(kind, ["compare", "in", "between"])
    if kind == 2 and name != "ExecutionStatus":
        shapes.append("starts")
    shape = draw(st.sampled_from(shapes))
    negated = draw(st.sampled_from(["", "NOT "]))
    if shape == "null":
        return f"{name} IS {negated}NULL"
    if shape == "equal":
        return f"{name} {draw(st.sampled_from(['=', '!=']))} {draw(literal)}"
    if shape == "compare":
        return f"{name} {draw(st.sampled_from(['=', '!=', '<', '<=', '>', '>=']))} {draw(literal)}"
    if shape == "in":
        return f"{name} {negated}IN ({', '.join(draw(st.lists(literal, min_size=1, max_size=3)))})"
    if shape == "between":
        return f"{name} {negated}BETWEEN {draw(literal)} AND {draw(literal)}"
    return f"{name} {negated}STARTS_WITH {draw(literal)}"


def combined(parts):
    pair = st.tuples(parts, st.sampled_from(["AND", "OR"]), parts)
    return st.one_of(pair.map(lambda p: f"({p[0]} {p[1]} {p[2]})"), parts.map(lambda p: f"NOT ({p})"))


conditions = st.recursive(comparisons(), combined, max_leaves=5)
queries = st.lists(conditions, min_size=1, max_size=3).map(" AND ".join)


async def check_oracle(backend, stored, asked):
    async with backend() as store:
        await check(store, stored, asked)


async def check(store, stored, asked):
    await asyncio.gather(*map(store.upsert, stored))
    for query in asked:
        filter = parse(query, CUSTOM)
        expected = [r for r in stored if evaluate(filter, r)]
        never = 1 << 63
        expected.sort(key=lambda r: (-(r.close_time or never), -r.start_time, r.run_id))
        assert await list_all(store, query) == [r.run_id for r in expected], query
        assert await list_all(store, query, page_size=2) == [r.run_id for r in expected], query
        counted = await store.count(NS, f"{query} GROUP BY ExecutionStatus", CUSTOM)
        assert counted.count == (await store.count(NS, query, CUSTOM)).count == len(expected)


@each_backend
@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=8), st.lists(queries, min_size=1, max_size=12))
def test_finds_what_the_filter_says(backend, stored, asked):
    asyncio.run(check_oracle(backend, stored, asked))


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_backend
@settings(max_examples=500, deadline=None)
@given(st.lists(records(), max_size=20), st.lists(queries, min_size=1, max_size=12))
def test_finds_what_the_filter_says_at_length(backend, stored, asked):
    asyncio.run(check_oracle(backend, stored, asked))


@each_backend
@settings(max_examples=60, deadline=None)
@given(value=st.text(storable, max_size=30), name=st.text(storable, min_size=1, max_size=20))
def test_values_and_names_are_never_sql(backend, value, name):
    async def run(store):
        field = {name: encode_value(value, 2)}
        encoded = SearchAttributes(indexed_fields=field).SerializeToString()
        await store.upsert(record("a", workflow_type=value, search_attributes=encoded))
        custom = {name: 2}
        found = await store.list(NS, f"WorkflowType = {quoted(value)}", custom, 10, b"")
        assert [r.run_id for r in found.records] == ["a"]
        try:
            found = await store.list(NS, f"`{name}` = {quoted(value)}", custom, 10, b"")
        except ServiceError as e:
            assert "`" in name or e.code is Code.INVALID_ARGUMENT
        else:
            if "`" not in name:
                assert [r.run_id for r in found.records] == ["a"]
        for query in (value, f"{name} = '{value}'", f"WorkflowType = '{value}' AND RunId = '{name}'"):
            try:
                await store.list(NS, query, custom, 10, b"")
            except ServiceError as e:
                assert e.code is Code.INVALID_ARGUMENT
        assert await store.get(NS, "a") is not None

    async def run_with_store():
        async with backend() as store:
            await run(store)

    asyncio.run(run_with_store())
