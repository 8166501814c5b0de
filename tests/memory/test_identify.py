"""A conversation is a path in a tree of messages, whoever sends it and whatever stands in the system prompt."""

import re
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import InvalidRequest
from memory.identify import (
    LOCAL_KEY,
    PLACEHOLDERS,
    Line,
    fingerprint,
    fresh_from,
    key_tenant,
    line,
    message_hint,
    new_id,
    newest_user,
    place,
    session_id,
    stretch_hint,
    tenant_id,
    text_id,
)
from tests.conversations import TENANT, assistant, calling, line_of, parse, result, system, user

OTHER = bytes(16)
BASE = [user("hi"), assistant("hello"), user("and now?")]

texts = st.text(st.characters(codec="utf-8"), max_size=12)
histories = st.lists(
    st.one_of(texts.map(user), texts.map(assistant), texts.map(system), texts.map(lambda t: result("c", t))),
    min_size=1,
    max_size=12,
)


def named(messages: list[dict[str, Any]], tenant: bytes = TENANT) -> bytes:
    return line_of(messages, tenant).tip


@given(histories)
def test_the_same_history_is_the_same_line(messages):
    assert line_of(messages).nodes == line_of(messages).nodes


@given(histories, st.integers(0, 12))
def test_a_longer_history_goes_on_with_the_nodes_of_the_shorter(messages, cut):
    spoken = [message for message in messages if message["role"] != "system"]
    shorter = spoken[: max(1, cut)]
    if shorter:
        assert line_of(spoken).nodes[: len(shorter)] == line_of(shorter).nodes


@given(histories, texts)
def test_system_messages_take_no_part_wherever_they_stand(messages, clock):
    spoken = [message for message in messages if message["role"] != "system"]
    if spoken:
        with_systems = [system(clock), *spoken[:1], system(clock, "developer"), *spoken[1:]]
        assert line_of(with_systems).nodes == line_of(spoken).nodes


def test_where_nobody_speaks_the_system_messages_are_the_line():
    assert len(line_of([system("a"), system("b")])) == 2


@given(st.lists(texts, min_size=2, max_size=8), st.data())
def test_an_edit_forks_there_and_everything_behind_it(words, data):
    position = data.draw(st.integers(0, len(words) - 1))
    edited = [*words[:position], words[position].rstrip() + "!", *words[position + 1 :]]
    before, after = line_of([user(w) for w in words]), line_of([user(w) for w in edited])

    assert before.nodes[:position] == after.nodes[:position]
    assert not set(before.nodes[position:]) & set(after.nodes[position:])


@pytest.mark.parametrize(
    "same",
    [
        [user("hi "), assistant("hello\n"), user("and now?")],
        [user("hi", extra=1), assistant("hello", refusal=None, annotations=[]), user("and now?")],
        [user([{"type": "text", "text": "hi"}]), assistant("hello"), user("and now?")],
        [{"content": "hi", "role": "user"}, assistant("hello", tool_calls=[]), user("and now?")],
    ],
    ids=["trailing space", "unknown fields", "text as parts", "key order, empty calls"],
)
def test_spacing_and_unknown_fields_do_not_fork(same):
    assert named(same) == named(BASE)


