"""What a caller gives is taken as it is or refused in a sentence that helps, and in the same one everywhere."""

import json
import math
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory import check
from memory.errors import InvalidRequest, NotFound, TooLarge
from memory.nouns import CompressionStrategy, TaskStatus

any_text = st.text(st.characters(), max_size=20)  # surrogates, too
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    any_text,
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
)
good_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | good_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(good_text, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth > 1 else {}


def doubled(times: int) -> list[Any]:
    """A small value that is endless as JSON: each level holds the one below twice."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check.text(None, "content"), "content must be text, got null"),
        (lambda: check.text(b"a", "content"), "content must be text, got bytes"),
        (lambda: check.text("", "content"), "content must not be empty"),
        (lambda: check.text(" \n\t\u2003", "content"), "content must not be empty"),
        (
            lambda: check.text("\0", "note", empty=True),
            "note must not hold NUL or half a surrogate pair (at character 1)",
        ),
        (
            lambda: check.text("a" * 16 + "\ud800", "c"),
            "c must not hold NUL or half a surrogate pair (at character 17)",
        ),
        (lambda: check.text("a" * 1_001, "title", 1_000), "title must have at most 1,000 characters, got 1,001"),
        (lambda: check.integer(12, "priority", 0, 10), "priority must be 0 to 10, got 12"),
        (lambda: check.integer(-1, "limit", 1, 1_000), "limit must be 1 to 1,000, got -1"),
        (lambda: check.integer(True, "priority", 0, 10), "priority must be a whole number from 0 to 10, got bool"),
        (lambda: check.integer("5", "priority", 0, 10), "priority must be a whole number from 0 to 10, got str"),
        (lambda: check.integer(5.0, "priority", 0, 10), "priority must be a whole number from 0 to 10, got float"),
        (lambda: check.integer(None, "priority", 0, 10), "priority must be a whole number from 0 to 10, got null"),
        (lambda: check.integer(10**9_999, "n", 0, 10), "n must be 0 to 10, got a number of more than 128 bits"),
        (lambda: check.number(math.nan, "progress", 0, 100), "progress must be 0 to 100, got nan"),
        (lambda: check.number(math.inf, "progress", 0, math.inf), "progress must be 0 to inf, got inf"),
        (lambda: check.number(10**9_999, "p", 0, 1), "p must be 0 to 1, got a number of more than 128 bits"),
        (lambda: check.number(False, "progress", 0, 100), "progress must be a number from 0 to 100, got bool"),
        (lambda: check.flag(1, "dry_run"), "dry_run must be true or false, got int"),
        (
            lambda: check.choice("done", "status", TaskStatus),
            "status must be one of pending, in_progress, completed, cancelled, got 'done'",
        ),
        (
            lambda: check.choice(["x"], "strategy", CompressionStrategy),
            "strategy must be one of aggressive, balanced, conservative, got list",
        ),
        (lambda: check.texts("abc", "tools"), "tools must be a list of texts, got str"),
        (lambda: check.texts(["a", " "], "tools"), "tools[1] must not be empty"),
        (lambda: check.texts(["a"] * 3, "tools", 2), "tools must have at most 2 entries, got 3"),
        (lambda: check.metadata([]), "metadata must be an object, got list"),
        (lambda: check.metadata({1: 2}), "metadata must have texts as keys"),
        (lambda: check.metadata({"a": {2: 2}}), "metadata must have texts as keys"),
        (lambda: check.metadata({"a": [math.nan]}), "metadata must hold finite numbers"),
        (lambda: check.metadata({"a": 2**64}), "metadata must hold whole numbers of at most 64 bits"),
        (lambda: check.metadata({"a": {1}}), "metadata must hold JSON values, got set"),
        (lambda: check.metadata({"\0": 1}), "metadata must not hold NUL or half a surrogate pair (at character 1)"),
        (
            lambda: check.metadata({"a": ["\udfff"]}),
            "metadata must not hold NUL or half a surrogate pair (at character 1)",
        ),
        (lambda: check.metadata(nested(33)), "metadata must not be nested deeper than 32"),
        (lambda: check.metadata({"a": "ä" * 32_765}), "metadata must have at most 65,536 bytes as JSON, got 65,539"),
        (lambda: check.metadata({"a": doubled(28)}), "metadata must have at most 65,536 bytes as JSON"),
    ],
)
def test_what_is_wrong_is_told_with_the_field_and_what_is_allowed(call, message):
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert str(caught.value) == message
    assert caught.value.field
    assert message.startswith(caught.value.field)


def test_a_value_that_holds_itself_is_refused():
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(InvalidRequest, match="nested deeper"):
        check.metadata(endless)


def test_a_long_wrong_choice_is_not_told_whole():
    with pytest.raises(InvalidRequest) as caught:
        check.choice("secret " * 1_000, "status", TaskStatus)
    assert len(str(caught.value)) < 200


def test_content_is_bounded_in_bytes_and_never_quoted():
    assert check.content("ä" * 5, 10) == "ä" * 5
    with pytest.raises(TooLarge) as caught:
        check.content("ä" * 6, 10)
    assert str(caught.value) == "content must have at most 10 bytes, got 12"
    with pytest.raises(InvalidRequest) as refused:
        check.content("secret\0", 10)
    assert "secret" not in str(refused.value)


def test_what_is_refused_is_a_value_error_for_programs():
    with pytest.raises(ValueError, match="priority"):
        check.integer(12, "priority", 0, 10)


@given(any_text)
def test_text_is_taken_exactly_where_postgresql_takes_it_and_it_says_something(value):
    try:
        value.encode()
        storable = "\0" not in value and bool(value.strip())
    except UnicodeEncodeError:
        storable = False
    if storable:
        assert check.text(value, "content") is value
    else:
        with pytest.raises(InvalidRequest):
            check.text(value, "content")


@given(anything, st.integers(-5, 5), st.integers(0, 10))
def test_a_whole_number_comes_back_as_it_was_and_nothing_else_is_one(value, low, span):
    if type(value) is int and low <= value <= low + span:
        assert check.integer(value, "n", low, low + span) == value
    else:
        with pytest.raises(InvalidRequest):
            check.integer(value, "n", low, low + span)


@given(anything)
def test_a_number_is_finite_and_in_its_range(value):
    if type(value) in (int, float) and 0 <= value <= 100:
        assert check.number(value, "n", 0, 100) == value
        assert type(check.number(value, "n", 0, 100)) is float
    else:
        with pytest.raises(InvalidRequest):
            check.number(value, "n", 0, 100)


@given(anything)
def test_only_true_and_false_are_flags(value):
    if value is True or value is False:
        assert check.flag(value, "f") is value
    else:
        with pytest.raises(InvalidRequest):
            check.flag(value, "f")


@pytest.mark.parametrize("given", ["in_progress", TaskStatus.IN_PROGRESS])
def test_a_choice_is_a_member_or_its_text(given):
    assert check.choice(given, "status", TaskStatus) is TaskStatus.IN_PROGRESS


@given(anything)
def test_other_values_are_no_choice(value):
    with pytest.raises(InvalidRequest):
        check.choice(value, "status", TaskStatus)


def test_texts_are_lists_of_texts_and_none_is_the_empty_one():
    assert check.texts(None, "tools") == check.texts([], "tools") == ()
    assert check.texts(["a", "b"], "tools") == check.texts(("a", "b"), "tools") == ("a", "b")


@given(st.dictionaries(good_text, json_values, max_size=4))
def test_metadata_comes_back_from_its_json_as_it_was(value):
    written = check.metadata(value)
    assert (json.loads(written) if written else {}) == value
    assert written is None or check.metadata(dict(reversed(value.items()))) == written


@given(st.dictionaries(any_text, st.recursive(anything, lambda inner: st.lists(inner, max_size=3)), max_size=3))
def test_whatever_metadata_is_it_is_stored_or_refused(value):
    try:
        written = check.metadata(value)
    except InvalidRequest:
        return
    assert "\0" not in json.dumps(json.loads(written or "{}"), ensure_ascii=False)
    (written or "").encode()


def test_metadata_has_as_much_as_it_may():
    assert check.metadata({"a": "b" * (64 * 1024 - 9)}) is not None
    assert check.metadata(nested(32)) is not None
    assert check.metadata({}) is check.metadata(None) is None


@given(st.uuids())
def test_an_id_is_a_uuid_in_either_case(value):
    assert check.item_id(value) == check.item_id(str(value)) == check.item_id(str(value).upper()) == value


@pytest.mark.parametrize(
    "value",
    [None, 7, "", "x", "../1", UUID(int=1).hex, "{" + str(UUID(int=1)) + "}", f"urn:uuid:{UUID(int=1)}", "\u0661" * 36],
)
def test_an_id_of_another_shape_names_nothing_in_the_words_of_an_unknown_one(value):
    for called, field in ((check.item_id, "item_id"), (check.thread_id, "thread_id")):
        with pytest.raises(NotFound) as caught:
            called(value)
        assert str(caught.value) == str(NotFound.of(field))
        assert caught.value.field == field


def test_a_thread_has_128_bits():
    assert check.thread_id("thread_" + "0f" * 16) == "thread_" + "0f" * 16
    for wrong in ("thread_" + "0F" * 16, "thread_" + "0f" * 15, "thread_" + "0f" * 16 + "\n"):
        with pytest.raises(NotFound):
            check.thread_id(wrong)
