"""Providers of other dialects: litellm's process as people have it, before scripted providers on real sockets."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest

from proxy.config import ModelSection, bare_environment
from proxy.destinations import UpstreamSection
from proxy.household import PROVIDERS_SOCKET, on_demand, private_folder
from proxy.providers import CHAT_FIELDS, HINTS, NotTranslated, embedded, parsed, refusal
from tests.conversations import assistant, body_of, calling, result, user
from tests.proxied import MODELS, plain, proxying
from tests.proxy.test_chat import history
from tests.scripted import End, Got, ScriptedUpstream, answer, ask, connected, cut, sse
from tests.speaking import (
    JSON_TYPE,
    STREAM,
    failing,
    speaking_anthropic,
    speaking_gemini,
    speaking_openai,
)

Json = dict[str, Any]

PATH = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer SECRET-client")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def world(new_database, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """One proxy, and with it one process of litellm, before three providers and an upstream that nobody asks."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name in ("claude", "gemini", "openai"):
            patch.setenv(f"KEY_OF_{name.upper()}", f"SECRET-{name}")
        patch.setenv("ANTHROPIC_API_KEY", "SECRET-environment")
        patch.setenv("OPENAI_API_KEY", "SECRET-lent")
        claude = stack.enter_context(ScriptedUpstream(speaking_anthropic))
        gemini = stack.enter_context(ScriptedUpstream(speaking_gemini))
        other = stack.enter_context(ScriptedUpstream(speaking_openai))
        default = stack.enter_context(ScriptedUpstream(plain(assistant("?"))))
        upstreams = {
            "claude": section("anthropic", claude.url, ["claude-*", "anthropic/*"], "KEY_OF_CLAUDE"),
            "theirs": section("anthropic", claude.url, ["theirs"]),
            "gemini": section("gemini", gemini.url, ["gemini-*"], "KEY_OF_GEMINI"),
            "falls": section("gemini", gemini.url, ["falls"], "KEY_OF_GEMINI", fallback="claude/claude-x"),
            "gpt": section("openai", other.url + "/v1", ["gpt-x"], "KEY_OF_OPENAI"),
            "closed": section("anthropic", "http://127.0.0.1:9", ["closed"], "KEY_OF_CLAUDE"),
        }
        known = MODELS | {"claude-x": ModelSection(context_window=8_192)}
        dsn = stack.enter_context(new_database())
        folder = tmp_path_factory.mktemp("providers")
        proxy = stack.enter_context(proxying(default.url, dsn, folder, upstreams=upstreams, models=known))
        yield SimpleNamespace(proxy=proxy, claude=claude, gemini=gemini, openai=other, default=default)


def section(provider: str, url: str, models: Sequence[str], key: str | None = None, **more: Any) -> UpstreamSection:
    return UpstreamSection(provider=provider, url=url, models=tuple(models), api_key_env=key, **more)


@pytest.fixture(autouse=True)
def anew(request) -> Iterator[None]:
    yield
    if "world" in request.fixturenames:
        world = request.getfixturevalue("world")
        scripts = {"claude": speaking_anthropic, "gemini": speaking_gemini, "openai": speaking_openai}
        for name, script in scripts.items():
            getattr(world, name).script = script
            getattr(world, name).requests.clear()
        world.default.requests.clear()


@pytest.fixture
def sdk(world) -> Iterator[openai.OpenAI]:
    with world.proxy.client("SECRET-client", timeout=60.0) as client:
        yield client


async def chat(world: SimpleNamespace, model: str, **more: Any) -> Got:
    return await ask(world.proxy.url, "POST", PATH, [KEY], body_of([user("hi")], model, **more))


# Every client's whole way, through the memory


@pytest.mark.parametrize("model", ["claude-x", "gpt-x"])
def test_a_client_of_messages_is_managed_whatever_the_provider_speaks(world, model):
    key = "SECRET-client"
    with anthropic.Anthropic(base_url=world.proxy.url, api_key=key, max_retries=0, timeout=60) as client:
        asked: Any = {"model": model, "max_tokens": 50, "messages": [user(f"hi, {model}")]}
        said = client.messages.with_raw_response.create(**asked)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_text()
    words = {"claude-x": "Good morning.", "gpt-x": "Guten Morgen."}[model]
    assert (said.parse().content[0].text, streamed) == (words, words)
    assert said.headers["x-infold-mode"] == "wire"
    assert [turn["status"] for turn in turns(world, key, said.headers["x-infold-turn"])] == ["answered"] * 2
    provider = {"claude-x": world.claude, "gpt-x": world.openai}[model]
    assert not any(b"SECRET-client" in value for seen in provider.requests for _, value in seen.headers)


