"""Bodies and query strings: what is no JSON, and what is missing, is said by name and never quoted."""

import doctest

import pytest

from memory.errors import InvalidRequest
from proxy.errors import NoJson
from proxy.rest import bodies
from proxy.rest.bodies import HumanQuery, HygieneRun, ItemAdd, ItemPage, parse, parse_query


def test_a_body_is_read():
    given = parse(b'{"content": "a", "content_type": "note", "of_another_client": 1}', ItemAdd)
    assert (given.content, given.content_type, given.priority) == ("a", "note", 0)


def test_an_empty_body_is_an_empty_object():
    assert parse(b"", HygieneRun).dry_run is False


@pytest.mark.parametrize(
    "raw", [b"[]", b'"secret"', b"null", b"{", b'{"a":', b"\xff\xfe", b'{"content": NaN}', b"[" * 10_000, b"secret"]
)
def test_what_is_no_object_is_refused_without_its_words(raw):
    with pytest.raises(NoJson) as refused:
        parse(raw, ItemAdd)
    assert "secret" not in str(refused.value)
    assert str(refused.value).startswith("The body ")


def test_half_a_surrogate_pair_is_left_to_the_check_that_knows_the_field():
    assert parse(rb'{"content": "a\ud800", "content_type": "note"}', ItemAdd).content == "a\ud800"


def test_a_missing_field_is_named():
    with pytest.raises(InvalidRequest, match="content_type is required") as refused:
        parse(b'{"content": "a"}', ItemAdd)
    assert refused.value.field == "content_type"


@pytest.mark.parametrize(
    ("type", "pairs", "field", "said"),
    [
        (ItemPage, [("limit", "many")], "limit", "limit must be a whole number, got text"),
        (ItemPage, [("limit", "1"), ("limit", "2")], "limit", "limit must be there once"),
        (HumanQuery, [("wait", "long")], "wait", "wait must be a number, got text"),
    ],
)
def test_a_wrong_parameter_is_named(type, pairs, field, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        parse_query(pairs, type)
    assert refused.value.field == field


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(bodies).failed == 0
