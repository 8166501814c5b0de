"""Promises about chat bodies: what is understood loses nothing, what is not is left alone."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import responses
from proxy.wire.content import message_of
from proxy.wire.openai import SHAPE, message_json, render, with_content
from proxy.wire.parser import Parser
from proxy.wire.slices import NotUnderstood
from tests.bodies import USER, body_of, digest, parsed

promise = settings(deadline=None, max_examples=60)

# What is understood


def test_a_request_is_read():
    schema = b'[ {"type": "function", "function": {"name": "ls"}} ]'
    body = body_of(
        b'{"role":"system","content":"Be brief."}',
        b'{"role":"user","content":"hi","name":"ann"}',
        before=b' "model" : "ft:gpt-4o:acme::a1",\n "user": "u1", "stream": true,',
        after=b',"tools":' + schema + b',"response_format":{"type":"text"},"max_tokens":7,"max_completion_tokens":9',
    )
    request = parsed(body)

    assert request.model == "ft:gpt-4o:acme::a1"
    assert [(m.role, m.text, m.name) for m in request.messages] == [
        ("system", "Be brief.", None),
        ("user", "hi", "ann"),
    ]
    assert request.schemas == (schema, b'{"type":"text"}')
    assert request.max_output_tokens == 9
    assert request.stream
    assert request.user == "u1"
    assert body[slice(*request.span)].startswith(b'[{"role":"system"')
    assert request.body is body


def test_messages_keep_their_own_bytes():
    raws = [b'{ "content" : "caf\\u00e9 \\/ \\u0000",\t"role":"user", "x": 1e5 }', b'{"role":"assistant"}']
    body = b'{"messages" : [ ' + b" ,\n".join(raws) + b' ] , "model":"m"}'
    request = parsed(body)

    assert [m.raw for m in request.messages] == raws
    assert request.messages[0].text == "café / \x00"


def test_calls_and_results_are_read():
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
    request = parsed(
        body_of(
            USER,
            json.dumps({"role": "assistant", "content": None, "tool_calls": [call]}).encode(),
            b'{"role":"tool","tool_call_id":"c1","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}',
        )
    )

    (made,) = request.messages[1].calls
    assert (made.id, made.name, made.arguments) == ("c1", "ls", '{"path": "."}')
    assert (request.messages[2].call_id, request.messages[2].text) == ("c1", "a\nb")


@pytest.mark.parametrize(
    ("key", "thought", "tokens"),
    [
        ("reasoning_content", "Fünf. " * 200, 300),
        ("reasoning", "Six. \n" * 200, 300),
        ("reasoning_details", [{"type": "reasoning.encrypted", "data": "x" * 1_000}], 261),
        ("reasoning_content", None, 0),
        ("reasoning", {"effort": "high"}, 0),
        ("reasoning_details", "x" * 100, 0),
    ],
)
def test_reasoning_that_is_sent_back_costs_tokens_and_does_not_count_for_identity(key, thought, tokens):
    bare = {"role": "assistant", "content": "Yes."}
    plain, thinking = (message_of(json.dumps(one).encode()) for one in (bare, {**bare, key: thought}))
    assert (plain.unseen, thinking.unseen) == (0, tokens)
    assert (thinking.digest, thinking.text) == (plain.digest, "Yes.")
    assert message_of(json.dumps({**bare, "role": "user", key: thought}).encode()).unseen == 0


def test_reasoning_under_several_keys_counts_for_each():
    said = {"role": "assistant", "content": None, "reasoning_content": "a" * 40, "reasoning": "b" * 60}
    assert message_of(json.dumps(said).encode()).unseen == 25


WORDS = "Seven plus one.\n\nThat makes eight."
HALVES = [
    {"type": "reasoning.text", "text": "Seven plus one."},
    {"type": "reasoning.text", "text": "That makes eight."},
]
SUMMARY = [{"type": "reasoning.summary", "summary": WORDS, "format": "f", "index": 0}]
SIGNED = [{"type": "reasoning.text", "text": WORDS, "signature": "s" * 400}]
SEALED = [{"type": "reasoning.encrypted", "data": "x" * 400}]


@pytest.mark.parametrize("details", [HALVES, SUMMARY, SIGNED, [*HALVES, *SEALED]])
def test_reasoning_that_stands_twice_counts_once_and_as_the_longer(details):
    """OpenRouter tells it in words and piece by piece, and both come back."""
    said = {"role": "assistant", "content": None, "reasoning_details": details}
    alone = message_of(json.dumps(said).encode()).unseen
    twice = {**said, "reasoning": WORDS, "reasoning_content": WORDS}
    assert message_of(json.dumps(twice).encode()).unseen == alone == len(json.dumps(details)) // 4
    assert message_of(json.dumps({**twice, "reasoning_details": None}).encode()).unseen == len(WORDS) // 4


@pytest.mark.parametrize("details", [SEALED, HALVES[:1], [7, None, {"text": 7}], []])
def test_reasoning_that_the_details_do_not_tell_counts_beside_them(details):
    said = {"role": "assistant", "content": None, "reasoning_details": details, "reasoning": WORDS}
    assert message_of(json.dumps(said).encode()).unseen == (len(json.dumps(details)) + len(WORDS)) // 4


def test_the_old_function_calls_are_calls():
    asked = message_of(b'{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}}')
    result = message_of(b'{"role":"function","name":"f","content":"1"}')

    assert [(call.id, call.name, call.arguments) for call in asked.calls] == [("f", "f", "{}")]
    assert result.call_id == "f"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("null", []),
        ("[]", []),
        ('[{"id":"c","type":"custom","custom":{"name":"sh","input":"ls"}}]', [("c", "sh", "ls")]),
        ('[{"id":"c","function":{"name":"f","arguments":{"a": 1}}}]', [("c", "f", '{"a": 1}')]),
        ('[{"id":"c","function":{"name":"f"}}]', [("c", "f", "")]),
        ('[{"id":"c","function":{"name":"f","arguments":null}}]', [("c", "f", "")]),
        ('[{"id":7,"function":{"name":null,"arguments":"{}"}}]', [("", "", "{}")]),
        ('[{"id":"c","function":"f"}]', [("c", "", '"f"')]),
        ("[5]", [("", "", "5")]),
        ('"odd"', [("", "", '"odd"')]),
        ('{"id":"c"}', [("", "", '{"id":"c"}')]),
    ],
)
def test_calls_of_any_shape_pass(calls, expected):
    message = message_of(b'{"role":"assistant","tool_calls":' + calls.encode() + b"}")
    assert [(call.id, call.name, call.arguments) for call in message.calls] == expected


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}}, [("image", "low")]),
        ({"type": "image_url", "image_url": "https://x/a.png"}, [("image", "auto")]),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, [("audio", "auto")]),
        ({"type": "file", "file": {"file_id": "file-1"}}, [("file", "auto")]),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
            [("file", "auto")],
        ),
        ({"type": "video_url", "video_url": {"url": "https://x/a.mp4"}}, [("file", "auto")]),
        ({"type": "text", "text": 5}, [("file", "auto")]),
        ({"type": "refusal", "refusal": "no"}, []),
        ({"type": ["text"]}, [("file", "auto")]),
        ({"type": {}}, [("file", "auto")]),
        ({}, [("file", "auto")]),
    ],
)
def test_parts_that_are_no_text_count_as_media(part, kinds):
    message = message_of(json.dumps({"role": "user", "content": [{"type": "text", "text": "see"}, part]}).encode())

    assert message.text == "see"
    assert [(medium.kind, medium.detail) for medium in message.media] == kinds


def test_a_spoken_answer_is_known_by_its_id():
    said = {
        "role": "assistant",
        "content": None,
        "audio": {"id": "a1", "data": "AA", "transcript": "hi", "expires_at": 1},
    }
    assert (
        digest(**said) == digest(role="assistant", audio={"id": "a1"}) != digest(role="assistant", audio={"id": "a2"})
    )


ODD_BUT_UNDERSTOOD = {
    "300 digit integer": body_of(USER, after=b',"seed":' + b"9" * 300),
    "huge float": body_of(USER, after=b',"x":1e999'),
    "5,000 digits in a message": body_of(b'{"role":"user","content":"x","n":' + b"7" * 5000 + b"}"),
    "unknown fields": body_of(USER, after=b',"top_k":5,"provider":{"order":["a"]},"chat_template_kwargs":{}'),
    "explicit nulls": body_of(USER, after=b',"stream":null,"tools":null,"user":null,"max_tokens":null'),
    "developer": body_of(b'{"role":"developer","content":"x"}'),
    "null content": body_of(b'{"role":"assistant","content":null}'),
    "absent content": body_of(b'{"role":"assistant"}'),
    "empty content": body_of(b'{"role":"assistant","content":""}'),
    "no parts": body_of(b'{"role":"user","content":[]}'),
    "unknown role": body_of(b'{"role":"critic","content":"x"}'),
    "odd name": body_of(b'{"role":"user","content":"x","name":5,"tool_call_id":{}}'),
    "NUL": body_of(b'{"role":"user","content":"\\u0000"}'),
    "half a surrogate pair": body_of(b'{"role":"user","content":"\\ud800"}'),
    "halves in wrong order": body_of(b'{"role":"user","content":"\\ude00\\ud83d"}'),
    "high, high, low": body_of(b'{"role":"user","content":"\\ud83d\\ud83d\\ude00"}'),
    "half a pair outside messages": body_of(USER, after=b',"user":"\\udfff"'),
    "half a pair in a key": body_of(USER, after=b',"\\ud800":1'),
    "depth 256": body_of(USER, after=b',"x":' + b"[" * 255 + b"]" * 255),
    "brackets in strings": body_of(b'{"role":"user","content":"' + b"[{" * 5000 + b'"}'),
    "many flat brackets": body_of(USER, after=b',"x":[' + b"[],{}," * 500 + b"0]"),
    "messages in metadata": body_of(USER, before=b'"metadata":{"messages":[{"role":"user","content":"not me"}]},'),
    "messages in a schema": body_of(USER, before=b'"tools":[{"messages":[1,2]}],'),
    "escaped key": b'{"m\\u0065ssages":[' + USER + b"]}",
    "white space": b' \n{ "messages" :\t[ ' + USER + b" ] }\r\n ",
    "a key twice, deep down": body_of(b'{"role":"user","content":[{"type":"text","text":"hi","text":"hi"}]}'),
    "no model": body_of(USER, before=b""),
    "emoji and right-to-left": body_of('{"role":"user","content":"שלום 👩‍👩‍👧"}'.encode()),
    "del": body_of(b'{"role":"user","content":"\x7f"}'),
}


@pytest.mark.parametrize("name", ODD_BUT_UNDERSTOOD)
def test_odd_but_legal_bodies_are_understood(name):
    body = ODD_BUT_UNDERSTOOD[name]
    parser = Parser(SHAPE)
    request, again = parser.parse(body), parser.parse(body)

    assert request == again
    assert request is not None
    assert len(request.messages) == 1
    assert render(request, [m.raw for m in request.messages]) in (
        body,
        body.replace(b"[ " + USER + b" ]", b"[" + USER + b"]"),
    )


NOT_UNDERSTOOD = {
    "empty": b"",
    "not JSON": b"hello",
    "truncated": body_of(USER)[:-1],
    "trailing garbage": body_of(USER) + b"x",
    "byte order mark": b"\xef\xbb\xbf" + body_of(USER),
    "an array": b"[" + body_of(USER) + b"]",
    "a string": b'"messages"',
    "no messages": b'{"model":"m"}',
    "messages null": b'{"messages":null}',
    "messages a string": b'{"messages":"hi"}',
    "messages an object": b'{"messages":{}}',
    "empty messages": b'{"messages":[ ]}',
    "a message that is a string": body_of(b'"hi"'),
    "a message that is an array": body_of(b"[]"),
    "a message that is 0": body_of(b"0"),
    "no role": body_of(b'{"content":"hi"}'),
    "role null": body_of(b'{"role":null,"content":"hi"}'),
    "role a number": body_of(b'{"role":1,"content":"hi"}'),
    "content a number": body_of(b'{"role":"user","content":5}'),
    "content an object": body_of(b'{"role":"user","content":{"type":"text","text":"x"}}'),
    "content true": body_of(b'{"role":"user","content":true}'),
    "a part that is a string": body_of(b'{"role":"user","content":["x"]}'),
    "model a number": body_of(USER, before=b'"model":5,'),
    "stream a string": body_of(USER, after=b',"stream":"yes"'),
    "NaN": body_of(USER, after=b',"temperature":NaN'),
    "NaN in a message": body_of(b'{"role":"user","content":"x","n":NaN}'),
    "Infinity": body_of(USER, after=b',"x":-Infinity'),
    "bad UTF-8": body_of(b'{"role":"user","content":"\xff"}'),
    "bad UTF-8 in an unknown field": body_of(USER, after=b',"x":{"y":"\xc0\x80"}'),
    "bad UTF-8 in an unknown field of a message": body_of(b'{"role":"user","content":"","x":"\xed\xa0\x80"}'),
    "bad UTF-8 in a key": body_of(USER, after=b',"\xff":1'),
    "control character": body_of(b'{"role":"user","content":"a\nb"}'),
    "bad escape": body_of(b'{"role":"user","content":"\\x41"}'),
    "messages twice": body_of(USER, after=b',"messages":[' + USER + b"]"),
    "model twice": body_of(USER, after=b',"model":"m"'),
    "an unknown key twice": body_of(USER, after=b',"x":1,"y":2,"x":1'),
    "role twice": body_of(b'{"role":"user","content":"hi","role":"user"}'),
    "depth 257": body_of(USER, after=b',"x":' + b"[" * 256 + b"]" * 256),
    "depth 257 in a message": body_of(b'{"role":"user","content":"","x":' + b"[" * 254 + b"]" * 254 + b"}"),
    "depth 100,000": body_of(USER, after=b',"x":' + b"[" * 100_000 + b"]" * 100_000),
    "depth 100,000 in a message": body_of(b'{"x":' * 100_000 + b"1" + b"}" * 100_000),
    "trailing comma": body_of(USER, b""),
    "leading comma": body_of(b"", USER),
    "no comma": b'{"messages":[' + USER + USER + b"]}",
    "a bracket for a comma": b'{"messages":[' + USER + b"[" + USER + b"]}",
    "an open string": b'{"messages":[{"role":"user","content":"' + b'\\"' * 1000,
    "an open bracket": b'{"messages":[{"role":"user","content":[[[',
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_what_is_not_understood_gives_none(name):
    parser = Parser(SHAPE)
    assert parser.parse(NOT_UNDERSTOOD[name]) is None
    parser.parse(body_of(USER))  # knowing a message of it changes nothing
    assert parser.parse(NOT_UNDERSTOOD[name]) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (b'"max_tokens":5', 5),
        (b'"max_completion_tokens":6,"max_tokens":5', 6),
        (b'"max_completion_tokens":null,"max_tokens":5', 5),
        (b'"max_tokens":"5"', None),
        (b'"max_tokens":5.5', None),
        (b'"max_tokens":true', None),
        (b'"max_tokens":0', None),
        (b'"max_tokens":-3', None),
        (b'"max_tokens":' + b"9" * 300, None),
    ],
)
def test_the_output_limit_is_a_whole_number(limits, expected):
    assert parsed(body_of(USER, after=b"," + limits)).max_output_tokens == expected


def test_hostile_bodies_cost_linear_time():
    """An open string with escaped quotes was tried again from each quote: minutes for a megabyte."""
    escaped, quotes, braces = b'\\"' * 500_000, b'"' * 1_000_001, b"{" * 1_000_000
    began = time.process_time()
    for hostile in (escaped, quotes, braces, b'{"a":"' * 200_000, b"\\" * 1_000_001, b'"messages":[' * 90_000):
        assert Parser(SHAPE).parse(b'{"messages":[{"role":"user","content":"' + hostile) is None
        assert Parser(SHAPE).parse(b'{"x":' + hostile) is None
        assert Parser(SHAPE).parse(hostile) is None
    assert time.process_time() - began < 10


# Identity


def test_shapes_that_mean_the_same_are_the_same_message():
    assert (
        len({digest(role="assistant", content=None), digest(role="assistant", content=""), digest(role="assistant")})
        == 1
    )
    assert digest(role="user", content="hi") == digest(role="user", content=[{"type": "text", "text": "hi"}])
    assert digest(role="assistant", content="x") == digest(
        annotations=[], refusal=None, content="x \n", role="assistant"
    )


def test_what_differs_is_another_message():
    url = {"type": "image_url", "image_url": {"url": "https://x/1.png"}}
    other = {"type": "image_url", "image_url": {"url": "https://x/2.png"}}
    unknown, unknown2 = {"type": "new", "x": 1}, {"type": "new", "x": 2}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "a", "name": "n"},
        {"role": "system", "content": "a"},
        {"role": "tool", "content": "a", "tool_call_id": "1"},
        {"role": "tool", "content": "a", "tool_call_id": "2"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, url]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, other]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, unknown]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, unknown2]},
    ]
    assert len({digest(**message) for message in messages}) == len(messages)


# Rendering


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}) | st.fixed_dictionaries({"type": st.text()})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": st.none() | st.text() | st.lists(PART, max_size=3),
        "tool_calls": JSON,
        "name": JSON,
        "x": JSON,
    },
)


@st.composite
def bodies(draw):
    """A legal body in some spacing and key order."""
    keys = draw(st.dictionaries(st.text().filter(lambda k: k not in ("messages", "model", "stream")), JSON, max_size=4))
    request = {**keys, "messages": draw(st.lists(MESSAGE, min_size=1, max_size=5))}
    order = draw(st.permutations(list(request)))
    style = draw(
        st.sampled_from(
            [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"separators": (" ,\n", "\t: ")}]
        )
    )
    return json.dumps({key: request[key] for key in order}, **style).encode("utf-8", "surrogatepass")


@promise
@given(body=bodies(), new=st.lists(st.just(USER), min_size=1, max_size=3))
def test_rendering_changes_nothing_but_the_messages(body, new):
    request = parsed(body)
    start, stop = request.span
    same, other = render(request, [m.raw for m in request.messages]), render(request, new)

    assert json.loads(same) == json.loads(body)
    assert other == body[:start] + b"[" + b",".join(new) + b"]" + body[stop:]
    assert json.loads(other) == {**json.loads(body), "messages": [json.loads(one) for one in new]}


@promise
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), key=st.text().filter(lambda k: k != "messages"), value=JSON)
def test_a_compact_body_is_rendered_byte_for_byte(messages, key, value):
    if key in ("model", "stream"):
        value = None
    body = json.dumps({key: value, "messages": messages, "z": [value]}, separators=(",", ":")).encode()
    request = parsed(body)
    assert render(request, [m.raw for m in request.messages]) == body


@promise
@given(message=MESSAGE, content=st.text())
def test_new_content_leaves_all_else_as_it_is(message, content):
    raw = json.dumps(message, ensure_ascii=False).encode()
    changed = with_content(raw, content)

    assert json.loads(changed) == {**message, "content": content}
    if "content" in message:
        old = json.dumps(message["content"], ensure_ascii=False).encode()
        head, _, tail = raw.partition(b'"content": ' + old)
        assert changed == head + b'"content": ' + json.dumps(content, ensure_ascii=False).encode() + tail or (
            "\\u" in json.dumps(content, ensure_ascii=False) or "\x7f" in content
        )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{ "content" : null , "role":"assistant"}', b'{ "content" : "new" , "role":"assistant"}'),
        (b'{"role":"assistant", "x":1 }', b'{"role":"assistant", "x":1 ,"content":"new"}'),
        (b'{"x":{"content":"a"},"content":[{"content":1}]}', b'{"x":{"content":"a"},"content":"new"}'),
        (b'{"content":"\\ud800","y":"\\udc00"}', b'{"content":"new","y":"\\udc00"}'),
        (b"{}", b'{"content":"new"}'),
    ],
)
def test_new_content_stands_where_the_old_one_stood(raw, expected):
    assert with_content(raw, "new") == expected


def test_a_result_among_blocks_gets_new_content_alone():
    """Gateways send blocks of the Messages API inside chats."""
    raw = b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"x"} ,{"type":"text","text":"so"}]}'
    assert with_content(raw, "new") == raw.replace(b'"x"', b'"new"')
    assert with_content(raw, "new", 0) == responses.with_content(raw, "new", 0)


def test_new_content_needs_a_message_without_a_key_twice():
    with pytest.raises(NotUnderstood):
        with_content(b'{"content":"a","content":"b"}', "new")


def test_our_own_messages_are_messages():
    raw = message_json("tool", 'a "quoted"\nline é', tool_call_id="c1")
    assert raw == '{"role":"tool","content":"a \\"quoted\\"\\nline é","tool_call_id":"c1"}'.encode()
    assert message_of(raw).call_id == "c1"


def test_what_nobody_wrote_for_a_model_is_soon_let_go():
    """7 MB of empty parts took seconds, and all other large requests wait meanwhile."""
    many = b",".join([b"{}"] * 2_000_000)
    bodies = (
        body_of(b'{"role":"user","content":[' + many + b"]}"),
        body_of(b'{"role":"assistant","content":null,"tool_calls":[' + many + b"]}"),
        body_of(b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":[' + many + b"]}]}"),
        body_of(*[USER] * 200_000),
    )
    for body in bodies:
        began = time.process_time()
        assert Parser(SHAPE).parse(body) is None
        assert time.process_time() - began < 15 * time_to_check(body)


def time_to_check(body: bytes) -> float:
    """Seconds that the least anybody could do with a body takes here."""
    began = time.process_time()
    body.count(b"{")
    json.loads(body)
    return time.process_time() - began