@pytest.mark.parametrize("model", ["claude-x", "gpt-x"])
def test_a_client_of_chat_is_managed_whatever_the_provider_speaks(sdk, world, model):
    said = sdk.chat.completions.with_raw_response.create(model=model, messages=[user(f"hello, {model}")])
    assert said.parse().choices[0].message.content in ("Good morning.", "Guten Morgen.")
    assert [turn["status"] for turn in turns(world, "SECRET-client", said.headers["x-infold-turn"])] == ["answered"]


def test_a_client_of_responses_is_managed_before_a_provider_that_speaks_messages(sdk, world):
    said = sdk.responses.with_raw_response.create(model="claude-x", input="Hello?")
    assert said.parse().output_text == "Good morning."
    assert said.headers["x-infold-mode"] == "wire"
    events = list(sdk.responses.create(model="claude-x", input="Hello?", stream=True))
    assert events[-1].response.output_text == "Good morning."
    assert [t["status"] for t in turns(world, "SECRET-client", said.headers["x-infold-turn"])] == ["answered"] * 2


def turns(world: SimpleNamespace, key: str, turn: str) -> list[Json]:
    """The attempts of a turn."""
    headers = {"authorization": f"Bearer {key}"}
    told = httpx.get(f"{world.proxy.url}/memory-manager/turns/{turn}", headers=headers).raise_for_status().json()
    return told["attempts"]  # type: ignore[no-any-return]


# A client of chat completions, a provider that speaks Messages


def test_a_plain_answer_is_a_completion(sdk, world):
    said = sdk.chat.completions.with_raw_response.create(model="claude-x", messages=[user("hi")])
    told = said.parse()
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == ("Good morning.", "stop")
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (10, 5)
    assert said.headers["request-id"] == "req_1"
    assert said.headers["x-infold-mode"] == "wire"
    assert json.loads(world.claude.requests[0].body)["model"] == "claude-x"


def test_a_stream_is_a_stream_of_chunks(sdk):
    options = {"include_usage": True}
    stream = sdk.chat.completions.create(model="claude-x", messages=[user("hi")], stream=True, stream_options=options)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Good morning."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)


async def test_a_stream_comes_as_it_comes_and_ends_with_done(world):
    world.claude.script = lambda seen: [*sse(STREAM)[:4], 1.5, *sse(STREAM)[4:]]
    async with connected(world.proxy.url) as client:
        body = body_of([user("hi")], "claude-x", stream=True)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b: %b\r\nContent-Length: %d\r\n\r\n" % (PATH, *KEY, len(body))
        await client.send(head + body)
        await client.head(30)
        first = await client.reader.readuntil(b"Good ")
        assert b"morning" not in first
        rest = (
            await client.answer_rest()
            if hasattr(client, "answer_rest")
            else await client.reader.readuntil(b"0\r\n\r\n")
        )
    assert b"morning." in rest
    assert b"data: [DONE]" in rest


def test_tools_go_and_come(sdk, world):
    asked = [user("look at 3")]
    first = sdk.chat.completions.create(model="claude-x", messages=asked, tools=[TOOL])
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 3})
    assert first.choices[0].finish_reason == "tool_calls"
    back = [*asked, calling((call.id, call.function.arguments)), result(call.id, "a pond")]
    second = sdk.chat.completions.create(model="claude-x", messages=back, tools=[TOOL])
    assert second.choices[0].message.content == "Good morning."
    assert b"a pond" in world.claude.requests[-1].body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_a_refusal_keeps_its_status_and_words_and_has_openais_shape(world, status, kind, stream):
    world.claude.script = failing(status, kind, (b"retry-after", b"7"))
    got = await chat(world, "claude-x", stream=stream)
    error = json.loads(got.body)["error"]
    assert (got.status, error["message"], got.header(b"retry-after")) == (status, f"It is {kind}.", b"7")
    assert set(error) == {"message", "type", "param", "code"}
    assert len(world.claude.requests) == 1


async def test_a_prompt_that_is_too_long_is_compacted_and_sent_once_more(world):
    """The refusal's words come through, so the window is learnt from them."""
    refusal = answer(
        b'{"type":"error","error":{"type":"invalid_request_error",'
        b'"message":"prompt is too long: 250000 tokens > 6000 maximum"}}',
        400,
    )
    world.claude.script = lambda seen: refusal if len(seen.body) > 26_000 else speaking_anthropic(seen)
    body = body_of([*history(turns=12), user("and so?")], "claude-unheard-of", max_tokens=100)
    got = await ask(world.proxy.url, "POST", PATH, [KEY], body)
    assert got.status == 200
    assert len(world.claude.requests) == 2


