"""The Responses API becomes values: requests, items of every type, plain answers; hostile bodies cost nothing else."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from memory.messages import Message
from memory.tokens import Counter
from memory.types import Usage
from proxy.wire import splice
from proxy.wire.content import message_of
from proxy.wire.dialects import RESPONSES, dialect_at
from proxy.wire.parser import Parser
from proxy.wire.responses import SHAPE, completion_in, message_json, render, with_content, with_tool
from tests.responses import PNG, call, message, output, picture, reasoning, response

Json = dict[str, Any]

promise = settings(deadline=None, max_examples=60)
USER = {"role": "user", "content": "hi"}


def body_of(said: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "input": said, **more}).encode()


def parsed(said: Any, **more: Any):
    request = Parser(SHAPE).parse(body_of(said, **more))
    assert request is not None
    return request


def read(item: Json | list[Json]) -> Message:
    return message_of(json.dumps(item).encode())


def test_a_request_is_read():
    request = parsed(
        [USER], instructions="be brief", tools=[{"type": "web_search"}], text={"verbosity": "low"},
        max_output_tokens=7, stream=True, store=False, user="ann",
    )  # fmt: skip

    assert [(m.role, m.text) for m in request.messages] == [("system", "be brief"), ("user", "hi")]
    assert (request.preface, request.dialect, request.max_output_tokens) == (1, "responses", 7)
    assert (request.stream, request.user, len(request.schemas)) == (True, "ann", 2)


def test_a_bare_string_is_one_user_message_and_is_written_as_an_array_where_others_join_it():
    body = b'{ "input": "hi\\n", "model":"m" , "top_k":null}'
    request = Parser(SHAPE).parse(body)
    assert request is not None

    assert [(m.role, m.text) for m in request.messages] == [("user", "hi\n")]
    ours = message_json("user", "more")
    written = render(request, [ours, *(m.raw for m in request.messages)])
    assert written.startswith(b'{ "input": [')
    assert written.endswith(b'], "model":"m" , "top_k":null}')
    assert [item["content"] for item in json.loads(written)["input"]] == ["more", "hi\n"]


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"background": True},
    ],
)
def test_a_history_that_the_provider_keeps_is_left_alone(more):
    assert Parser(SHAPE).parse(body_of([USER], **more)) is None
    assert Parser(SHAPE).parse(body_of([USER], **dict.fromkeys(more))) is not None


@pytest.mark.parametrize(
    "item",
    [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}, {"type": None, "id": "msg_1"}, {"content": "x"}, {}],
)
def test_an_item_without_words_leaves_the_request_alone(item):
    assert Parser(SHAPE).parse(body_of([USER, item])) is None


def test_only_the_endpoint_itself_is_managed():
    assert dialect_at("/v1/responses") is RESPONSES
    assert dialect_at("/openai/v1/responses") is RESPONSES
    for path in (
        "/v1/responses/resp_1",
        "/v1/responses/compact",
        "/v1/responses/input_tokens",
        "/v1/responses/a/cancel",
    ):
        assert dialect_at(path) is None


# Items

SHOT = {"type": "computer_screenshot", "image_url": PNG}
# What an item becomes: role, words, (id, name, arguments) of its calls, id of the call it answers, kinds of media.
ITEMS: dict[str, tuple[Json, tuple[str, str, list[tuple[str, str, str]], str | None, list[str]]]] = {
    "call": (call("c1", {"q": 1}), ("assistant", "", [("c1", "look", '{"q": 1}')], None, [])),
    "custom call": (
        {"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "select 1"},
        ("assistant", "", [("c1", "sql", "select 1")], None, []),
    ),
    "local shell": (
        {"type": "local_shell_call", "id": "x", "call_id": "c1", "action": {"command": ["ls"], "user": None}},
        ("assistant", "", [("c1", "local_shell", '{"command":["ls"]}')], None, []),
    ),
    "shell": (
        {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}},
        ("assistant", "", [("c1", "shell", '{"commands":["ls"]}')], None, []),
    ),
    "patch": (
        {"type": "apply_patch_call", "call_id": "c1", "operation": {"type": "delete_file", "path": "a"}},
        ("assistant", "", [("c1", "apply_patch", '{"path":"a","type":"delete_file"}')], None, []),
    ),
    "computer": (
        {"type": "computer_call", "id": "x", "call_id": "c1", "action": {"type": "wait"}, "actions": None},
        ("assistant", "", [("c1", "computer", '{"type":"wait"}')], None, []),
    ),
    "approval request": (
        {"type": "mcp_approval_request", "id": "m1", "name": "pay", "arguments": "{}", "server_label": "s"},
        ("assistant", "", [("m1", "pay", "{}")], None, []),
    ),
    "tool search": (
        {"type": "tool_search_call", "call_id": "c1", "execution": "client", "arguments": {"q": "x"}},
        ("assistant", "", [("c1", "tool_search", '{"q":"x"}')], None, []),
    ),
    "program": (
        {"type": "program", "id": "p", "call_id": "c1", "code": "f()", "fingerprint": "z"},
        ("assistant", "", [("c1", "program", "f()")], None, []),
    ),
    "an unknown call": (
        {"type": "teleport_call", "call_id": "c1", "arguments": "{}"},
        ("assistant", "", [("c1", "teleport_call", "{}")], None, []),
    ),
    "output": (output("c1", "done"), ("tool", "done", [], "c1", [])),
    "output in parts": (
        output("c1", [{"type": "input_text", "text": "done"}, picture(), {"type": "input_file", "file_id": "f"}]),
        ("tool", "done", [], "c1", ["image", "file"]),
    ),
    "output of another kind": (output("c1", {"a": 1}), ("tool", "", [], "c1", ["file"])),
    "an output that is a number": (output("c1", 5), ("tool", "5", [], "c1", [])),
    "custom output": (
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "1"},
        ("tool", "1", [], "c1", []),
    ),
    "local shell output": (
        {"type": "local_shell_call_output", "id": "c1", "output": '{"out":"x"}'},
        ("tool", '{"out":"x"}', [], "c1", []),
    ),
    "shell output": (
        {
            "type": "shell_call_output",
            "call_id": "c1",
            "output": [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 0}}],
        },
        ("tool", "a\nb", [], "c1", []),
    ),
    "patch output": (
        {"type": "apply_patch_call_output", "call_id": "c1", "status": "failed", "output": None},
        ("tool", "failed", [], "c1", []),
    ),
    "screenshot": (
        {"type": "computer_call_output", "call_id": "c1", "output": SHOT},
        ("tool", "", [], "c1", ["image"]),
    ),
    "approval": (
        {"type": "mcp_approval_response", "approval_request_id": "m1", "approve": False, "reason": "no"},
        ("tool", "denied: no", [], "m1", []),
    ),
    "tools found by the client": (
        {"type": "tool_search_output", "call_id": "c1", "tools": []},
        ("tool", "[]", [], "c1", []),
    ),
    "program output": (
        {"type": "program_output", "id": "p", "call_id": "c1", "result": "42", "status": "completed"},
        ("tool", "42", [], "c1", []),
    ),
    "web search": (
        {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "q", "queries": ["q", "r"]}},
        ("assistant", "web_search(q; r)", [], None, []),
    ),
    "file search": (
        {"type": "file_search_call", "id": "f", "queries": ["q"], "results": [{"text": "found", "score": 1}]},
        ("assistant", "file_search(q)\nfound", [], None, []),
    ),
    "code": (
        {
            "type": "code_interpreter_call",
            "id": "x",
            "code": "1+1",
            "outputs": [{"type": "logs", "logs": "2"}, {"type": "image", "url": PNG}],
        },
        ("assistant", "code_interpreter(1+1)\n2", [], None, ["image"]),
    ),
    "mcp": (
        {"type": "mcp_call", "id": "m", "name": "pay", "arguments": "{}", "output": "paid", "error": None},
        ("assistant", "pay({})\npaid", [], None, []),
    ),
    "mcp that failed": (
        {"type": "mcp_call", "id": "m", "name": "pay", "arguments": "{}", "output": None, "error": "poor"},
        ("assistant", "pay({})\npoor", [], None, []),
    ),
    "image": (
        {"type": "image_generation_call", "id": "i", "result": PNG.partition(",")[2], "status": "completed"},
        ("assistant", "", [], None, ["image"]),
    ),
    "reasoning": (reasoning(random.Random(1)), ("assistant", "", [], None, [])),
    "tools of a server": ({"type": "mcp_list_tools", "id": "l", "tools": [{}]}, ("assistant", "", [], None, [])),
    "tools found by the provider": (
        {"type": "tool_search_output", "call_id": None, "execution": "server", "tools": []},
        ("assistant", "[]", [], None, []),
    ),
    "more tools": (
        {"type": "additional_tools", "role": "developer", "tools": []},
        ("developer", "[]", [], None, []),
    ),
    "compaction": ({"type": "compaction", "encrypted_content": "x" * 40}, ("developer", "", [], None, ["item"])),
    "unknown": ({"type": "telepathy", "thought": {"a": [1]}}, ("assistant", "", [], None, ["item"])),
    "bare message": ({"role": "user", "content": "hi"}, ("user", "hi", [], None, [])),
    "message": (
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}, picture()]},
        ("user", "hi", [], None, ["image"]),
    ),
    "sound": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "mp3"}}]},
        ("user", "", [], None, ["audio"]),
    ),
    "refusal": (
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ("assistant", "", [], None, []),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_of_every_type_is_read(name):
    item, expected = ITEMS[name]
    found = read(item)
    calls = [(made.id, made.name, made.arguments) for made in found.calls]

    assert (found.role, found.text, calls, found.call_id, [m.kind for m in found.media]) == expected
    assert found.raw == json.dumps(item).encode()


@pytest.mark.parametrize("name", ITEMS)
def test_a_request_with_it_is_forwarded_as_it_came(name):
    item, _ = ITEMS[name]
    for said in ([item], [USER, item], [message("a"), item, message("b"), USER]):
        body = body_of(said, tools=[])
        request = Parser(SHAPE).parse(body)
        assert request is not None
        again = render(request, [m.raw for m in request.messages])
        assert again == body.replace(b"}, {", b"},{").replace(b"}],{", b"}],{") or json.loads(again) == json.loads(body)


@pytest.mark.parametrize("name", [name for name, (_, expected) in ITEMS.items() if expected[0] == "tool"])
def test_another_content_leaves_an_output_of_its_kind(name):
    item, _ = ITEMS[name]
    changed = json.loads(with_content(json.dumps(item).encode(), "shorter"))

    assert {**changed, "output": item.get("output")} == {**item, "output": item.get("output")}
    if item["type"] == "shell_call_output":
        assert changed["output"] == [{"stdout": "shorter", "stderr": "", "outcome": item["output"][0]["outcome"]}]
    elif item["type"] in ("computer_call_output", "mcp_approval_response", "tool_search_output", "program_output"):
        assert changed == item
    else:
        assert changed["output"] == "shorter"


def test_what_the_assistant_says_in_one_go_is_one_message():
    thought, first, second = reasoning(random.Random(2)), call("c1", {}), call("c2", {})
    said = [USER, thought, message("Let me look."), first, second, output("c1", "1"), output("c2", "2"), message("so")]
    request = parsed(said)

    assert [m.role for m in request.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    one = request.messages[1]
    assert (one.text, [made.id for made in one.calls]) == ("Let me look.", ["c1", "c2"])
    assert json.loads(one.raw) == said[1:5]
    assert message_of(one.raw) == one
    assert (message_of(one.raw).text, message_of(one.raw).unseen) == (one.text, one.unseen)
    assert one.unseen >= len(thought["encrypted_content"]) // 4


def test_reasoning_costs_tokens_and_an_unknown_item_too():
    counter = Counter()
    for item in (reasoning(random.Random(3), 400), {"type": "compaction", "encrypted_content": "x" * 2_000}):
        assert 400 < counter.message(read(item), "o200k_base") < 1_000
    assert counter.message(read(output("c", [picture("low")])), "o200k_base") < 120
    assert counter.message(read(output("c", [picture("high")])), "o200k_base") > 400


# Our tool

SEALED = "reasoning.encrypted_content"


@pytest.mark.parametrize(
    "more",
    [
        {"store": False},
        {"store": False, "include": None},
        {"store": False, "include": []},
        {"store": False, "include": ["message.output_text.logprobs"]},
        {"store": False, "include": SEALED},
    ],
)
def test_our_tool_does_not_stand_where_reasoning_cannot_be_sent_back(more):
    """The provider would answer: Item with id 'rs_...' not found."""
    assert with_tool(body_of([USER], **more), "recall", b"{}") is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"store": None},
        {"store": True},
        {"include": ["message.output_text.logprobs"]},
        {"store": False, "include": ["message.output_text.logprobs", SEALED]},
    ],
)
def test_our_tool_stands_where_reasoning_is_kept_or_told(more):
    body = body_of([USER], **more)
    tooled = with_tool(body, "recall", b'{"name":"recall"}')
    assert tooled == body[:-1] + b',"tools":[{"name":"recall"}]}'
    assert tooled == splice.with_tool(body, "recall", b'{"name":"recall"}')


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"store":fal', b'{"tools":7}', b'{"tools":[{"name":"recall"}]}'])
def test_what_is_not_understood_gets_no_tool(body):
    assert with_tool(body, "recall", b"{}") is None


# Identity

WHOLE = [
    reasoning(random.Random(4)) | {"id": "rs_1"},
    message("The answer.", id="msg_1"),
    call("c1", {"a": 1, "b": [2]}),
]
BARE_CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"b":[2],"a":1}'}
OF_THE_SDK = [item.model_dump() for item in Response.model_validate(response(WHOLE)).output]
SENT = {
    "as it came": WHOLE,
    "openai-python, dumped with nulls": OF_THE_SDK,
    "without reasoning": WHOLE[1:],
    "without ids and status": [{k: v for k, v in item.items() if k not in ("id", "status")} for item in WHOLE],
    "pydantic-ai": [WHOLE[0], {"role": "assistant", "content": "The answer."}, BARE_CALL | {"id": "fc_1"}],
    "Vercel": [{"role": "assistant", "content": [{"type": "output_text", "text": "The answer."}]}, BARE_CALL],
    "LangChain": [
        {"type": "message", "role": "assistant", "id": "m", "content": [
            {"type": "output_text", "text": "The answer.", "annotations": [{"type": "url_citation", "url": "u"}]}]},
        {**BARE_CALL, "id": "fc_1", "status": "completed", "namespace": None},
    ],
    "the call first": [BARE_CALL, {"role": "assistant", "content": "The answer.\n"}],
}  # fmt: skip


@pytest.mark.parametrize("name", SENT)
def test_what_clients_send_back_is_the_message_that_was_answered(name):
    (answered,) = completion_in(json.dumps(response(WHOLE)).encode()).messages
    *_, sent, _ = parsed([USER, *SENT[name], output("c1", "x")]).messages

    assert sent == answered
    assert read(SENT[name]) == answered


@pytest.mark.parametrize(
    "other",
    [
        [message("Another answer."), WHOLE[2]],
        [WHOLE[1], call("c2", {"a": 1, "b": [2]})],
        [WHOLE[1], call("c1", {"a": 2, "b": [2]})],
        [WHOLE[1], call("c1", {"a": 1, "b": [2]}, name="other")],
        [WHOLE[1]],
        [WHOLE[1], WHOLE[2], {"type": "telepathy", "thought": "x"}],
    ],
)
def test_what_says_something_else_is_another_message(other):
    assert read(WHOLE) != read(other)


HOSTED = (
    "web search",
    "file search",
    "code",
    "mcp",
    "mcp that failed",
    "image",
    "approval request",
)


@pytest.mark.parametrize("name", HOSTED)
def test_what_the_provider_ran_comes_back_from_the_sdk_as_what_was_answered(name):
    item = {"id": "x_1", "status": "completed", "server_label": "s", "container_id": "c", **ITEMS[name][0]}
    (answered,) = completion_in(json.dumps(response([item, WHOLE[1]])).encode()).messages
    dumped = [each.model_dump() for each in Response.model_validate(response([item, WHOLE[1]])).output]

    assert read(dumped) == answered


def test_an_answer_that_was_compacted_on_the_way_comes_back_as_two_messages_of_which_one_is_said():
    compacted = {"type": "compaction", "id": "cmp_1", "encrypted_content": "x" * 40}
    (answered,) = completion_in(json.dumps(response([compacted, *WHOLE])).encode()).messages
    *_, system, sent, _ = parsed([USER, compacted, *WHOLE, output("c1", "x")]).messages

    assert sent == answered
    assert system.is_system
    assert json.loads(system.raw) == compacted


def test_ids_and_nulls_of_an_item_nobody_knows_do_not_count():
    item = {"type": "telepathy", "thought": "x"}
    assert read(item) == read({**item, "id": "t_1", "status": "completed", "more": None})
    assert read(item) != read({**item, "thought": "y"})


# Hostile bodies

DEEP = b"[" * 300 + b"]" * 300
HOSTILE = {
    "a number": b'{"input":5}',
    "an object": b'{"input":{}}',
    "empty": b'{"input":[]}',
    "null": b'{"input":null}',
    "an item that is text": b'{"input":["hi"]}',
    "a list in the list": b'{"input":[[{"role":"user","content":"hi"}]]}',
    "type a number": b'{"input":[{"type":5}]}',
    "deep action": b'{"input":[{"type":"shell_call","call_id":"c","action":' + DEEP + b"}]}",
    "input twice": b'{"input":"a","input":"b"}',
    "type twice": b'{"input":[{"type":"message","role":"user","content":"a","type":"message"}]}',
    "bad UTF-8": b'{"input":"\xff"}',
    "bad UTF-8 in an item": b'{"input":[{"type":"x","y":"\xff"}]}',
    "an open string": b'{"input":"' + b'\\"' * 500_000,
    "a string and more": b'{"input":"a" "b"}',
    "content a number": b'{"input":[{"type":"message","role":"user","content":5}]}',
    "model a number": b'{"model":5,"input":"hi"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_understood_gives_none(name):
    assert Parser(SHAPE).parse(HOSTILE[name]) is None


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TYPES = sorted({item["type"] for item, _ in ITEMS.values() if "type" in item})
KEYS = (
    "call_id id name arguments input action actions operation code output outputs result results queries tools status "
    "encrypted_content summary content approve approval_request_id error"
).split()
ODD_ITEMS = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(KEYS), ODD_VALUES, max_size=5),
)


@promise
@given(said=st.lists(ODD_ITEMS, min_size=1, max_size=6))
def test_items_of_any_shape_are_read_and_forwarded_or_left_alone(said):
    body = body_of(said, tools=[], x=None)
    request = Parser(SHAPE).parse(body)
    if request is None:
        return
    assert json.loads(render(request, [m.raw for m in request.messages])) == json.loads(body)
    for found in request.messages:
        assert message_of(found.raw) == found
        if found.role == "tool":
            json.loads(with_content(found.raw, "shorter"))


@promise
@given(
    said=st.lists(ODD_ITEMS, max_size=4),
    more=st.dictionaries(st.sampled_from(["usage", "status", "error"]), ODD_VALUES),
)
def test_answers_of_any_shape_are_read_without_an_error(said, more):
    body = json.dumps({"output": [*said, message("still here")], **more}).encode()
    (found,) = completion_in(body).messages
    assert found.text.endswith("still here")


# Plain answers


def test_a_plain_answer_is_one_message_whose_items_keep_their_bytes():
    thought = b'{ "type":"reasoning", "id":"rs_1","summary":[] }'
    said = b'{"type":"message","role":"assistant", "content":[{"type":"output_text","text":"caf\\u00e9 \\ud83d"}]}'
    body = b'{"output":[ ' + thought + b" ,\n" + said + b' ],"status":"completed","usage":null}'
    answered = completion_in(body)

    assert [m.raw for m in answered.messages] == [b"[" + thought + b"," + said.replace(b"ud83d", b"ufffd") + b"]"]
    assert answered.messages[0].text == "café \ufffd"
    assert answered.finish_reasons == ("completed",)


def test_usage_reason_and_error_are_what_the_provider_says():
    whole = response([message("ok")], 11, "incomplete", incomplete_details={"reason": "max_output_tokens"})
    whole["usage"]["input_tokens_details"]["cached_tokens"] = 3
    cut = completion_in(json.dumps(whole).encode())
    failed = completion_in(json.dumps(response([], 1, "failed", error={"code": "x", "message": "sorry"})).encode())

    assert cut.usage == Usage(11, 3, 5)
    assert cut.finish_reasons == ("max_output_tokens",)
    assert (failed.messages, failed.finish_reasons, failed.error) == ((), (), "sorry")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b'{"output":5}', b'{"output":null}', b'{"output":[5,[{}]]}']
)
def test_a_body_without_items_says_nothing(body):
    assert completion_in(body).messages == ()
