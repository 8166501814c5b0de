"""Promises about what splices of all dialects share: our tool in a request, counts of several answers, events."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import anthropic, openai, responses
from proxy.wire.content import message_of
from proxy.wire.dialects import CHAT, MESSAGES, RESPONSES
from proxy.wire.events import Reader, with_data
from proxy.wire.parser import Parser
from proxy.wire.slices import each, parts, rearranged, replaced
from proxy.wire.splice import summed, with_tool
from tests.splicing import NAME, at, by_bytes, bytes_of, whole

Json = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
WRITINGS = {"chat": openai, "responses": responses, "messages": anthropic}
DIALECTS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
STREAMS = sorted((Path(__file__).parents[2] / "fixtures" / "streams").glob("*.txt"))

promise = settings(deadline=None, max_examples=60)


def tool_of(dialect: str, name: str = NAME) -> bytes:
    return WRITINGS[dialect].tool_json(name, "What was said.", SCHEMA)  # type: ignore[attr-defined]


# What is ours in a request


def test_a_tool_is_written_in_its_dialect():
    said = {"name": NAME, "description": "What was said."}
    assert json.loads(tool_of("chat")) == {"type": "function", "function": {**said, "parameters": SCHEMA}}
    assert json.loads(tool_of("responses")) == {"type": "function", **said, "parameters": SCHEMA, "strict": False}
    assert json.loads(tool_of("messages")) == {**said, "input_schema": SCHEMA}


@pytest.mark.parametrize("dialect", WRITINGS)
def test_results_are_read_as_the_results_of_their_calls(dialect):
    found = [("o1", "It was 7."), ("o2", "Nothing é.")]
    messages = [message_of(raw) for raw in WRITINGS[dialect].results_json(found)]  # type: ignore[attr-defined]

    assert {message.role for message in messages} == {"tool"}
    if dialect == "messages":  # all results of a turn stand in one message
        (message,) = messages
        assert (message.call_id, message.more_call_ids) == ("o1", ("o2",))
        assert "It was 7." in message.text
        assert "Nothing é." in message.text
    else:
        assert [(message.call_id, message.text) for message in messages] == found


@pytest.mark.parametrize("dialect", WRITINGS)
def test_our_tool_stands_last_and_all_else_stays(dialect):
    tool, theirs = tool_of(dialect), tool_of(dialect, "ls")
    for before, after in (
        (b'{ "model":"m", "messages":[]}', b'{ "model":"m", "messages":[],"tools":[' + tool + b"]}"),
        (b'{"tools" : null , "n":1}', b'{"tools" : [' + tool + b'] , "n":1}'),
        (b'{"tools":[ ],"n":null}', b'{"tools":[' + tool + b'],"n":null}'),
        (
            b'{"x":1.50,"tools" : [\n' + theirs + b'\n ], "y":"\\ud800"}',
            b'{"x":1.50,"tools" : [\n' + theirs + b"," + tool + b'\n ], "y":"\\ud800"}',
        ),
        (b"{}", b'{"tools":[' + tool + b"]}"),
    ):
        assert with_tool(before, NAME, tool) == after


@pytest.mark.parametrize(
    "body",
    [
        b'{"n":2}',
        b'{"n":"2"}',
        b'{"functions":[]}',
        b'{"tools":{}}',
        b'{"tools":"x"}',
        b'{"tools":["x"]}',
        b'{"tools":[],"tools":[]}',
        b'{"tools":[{"type":"namespace","name":"x","tools":[{"type":"function","name":"recall"}]}]}',
        b'{"tools":[{"type":"custom","custom":{"name":"recall"}}]}',
        b'{"tools":[{"name":"rec\\u0061ll"}]}',
        b"[]",
        b"no",
        b"",
        *(b'{"tools":[' + tool_of(dialect, "ls") + b"," + tool_of(dialect) + b"]}" for dialect in WRITINGS),
    ],
)
def test_where_our_tool_must_not_stand_it_does_not(body):
    assert with_tool(body, NAME, tool_of("chat")) is None


@pytest.mark.parametrize("dialect", WRITINGS)
def test_a_request_with_our_tool_is_still_a_request(dialect):
    array = DIALECTS[dialect].shape.array.encode()
    body = b'{"model":"m","' + array + b'":[{"role":"user","content":"hi"}],"tools":[' + tool_of(dialect, "ls") + b"]}"
    tooled = with_tool(body, NAME, tool_of(dialect))
    assert tooled is not None
    asked = Parser(DIALECTS[dialect].shape).parse(tooled)
    assert asked is not None
    assert [message.text for message in asked.messages] == ["hi"]
    assert NAME.encode() in asked.schemas[0]


# Counts


def test_counts_are_added_key_by_key():
    usages = [
        {"a": 1, "b": {"c": 2, "d": None}, "tier": "x", "cost": 0.25, "big": 2**70, "list": [1], "flag": True},
        {"a": 10, "b": {"c": 20, "d": 5}, "tier": "y", "cost": 0.5, "big": 1, "list": [2], "flag": False, "new": 3},
        {"a": None, "b": None},
    ]
    assert summed(usages) == {
        "a": 11, "b": {"c": 22, "d": 5}, "tier": "y", "cost": 0.75, "big": 2**70 + 1, "list": [2], "flag": False, "new": 3,
    }  # fmt: skip
    assert summed([]) == {}
    assert summed(usages[:1]) == usages[0]


# Events


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_the_events_do_not_depend_on_where_the_bytes_are_cut(path):
    body = path.read_bytes()
    expected = read([body])
    assert b"".join(event.raw for event in expected) == body
    assert read(by_bytes(body)) == expected
    for place in range(1, len(body)):
        assert read(at(place)(body)) == expected


@promise
@given(pieces=st.lists(st.sampled_from([b"data: {}", b"data:", b"\n", b"\r", b"\r\n", b": x", b"event: y", b" "])))
def test_no_byte_is_lost(pieces):
    body = b"".join(pieces)
    assert b"".join(event.raw for event in read([body])) == body
    assert read(by_bytes(body)) == read([body])


def read(pieces: list[bytes]) -> list[Any]:
    reader = Reader()
    return [*(event for piece in pieces for event in reader.feed(piece)), *reader.rest()]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'data: {"a":1}\n\n', b'data: {"b": 2}\n\n'),
        (b'data:{"a":1}\r\n\r\n', b'data:{"b": 2}\r\n\r\n'),
        (b'event: x\ndata: {"a":\ndata: 1}\nid: 3\n\n', b'event: x\ndata: {"b": 2}\nid: 3\n\n'),
        (b'data: {"a":1}', b'data: {"b": 2}\n\n'),
        (b'data: {"a":1}\n', b'data: {"b": 2}\n\n'),
        (b'\xef\xbb\xbfdata: {"a":1}\n\n', b'\xef\xbb\xbfdata: {"b": 2}\n\n'),
        (b'data: {"a":1}\r\r', b'data: {"b": 2}\r\r'),
    ],
)
def test_an_event_keeps_its_other_lines(raw, told):
    (event,) = read([raw])
    assert with_data(event, b'\n{"b":\n2}').raw == told


# A cut


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_cut_lets_out_every_byte_where_nothing_is_ours(path):
    body = path.read_bytes()
    for dialect in DIALECTS.values():
        for place in {*range(0, len(body), 211), *range(max(0, len(body) - 400), len(body) + 1, 7)}:
            splice = dialect.splice(NAME)
            assert splice.feed(body[:place]) + splice.cut() == body[:place]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_an_event_that_names_our_tool_is_not_let_out(dialect):
    splice = DIALECTS[dialect].splice(NAME)
    assert splice.feed(b': x\n\ndata: {"name":"recall","argum') + splice.cut() == b": x\n\n"
    assert splice.cut() == b""


# Odd events

ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2) | st.just(NAME) | st.just([]) | st.just([{}])
)  # fmt: skip
PIECES = st.sampled_from(["re", "call"])  # of our tool's name
CALL = st.fixed_dictionaries(
    {"function": ODD | st.fixed_dictionaries({"name": ODD | PIECES}, optional={"arguments": ODD})},
    optional={"index": ODD, "id": ODD, "custom": ODD},
)
DELTA = st.fixed_dictionaries(
    {}, optional={"role": ODD, "content": ODD, "tool_calls": ODD | st.lists(CALL, max_size=2)}
)
CHOICE = st.fixed_dictionaries({"delta": ODD | DELTA}, optional={"index": ODD, "finish_reason": ODD})
NAMED = st.fixed_dictionaries({"type": st.sampled_from(["function_call", "tool_use", "text"]), "name": ODD, "id": ODD})
KINDS = st.sampled_from(
    "response.created response.completed response.output_item.added response.output_item.done response.x.delta error "
    "message_start content_block_start content_block_delta content_block_stop message_delta message_stop".split()
)
EVENT = st.fixed_dictionaries(
    {"type": ODD | KINDS},
    optional={
        "choices": ODD | st.lists(CHOICE, max_size=2),
        "usage": ODD | st.dictionaries(st.text(max_size=1), ODD, max_size=2),
        "response": ODD
        | st.fixed_dictionaries({}, optional={"output": ODD, "tools": ODD | st.lists(NAMED), "usage": ODD}),
        "item": ODD | NAMED,
        "content_block": ODD | NAMED,
        "delta": ODD | st.fixed_dictionaries({"stop_reason": ODD, "text": ODD}),
        "message": ODD | st.fixed_dictionaries({"usage": ODD}),
        "item_id": ODD,
        **dict.fromkeys(("index", "output_index", "sequence_number", "id", "created", "error"), ODD),
    },
)


@pytest.mark.parametrize("dialect", DIALECTS)
@promise
@given(answers=st.lists(st.lists(EVENT, max_size=4), min_size=1, max_size=3), twice=st.booleans())
def test_events_of_any_shape_are_spliced_without_an_error(dialect, answers, twice):
    bodies = [b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in answer) for answer in answers]
    if twice:
        bodies = [body.replace(b'"choices"', b'"choices": [], "choices"') for body in bodies]
    out = bytes_of(DIALECTS[dialect].splice, bodies, whole)

    assert bytes_of(DIALECTS[dialect].splice, bodies, by_bytes) == out
    DIALECTS[dialect].spliced([json.dumps(one).encode() for answer in answers for one in answer] or [b""], NAME)
    splice = DIALECTS[dialect].splice(NAME)
    for body in bodies:
        assert splice.failed(body.removeprefix(b"data: "))
        splice.feed(body)
        splice.cut()


# JSON with other values in it


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@promise
@given(
    before=st.dictionaries(st.text(max_size=3), JSON, max_size=5),
    changes=st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=5),
    indent=st.sampled_from([None, 1]),
    data=st.data(),
)
def test_values_are_replaced_and_taken_out(before, changes, indent, data):
    keys = data.draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
    changes |= dict.fromkeys(keys)
    raw = json.dumps(before, indent=indent).encode()
    expected = {key: changes.get(key, value) for key, value in before.items() if key not in changes or changes[key]}
    written = {key: str(value).encode() if value else None for key, value in changes.items()}

    assert json.loads(replaced(raw, written)) == expected
    assert list(json.loads(replaced(raw, written))) == list(expected)
    assert replaced(raw, {}) == raw
    assert {key: json.loads(value) for key, value in parts(raw).items()} == before


@promise
@given(
    before=st.lists(st.dictionaries(st.text(max_size=2), JSON, max_size=2), max_size=4),
    indent=st.sampled_from([None, 1]),
    data=st.data(),
)
def test_elements_are_taken_out(before, indent, data):
    raw = json.dumps(before, indent=indent).encode()
    kept = [data.draw(st.booleans()) for _ in before]
    found = each(raw)
    wanted = [element if keep else None for element, keep in zip(found, kept, strict=True)]

    assert json.loads(rearranged(raw, wanted)) == [one for one, keep in zip(before, kept, strict=True) if keep]
    assert rearranged(raw, found) == raw
