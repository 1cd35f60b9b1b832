"""Which search attributes may be set, to what, and how a wrong one is refused."""

import pytest
from temporalio.api.common.v1 import Payload, SearchAttributes

from perdure.errors import Code, ServiceError
from perdure.visibility import attributes
from perdure.visibility.attributes import decode_stored, decode_value, encode_value, validate, with_types

CUSTOM = {"Kw": 2, "Txt": 1, "Num": 3, "Dbl": 4, "Flag": 5, "When": 6, "Tags": 7}


def json(data: str, encoding: bytes = b"json/plain") -> Payload:
    return Payload(metadata={"encoding": encoding}, data=data.encode())


def fields(**payloads) -> SearchAttributes:
    return SearchAttributes(indexed_fields=payloads)


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        ('"a"', "Kw", "a"),
        ('["a"]', "Kw", "a"),
        ('["a","b"]', "Kw", "a"),
        ("[]", "Kw", None),
        ("null", "Kw", None),
        ("5", "Num", 5),
        ("5", "Dbl", 5.0),
        ("true", "Flag", True),
        ('"1970-01-01T00:00:01.5Z"', "When", 1_500_000_000),
        ('["a","b"]', "Tags", ["a", "b"]),
        ("[]", "Tags", None),
        ("null", "Tags", None),
    ],
)
def test_decodes(data, name, value):
    assert decode_value(json(data), CUSTOM[name]) == value


def test_null_payload_is_unset():
    assert decode_value(json("", b"binary/null"), 2) is None


@pytest.mark.parametrize("kind", attributes.TYPE_NAMES)
def test_encodes_what_it_decodes(kind):
    value = {1: "t", 2: "k", 3: -5, 4: 1.5, 5: False, 6: 1_700_000_000_000_000_001, 7: ["a"]}[kind]
    payload = encode_value(value, kind)
    assert attributes.metadata_type(payload) == kind
    assert decode_value(payload, kind) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (fields(Nope=json("1")), "Namespace default has no mapping defined for search attribute Nope"),
        (fields(WorkflowId=json('"a"')), "WorkflowId attribute can't be set in SearchAttributes"),
        (
            fields(TemporalWorkerDeployment=json('"a"')),
            "TemporalWorkerDeployment attribute can't be set in SearchAttributes",
        ),
        (fields(Num=json('"a"')), "invalid value for search attribute Num of type Int: a"),
        (fields(Num=json("1.5")), "invalid value for search attribute Num of type Int: 1.5"),
        (fields(Num=json(str(1 << 63))), f"invalid value for search attribute Num of type Int: {1 << 63}"),
        (fields(Kw=json("[1, true, null]")), "invalid value for search attribute Kw of type Keyword: [1 true <nil>]"),
        (fields(Tags=json('"a"')), "invalid value for search attribute Tags of type KeywordList: a"),
        (fields(When=json('"today"')), "invalid value for search attribute When of type Datetime: today"),
        (
            fields(Kw=json(f'"{"a" * 3000}"')),
            "search attribute Kw value size 3002 exceeds size limit 2048",
        ),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ServiceError) as raised:
        validate(given, CUSTOM, "default")
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert raised.value.message == message


def test_refuses_too_many_and_too_much():
    two = fields(Kw=json('"a"'), Num=json("1"))
    with pytest.raises(ServiceError, match="number of search attributes 2 exceeds limit 1"):
        validate(two, CUSTOM, "default", keys_limit=1)
    with pytest.raises(ServiceError, match=f"total size of search attributes {two.ByteSize()} exceeds size limit 10"):
        validate(two, CUSTOM, "default", total_size_limit=10)


def test_takes_what_sdks_set():
    validate(SearchAttributes(), CUSTOM, "default")
    validate(fields(Kw=json('"a"'), TemporalChangeVersion=json('["a-1"]'), Num=json("null")), CUSTOM, "default")


def test_types_are_added_and_unknown_names_left_out():
    typed = with_types(fields(Kw=json('"a"'), BuildIds=json('["b"]'), Gone=json("1")), CUSTOM)
    assert {name: p.metadata["type"] for name, p in typed.indexed_fields.items()} == {
        "Kw": b"Keyword",
        "BuildIds": b"KeywordList",
    }
    assert decode_stored(typed.SerializeToString()) == {"Kw": (2, "a"), "BuildIds": (7, ["b"])}


def test_what_cannot_be_read_is_left_out():
    bad = with_types(fields(Num=json('"a"'), Kw=json('"a"')), CUSTOM)
    assert decode_stored(bad.SerializeToString()) == {"Kw": (2, "a")}
    assert decode_stored(b"\xff") == {}


def test_words_of_a_text():
    assert attributes.tokenize("Crème-brûlée, CRÈME! x_1 Straße") == ["creme", "brulee", "x", "1", "strasse"]


def test_reserved_names():
    assert all(map(attributes.is_reserved, ["WorkflowId", "BuildIds", "TemporalAnything", "Memo"]))
    assert not attributes.is_reserved("CustomerId")