async def test_a_stream_that_breaks_off_breaks_off(world):
    """No false end."""
    world.claude.script = cut(sse(STREAM), 700, End.RESET)
    got = await chat(world, "claude-x", stream=True)
    assert not got.complete
    assert b"[DONE]" not in got.body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_provider(world, stream):
    await chat(world, "claude-x")  # so that the process runs
    world.claude.script = [*(sse(STREAM)[:4] if stream else ()), End.HANG]
    gone = len(world.claude.closed_at)
    async with connected(world.proxy.url) as client:
        body = body_of([user("hi")], "claude-x", stream=stream)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b: %b\r\nContent-Length: %d\r\n\r\n" % (PATH, *KEY, len(body))
        await client.send(head + body)
        await world.claude.until(lambda one: len(one.requests) == 2, 60)
        if stream:
            await client.reader.readuntil(b"Good ")
    await world.claude.until(lambda one: len(one.closed_at) > gone)


async def test_a_provider_that_is_not_there_is_a_502(world):
    got = await chat(world, "closed")
    assert (got.status, json.loads(got.body)["error"]["type"]) == (502, "server_error")


async def test_a_long_conversation_folds_on_its_way_to_a_provider(world):
    body = body_of([*history(), user("and so?")], "claude-x", max_tokens=256)
    got = await ask(world.proxy.url, "POST", PATH, [KEY], body)
    assert got.header(b"x-infold-mode") == b"folded"
    assert len(world.claude.requests[0].body) < len(body) / 1.5


# Another provider, other clients


def test_gemini_answers_plainly_and_in_a_stream(sdk, world):
    said = sdk.chat.completions.create(model="gemini-2.5-flash", messages=[user("hi")])
    assert said.choices[0].message.content == "Buongiorno."
    stream = sdk.chat.completions.create(model="gemini-2.5-flash", messages=[user("hi")], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "Buongiorno."
    assert [seen.header(b"x-goog-api-key") for seen in world.gemini.requests] == [b"SECRET-gemini"] * 2


async def test_geminis_refusals_have_openais_shape(world):
    world.gemini.script = answer(b'{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}', 429)
    got = await chat(world, "gemini-2.5-flash")
    assert (got.status, json.loads(got.body)["error"]["message"]) == (429, "quota")


@pytest.fixture(scope="module")
def alone() -> Iterator[SimpleNamespace]:
    """litellm's process alone, asked as a web worker asks it."""
    with private_folder() as folder, on_demand(folder / PROVIDERS_SOCKET) as waiting:
        waiting.child.start()
        transport = httpx.HTTPTransport(uds=str(folder / PROVIDERS_SOCKET))
        with httpx.Client(transport=transport, base_url="http://providers", timeout=60) as client:
            yield SimpleNamespace(client=client, process=waiting.child.process)
        waiting.child.stop(5)


def told(provider: str, upstream: ScriptedUpstream, base: str = "", key: str = "SECRET-own") -> dict[str, str]:
    options = json.dumps({"api_base": upstream.url + base})
    return {"infold-provider": provider, "infold-options": options, "authorization": f"Bearer {key}"}


def test_a_client_of_messages_reaches_a_provider_that_speaks_openai(alone):
    with ScriptedUpstream(speaking_openai) as upstream:
        asked: Any = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [user("hi")], "system": "Be brief."}
        said = alone.client.post("/v1/messages", json=asked, headers=told("openai", upstream, "/v1")).json()
        assert (said["type"], said["role"], said["stop_reason"]) == ("message", "assistant", "end_turn")
        assert said["content"] == [{"type": "text", "text": "Guten Morgen."}]
        assert said["usage"] == {"input_tokens": 7, "output_tokens": 5}
        asked["stream"] = True
        streamed = alone.client.post("/v1/messages", json=asked, headers=told("openai", upstream, "/v1")).text
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: ")]
    named = [line.removeprefix("event: ") for line in streamed.splitlines() if line.startswith("event: ")]
    assert [event["type"] for event in events] == named
    assert (named[0], named[-1]) == ("message_start", "message_stop")
    assert "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta") == "Guten Morgen."
    roles = [message["role"] for message in json.loads(upstream.requests[0].body)["messages"]]
    assert roles == ["system", "user"]
    assert [seen.header(b"authorization") for seen in upstream.requests] == [b"Bearer SECRET-own"] * 2