@pytest.mark.parametrize(
    "other",
    [
        [user(" hi"), *BASE[1:]],
        [user("hi", name="ann"), *BASE[1:]],
        [assistant("hi"), *BASE[1:]],
        [user([{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]), *BASE[1:]],
        [*BASE[1:]],
        [*BASE, assistant("")],
    ],
    ids=["leading space", "name", "role", "image", "cut", "one more"],
)
def test_what_makes_a_message_another_one_forks(other):
    assert named(other) != named(BASE)


def test_calls_are_the_same_whatever_the_spacing_of_their_arguments_and_other_with_other_arguments():
    loose, tight = calling(("c1", '{"b": 1, "a": 2}')), calling(("c1", '{"a":2,"b":1}'))
    other, broken = calling(("c1", '{"a":2,"b":3}')), calling(("c1", '{"a":2,'))

    assert named([loose]) == named([tight])
    assert len({named([loose]), named([other]), named([broken])}) == 3


def test_content_that_is_null_empty_or_absent_is_the_same():
    call = calling(("c1", "{}"))
    absent = {key: value for key, value in call.items() if key != "content"}
    assert named([call]) == named([{**call, "content": ""}]) == named([absent])


def test_two_tenants_share_no_node():
    assert not set(line_of(BASE).nodes) & set(line_of(BASE, OTHER).nodes)


def test_a_message_is_another_node_behind_another_parent():
    again = line_of([user("hi"), user("hi"), user("hi")])
    assert len(set(again.nodes)) == 3


def test_half_surrogate_pairs_have_a_place_in_the_tree():
    asked = parse([user("x")])
    raw = rb'{"role":"user","content":"\ud800 and \udfff"}'
    from proxy.wire.content import message_of

    assert len(line(TENANT, (message_of(raw), *asked.messages)).nodes) == 2


def test_a_tenant_depends_on_key_and_pepper_and_does_not_show_the_key():
    ids = {tenant_id(b"p" * 32, "sk-a"), tenant_id(b"p" * 32, "sk-b"), tenant_id(b"q" * 32, "sk-a")}
    assert len(ids) == 3
    assert all(len(found) == 16 and b"sk-" not in found for found in ids)


@given(st.text(max_size=60))
def test_any_key_has_a_tenant(key):
    assert len(tenant_id(b"p" * 32, key)) == 16


def test_ids_are_short_lower_case_and_of_their_own():
    nodes = line_of([user(str(i)) for i in range(500)]).nodes
    hints = [message_hint(node) for node in nodes] + [stretch_hint(node) for node in nodes]

    assert all(re.fullmatch("[a-z2-7]{8}", hint) for hint in hints)
    assert len(set(hints)) == len(hints)
    assert all(re.fullmatch("[a-z2-7]{16}", session_id(node)) for node in nodes)
    assert len({text_id(node) for node in nodes}) == len(nodes)


@pytest.mark.parametrize(
    ("messages", "fresh", "newest"),
    [
        ([user("a")], 0, 0),
        ([user("a"), assistant("b"), user("c")], 2, 2),
        ([user("a"), assistant("b"), user("c"), user("d")], 3, 3),
        ([user("a"), calling(("1", "{}")), result("1", "x")], 2, 0),
        ([user("a"), calling(("1", "{}"), ("2", "{}")), result("1", "x"), result("2", "y")], 2, 0),
        ([user("a"), calling(("1", "{}")), result("1", "x"), user("b")], 3, 3),
        ([user("a"), assistant("prefill")], 2, 0),
        ([assistant("a"), result("1", "x")], 1, None),
    ],
    ids=["first", "answered", "two in a row", "result", "parallel results", "told off", "prefill", "no user"],
)
def test_what_is_new_in_a_request_begins_behind_the_last_answer(messages, fresh, newest):
    parsed = parse(messages).messages
    assert (fresh_from(parsed), newest_user(parsed)) == (fresh, newest)


def test_a_line_tells_its_parents():
    found: Line = line_of(BASE)
    assert [found.parent(i) for i in range(3)] == [None, found.nodes[0], found.nodes[1]]


names = st.from_regex(r"[A-Za-z0-9._:\-]{1,128}", fullmatch=True)


@given(names, names)
def test_a_session_of_a_name_is_one_place_a_tenant(name, other):
    assert place(TENANT, name) == place(TENANT, name)
    assert place(TENANT, name).id != place(OTHER, name).id
    assert (place(TENANT, name).id == place(TENANT, other).id) == (name == other)
    assert place(TENANT, name).scope == [place(TENANT, name).id, UUID(int=0)]


def test_who_names_no_session_is_in_one_of_the_tenants_own():
    default = place(TENANT)
    assert default == place(TENANT, default.name)
    assert str(UUID(default.name)) == default.name != place(OTHER).name


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "ä", "a" * 129, "a/b", "\0", "\ud800", 7, b"a"])
def test_a_session_name_of_another_shape_is_refused(name):
    with pytest.raises(InvalidRequest) as caught:
        place(TENANT, name)
    assert caught.value.field == "session_id"


@pytest.mark.parametrize("key", [None, "", " ", "\tOllama ", *sorted(PLACEHOLDERS)])
def test_nobodys_keys_are_the_local_tenant(key):
    assert key_tenant(b"p", key) == tenant_id(b"p", LOCAL_KEY)


def test_a_key_is_a_tenant_whatever_blanks_are_around_it():
    assert key_tenant(b"p", " sk-a\n") == key_tenant(b"p", "sk-a") == tenant_id(b"p", "sk-a")
    assert key_tenant(b"p", "sk-a\xa0") != key_tenant(b"p", "sk-a")


def test_a_fingerprint_tells_keys_apart_and_not_what_they_are():
    assert re.fullmatch("[0-9a-f]{8}", fingerprint("sk-a"))
    assert fingerprint("sk-a") != fingerprint("sk-b")


def test_new_ids_are_of_version_7_and_never_meet():
    made = [new_id() for _ in range(1_000)]
    assert len(set(made)) == 1_000
    assert {(id.version, id.variant) for id in made} == {(7, "specified in RFC 4122")}
    assert [id.time_low for id in made] == sorted(id.time_low for id in made)


def test_ids_of_one_millisecond_sort_by_when_they_were_made(monkeypatch):
    moments = [1_700_000_000_123_000_000 + n * 300 for n in range(3_333)]
    monkeypatch.setattr("memory.identify.time.time_ns", iter(moments).__next__)
    made = [new_id() for _ in moments]
    assert made == sorted(made)
    assert {id.int >> 80 for id in made} == {1_700_000_000_123}