@pytest.mark.parametrize(
    ("path", "tool", "more", "found"),
    [
        ("/v1/messages", {"name": "look", "input_schema": {"type": "object"}}, {"messages": [user("hi")]}, "tool_use"),
        ("/v1/responses", {"type": "function", **TOOL["function"]}, {"input": "hi"}, "function_call"),
    ],
)
def test_tools_go_and_come_in_every_dialect(alone, path, tool, more, found):
    with ScriptedUpstream(speaking_anthropic) as upstream:
        limit = "max_tokens" if path == "/v1/messages" else "max_output_tokens"
        body = {"model": "claude-x", "tools": [tool], limit: 50, **more}
        said = alone.client.post(path, json=body, headers=told("anthropic", upstream)).raise_for_status().json()
    (call,) = [one for one in said.get("content") or said["output"] if one["type"] == found]
    assert (call["name"], call.get("input") or json.loads(call["arguments"])) == ("look", {"at": 3})


def test_a_refusal_has_anthropics_shape_for_a_client_of_messages(alone):
    error = b'{"error":{"message":"Slow down.","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    with ScriptedUpstream(answer(error, 429, [JSON_TYPE, (b"retry-after", b"3")])) as upstream:
        body = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [user("hi")]}
        for stream in (False, True):
            got = alone.client.post("/v1/messages", json={**body, "stream": stream}, headers=told("openai", upstream))
            assert got.status_code == 429
            error = {"type": "rate_limit_error", "message": "Slow down."}
            assert got.json() == {"type": "error", "error": error, "request_id": None}
            assert got.headers["retry-after"] == "3"
    assert len(upstream.requests) == 2


def test_a_client_of_responses_reaches_a_provider_that_speaks_messages(alone):
    with ScriptedUpstream(speaking_anthropic) as upstream:
        client = openai.OpenAI(
            base_url="http://providers/v1", api_key="SECRET-own", http_client=alone.client, max_retries=0
        )
        headers = {name: value for name, value in told("anthropic", upstream).items() if name != "authorization"}
        asked: Any = {"model": "claude-x", "input": "hi", "instructions": "Be brief.", "extra_headers": headers}
        said = client.responses.create(**asked, store=False, prompt_cache_key="k")
        assert (said.output_text, said.status, said.usage.output_tokens) == ("Good morning.", "completed", 5)
        events = list(client.responses.create(**asked, stream=True))
        assert events[0].type == "response.created"
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Good morning."
        assert (events[-1].type, events[-1].response.output_text) == ("response.completed", "Good morning.")
        assert [e.sequence_number for e in events] == list(range(len(events)))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", None, 404),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("POST", "/v1/chat/completions", b"no json", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/responses", b'{"model":"m","input":"x","previous_response_id":"r"}', 400),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', 400),
    ],
)
def test_what_cannot_be_translated_is_refused_in_words(alone, method, path, body, status):
    with ScriptedUpstream(speaking_anthropic) as upstream:
        got = alone.client.request(method, path, content=body, headers=told("anthropic", upstream))
        assert (got.status_code, upstream.requests) == (status, [])
    assert got.json()["error"]["message"]


@pytest.mark.parametrize(
    "field", ["api_base", "base_url", "api_key", "custom_llm_provider", "extra_headers", "mock_response", "fallbacks"]
)
def test_a_body_chooses_neither_address_nor_key(alone, field):
    """Its fields become arguments of litellm."""
    with ScriptedUpstream(speaking_anthropic) as upstream, ScriptedUpstream(speaking_anthropic) as evil:
        body = {"model": "claude-x", "messages": [user("hi")], field: evil.url}
        got = alone.client.post("/v1/chat/completions", json=body, headers=told("anthropic", upstream))
        assert (got.status_code, got.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert field in got.json()["error"]["message"]
        assert (upstream.requests, evil.requests) == ([], [])


def test_a_models_name_chooses_no_other_provider(alone):
    """The key is of one provider."""
    with ScriptedUpstream(speaking_anthropic) as upstream:
        body = {"model": "openai/gpt-4o", "messages": [user("hi")]}
        alone.client.post("/v1/chat/completions", json=body, headers=told("anthropic", upstream))
    assert [(seen.target, seen.header(b"x-api-key")) for seen in upstream.requests] == [
        (b"/v1/messages", b"SECRET-own")
    ]


def test_without_a_key_none_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "SECRET-environment")
    script = (
        "import asyncio, json, os, sys; from proxy.providers import LiteLLM;"
        "litellm = LiteLLM(); print('ANTHROPIC_API_KEY' in os.environ, litellm.module.telemetry)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], env=bare_environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.split() == ["False", "False"]


# As whom


def shown(upstream: ScriptedUpstream) -> set[str]:
    names = ("client", "claude", "gemini", "environment", "lent")
    return {name for name in names for seen in upstream.requests if f"SECRET-{name}".encode() in seen.raw}


@pytest.mark.parametrize(
    ("model", "where", "key"),
    [("claude-x", "claude", "claude"), ("theirs", "claude", "client"), ("gemini-2.5-flash", "gemini", "gemini")],
)
@pytest.mark.parametrize("header", [b"Authorization", b"X-Api-Key"])
async def test_a_provider_sees_one_key_and_it_is_its_own(world, model, where, key, header):
    """The client's goes there only where the operator set none."""
    value = b"Bearer SECRET-client" if header == b"Authorization" else b"SECRET-client"
    headers = [(header, value), (b"Cookie", b"SECRET-client"), (b"Infold-Provider", b"openai")]
    await ask(world.proxy.url, "POST", PATH, headers, body_of([user("hi")], model))
    seen = {name: shown(getattr(world, name)) for name in ("claude", "gemini", "openai", "default")}
    assert seen == {"claude": set(), "gemini": set(), "openai": set(), "default": set()} | {where: {key}}
    if where == "claude":
        assert b"SECRET-client" not in (world.claude.requests[0].header(b"cookie") or b"")


async def test_a_client_without_a_key_is_refused_where_the_operator_set_none(world):
    """Nothing is lent to another provider."""
    got = await ask(world.proxy.url, "POST", PATH, [], body_of([user("hi")], "theirs"))
    assert got.status in (401, 500)
    assert shown(world.claude) == set()


async def test_a_provider_falls_back_to_another(world):
    world.gemini.script = answer(b'{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}', 503)
    got = await chat(world, "falls")
    assert (got.status, got.header(b"x-infold-fallback")) == (200, b"claude/claude-x")
    assert b"Good morning." in got.body
    assert (shown(world.gemini), shown(world.claude)) == ({"gemini"}, {"claude"})


def test_the_process_starts_when_it_is_needed_and_again_when_it_died(world, sdk, alone):
    """Whoever asks meanwhile waits, even while what is left of the dead process has not closed its connections."""
    sdk.chat.completions.create(model="claude-x", messages=[user("hi")])
    (before,) = set(litellms()) - {alone.process.pid}
    os.kill(before, signal.SIGKILL)
    assert sdk.chat.completions.create(model="claude-x", messages=[user("hi")]).choices
    (after,) = set(litellms()) - {alone.process.pid}
    assert after != before


def test_nobody_who_needs_no_translation_starts_it(proxy):
    before = litellms()
    with proxy.client() as client:
        client.chat.completions.create(model="small-8k", messages=[user("hi")])
    time.sleep(0.5)
    assert litellms() == before


def litellms() -> list[int]:
    """Our children that run litellm."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = re.search(r"^PPid:\t(\d+)", (folder / "status").read_text(), re.MULTILINE)
            if b"providers" in words and parent is not None and int(parent[1]) == os.getpid():
                found.append(int(folder.name))
    return found


# Small steps


@pytest.mark.parametrize("field", sorted(HINTS))
def test_bookkeeping_of_openai_is_not_passed_on(field):
    assert parsed(json.dumps({"model": "m", field: 1}).encode(), CHAT_FIELDS) == {"model": "m"}


def test_a_null_says_nothing():
    assert parsed(b'{"model":"m","surprise":null}', CHAT_FIELDS) == {"model": "m"}
    with pytest.raises(NotTranslated, match="surprise"):
        parsed(b'{"model":"m","surprise":1}', CHAT_FIELDS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('X - {"error": {"message": "no"}}', {"error": {"message": "no"}}),
        ('X - b\'{"message": "no"}\'', {"message": "no"}),
        (b'{"message": "no"}', {"message": "no"}),
        ("X - {not json}", {}),
        ("}{", {}),
        (None, {}),
    ],
)
def test_the_providers_words_are_found_in_litellms(text, found):
    assert embedded(text) == found


def test_a_stumble_of_litellms_is_a_refusal_too():
    told = refusal(ValueError("first line\nsecond"))
    assert (told.status, str(told)) == (400, "first line")
