"""Several upstreams: which one is asked, as whom, and what happens when it refuses."""

import contextlib
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.config import Config, ModelSection
from proxy.destinations import UpstreamSection
from proxy.exchange import Exchange
from proxy.upstreams import Question, Upstreams
from proxy.wire.dialects import CHAT, Dialect
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser
from tests.conversations import body_of, user
from tests.proxied import MODEL, MODELS, Provider, Proxy, plain, proxying, streamed
from tests.proxy.test_chat import history, note
from tests.scripted import End, Got, ScriptedUpstream, answer, ask, cut

PATH = b"/v1/chat/completions"
KNOWN = {"a-1", "b-1", "b-2", "first", "a-never", "anthropic/claude-x", "A-1", "open", "llama", "gone", "real"}
KNOWN_MODELS = MODELS | {name: ModelSection(context_window=8_192) for name in KNOWN}  # so nobody asks for their windows
SAID = {"role": "assistant", "content": "Here."}
REFUSAL = answer(b'{"error":{"message":"too many","type":"requests","code":null}}', 429)
# Every way a client may say who it is.
OF_CLIENT = (
    (b"Authorization", b"Bearer SECRET-client"),
    (b"Cookie", b"session=SECRET-client"),
    (b"X-Goog-Api-Key", b"SECRET-client"),
    (b"OpenAI-Organization", b"SECRET-client-org"),
    (b"X-Auth-Token", b"SECRET-client"),
)


def section(**settings: Any) -> UpstreamSection:
    return UpstreamSection(**settings)


@pytest.fixture
def three() -> Iterator[SimpleNamespace]:
    """A default upstream and two others, on sockets of their own."""
    with contextlib.ExitStack() as stack:
        yield SimpleNamespace(
            **{name: stack.enter_context(ScriptedUpstream(plain(SAID))) for name in ("default", "a", "b")}
        )


@pytest.fixture
def house(three, dsn, tmp_path, monkeypatch) -> Iterator[Proxy]:
    """Models a-* are found at `a` with a key of its own, b-* at `b` with the client's; the rest at the default one."""
    monkeypatch.setenv("KEY_OF_A", "SECRET-a")
    monkeypatch.setenv("OPENAI_API_KEY", "SECRET-lent")
    upstreams = {
        "a": section(url=f"{three.a.url}/v1", models=["a-*", "first"], api_key_env="KEY_OF_A"),
        "b": section(url=f"{three.b.url}/openai/v1", models=["b-*", "first", "a-never"]),
    }
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        yield proxy


async def chat(proxy: Proxy, model: str, headers: Any = OF_CLIENT, path: bytes = PATH, **more: Any) -> Got:
    return await ask(proxy.url, "POST", path, headers, body_of([user("hi")], model, **more))


def secrets(upstream: ScriptedUpstream) -> set[str]:
    """The secrets that an upstream was ever shown, wherever they stood."""
    names = ("client", "a", "b", "lent", "fallback")
    return {name for name in names for seen in upstream.requests if f"SECRET-{name}".encode() in seen.raw}


# Which upstream


@pytest.mark.parametrize(
    ("model", "where", "target"),
    [
        (MODEL, "default", b"/v1/chat/completions"),
        ("a-1", "a", b"/v1/chat/completions"),
        ("b-1", "b", b"/openai/v1/chat/completions"),
        ("first", "a", b"/v1/chat/completions"),
        ("a-never", "a", b"/v1/chat/completions"),
        ("anthropic/claude-x", "default", b"/v1/chat/completions"),
        ("A-1", "default", b"/v1/chat/completions"),
    ],
)
async def test_the_first_upstream_that_claims_the_model_is_asked(house, three, model, where, target):
    got = await chat(house, model)
    asked = {name: len(upstream.requests) for name, upstream in vars(three).items()}
    assert got.status == 200
    assert asked == {"default": 0, "a": 0, "b": 0} | {where: 1}
    assert getattr(three, where).requests[0].target == target


async def test_the_bytes_of_the_body_and_the_other_headers_are_the_clients(house, three):
    body = b'{ "model" : "a-1", "unknown": 1.50,"messages":[{"role":"user","content":"h\\u0069"}]}'
    await ask(house.url, "POST", PATH, [*OF_CLIENT, (b"X-Title", b"mine"), (b"Idempotency-Key", b"i-1")], body)
    seen = three.a.requests[0]
    assert seen.body == body
    assert (seen.header(b"x-title"), seen.header(b"idempotency-key")) == (b"mine", b"i-1")


@pytest.mark.parametrize("wanted", [b"off", b"on"])
async def test_the_model_decides_also_without_memory_and_for_what_is_not_understood(house, three, wanted):
    odd = b'{"model":"b-1","messages":"not an array"}'
    for body in (body_of([user("hi")], "b-1"), odd):
        await ask(house.url, "POST", PATH, [*OF_CLIENT, (b"X-Infold-Memory", wanted)], body)
    assert [seen.body for seen in three.b.requests] == [body_of([user("hi")], "b-1"), odd]
    assert three.default.requests == []


async def test_other_endpoints_go_to_the_default_upstream(house, three):
    for method, target in (("GET", b"/v1/models"), ("POST", b"/v1/embeddings"), ("GET", PATH)):
        await ask(house.url, method, target, OF_CLIENT, b'{"model":"a-1"}' if method == "POST" else None)
    assert [seen.target for seen in three.default.requests] == [b"/v1/models", b"/v1/embeddings", PATH]


async def test_metrics_logs_and_records_name_the_upstream(house):
    got = await chat(house, "a-1")
    await chat(house, MODEL)
    assert house.metric("infold_upstream_answers_total", upstream="a", status="2xx") == 1
    assert house.metric("infold_upstream_answers_total", upstream="default", status="2xx") == 1
    told = house.explain(note(got, "turn"), "SECRET-client")
    assert '"upstream": "a"' in json.dumps(told)


# As whom


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("key", [b"Authorization", b"X-Api-Key", b"Api-Key"])
@pytest.mark.parametrize(
    ("model", "where", "seen"), [("a-1", "a", {"a"}), ("b-1", "b", {"client"}), (MODEL, "default", {"client"})]
)
async def test_no_key_reaches_another_upstream(house, three, model, where, seen, key, stream):
    """However the client says who it is."""
    named = (key, b"Bearer SECRET-client" if key == b"Authorization" else b"SECRET-client")
    headers = [named, *OF_CLIENT[1:]]
    await chat(house, model, headers, PATH + b"?api-key=SECRET-client&beta=true", stream=stream)
    await ask(house.url, "POST", PATH, [*headers, (b"X-Infold-Memory", b"off")], body_of([user("x")], model))
    assert {name: secrets(upstream) for name, upstream in vars(three).items()} == {
        "default": set(), "a": set(), "b": set()
    } | {where: seen}  # fmt: skip
    assert b"beta=true" in getattr(three, where).requests[0].target


@pytest.mark.parametrize(("model", "seen"), [("a-1", {"a"}), ("b-1", set()), (MODEL, {"lent"})])
async def test_the_operators_key_is_lent_to_the_default_upstream_alone(house, three, model, seen):
    await chat(house, model, headers=())
    shown = set().union(*(secrets(upstream) for upstream in vars(three).values()))
    assert shown == seen


async def test_an_upstreams_own_key_is_not_the_tenant(house):
    """Two clients with keys of their own stay strangers, also where a third key is sent on."""
    first = await chat(house, "a-1", [(b"Authorization", b"Bearer sk-alice")])
    other = await chat(house, "a-1", [(b"Authorization", b"Bearer sk-bob")])
    assert note(first, "turn") != note(other, "turn")
    assert house.get(f"/memory-manager/turns/{note(first, 'turn')}", "sk-bob").status_code == 404
    assert house.get(f"/memory-manager/turns/{note(first, 'turn')}", "sk-alice").status_code == 200


async def test_cookies_that_are_set_for_the_operators_key_stay_here(house, three):
    setting = answer(b"{}", headers=[(b"Set-Cookie", b"__cf_bm=1"), (b"X-Request-Id", b"r")])
    three.a.script = three.b.script = setting
    own, clients = await chat(house, "a-1"), await chat(house, "b-1")
    assert (own.header(b"set-cookie"), own.header(b"x-request-id")) == (None, b"r")
    assert clients.header(b"set-cookie") == b"__cf_bm=1"


@pytest.mark.parametrize(
    ("settings", "header", "value"),
    [
        ({}, b"authorization", b"Bearer SECRET-a"),
        ({"key_header": "x-api-key"}, b"x-api-key", b"SECRET-a"),
        ({"key_header": "api-key"}, b"api-key", b"SECRET-a"),
    ],
)
async def test_a_key_goes_where_it_is_set_to_go(three, dsn, tmp_path, monkeypatch, settings, header, value):
    monkeypatch.setenv("KEY_OF_A", "SECRET-a")
    upstreams = {"a": section(url=three.a.url, models=["a-*"], api_key_env="KEY_OF_A", **settings)}
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        await chat(proxy, "a-1")
    seen = three.a.requests[0]
    assert {name: seen.header(name) for name in (b"authorization", b"x-api-key", b"api-key")} == {
        b"authorization": None, b"x-api-key": None, b"api-key": None
    } | {header: value}  # fmt: skip


async def test_windows_are_asked_of_the_upstream_in_question_with_its_key(house, three):
    listing = answer(b'{"data":[{"id":"a-new","max_model_len":8192},{"id":"b-new","max_model_len":4096}]}')
    for upstream in (three.a, three.b):
        upstream.script = lambda seen: listing if seen.method == "GET" else plain(SAID)
    for model, upstream in (("a-new", three.a), ("b-new", three.b)):
        await chat(house, model)
        await upstream.until(lambda one: any(seen.method == "GET" for seen in one.requests))
    find = house.parts.memory.models.find
    await three.b.until(lambda _: find("b-new", f"{three.b.url}/openai/v1").window == 4096)
    assert find("a-new", f"{three.a.url}/v1").window == 8192
    assert find("a-new", f"{three.default.url}/v1").window is None
    assert (secrets(three.a), secrets(three.b), three.default.requests) == ({"a"}, {"client"}, [])


# Names and paths


async def test_azure_gets_its_deployment_version_and_key(three, dsn, tmp_path, monkeypatch):
    """The path replaces /v1, the version joins the client's query and wins, the name is the deployment's model."""
    monkeypatch.setenv("AZURE_API_KEY", "SECRET-a")
    url = f"{three.a.url}/openai/deployments/gpt-4o?api-version=2025-04-01-preview"
    azure = section(url=url, models=["gpt-4o-azure"], model="gpt-4o", api_key_env="AZURE_API_KEY", key_header="api-key")
    with proxying(three.default.url, dsn, tmp_path, upstreams={"azure": azure}) as proxy:
        got = await chat(proxy, "gpt-4o-azure", path=PATH + b"?api-version=2023-01-01&x=%20y")
        told = proxy.explain(note(got, "turn"), "SECRET-client")
    seen = three.a.requests[0]
    assert seen.target == b"/openai/deployments/gpt-4o/chat/completions?api-version=2025-04-01-preview&x=%20y"
    assert seen.header(b"api-key") == b"SECRET-a"
    assert seen.body == body_of([user("hi")], "gpt-4o")
    assert told["model"] == "gpt-4o"


def test_azure_is_known_by_its_host(monkeypatch):
    monkeypatch.setenv("AZURE_API_KEY", "SECRET-a")
    azure = section(url="https://x.openai.azure.com/openai/v1", models=["m"], api_key_env="AZURE_API_KEY")
    assert (b"api-key", b"SECRET-a") in way_of("m", upstreams={"azure": azure}).headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"n":1}',
        b'{"messages":[{"role":"user","content":"\\"model\\":\\"m\\""}], "model" : "m" }',
        b'{"n":1,"metadata":{"model":"m"},"model":"m","messages":[{"role":"user","content":"hi"}]}',
    ],
)
def test_only_the_bytes_of_the_models_name_change(body):
    asked = Parser(SHAPE).parse(body)
    there = Question(body, body, asked).renamed("o/ther")
    assert there.body in {
        body[:i] + b'"o/ther"' + body[i + 3 :] for i in range(len(body)) if body[i:].startswith(b'"m"')
    }
    assert json.loads(there.body) == json.loads(body) | {"model": "o/ther"}
    assert there.asked == Parser(SHAPE).parse(there.body)


@pytest.mark.parametrize("body", [b"", b"no json", b"{}", b'{"messages":[]}', b'{"model":"m","model":"n"}', b"[]"])
async def test_what_names_no_model_goes_on_as_it_came(three, dsn, tmp_path, body):
    upstreams = {"a": section(url=three.a.url, models=["*"], model="real", fallback="b/x")}
    upstreams["b"] = section(url=three.b.url, models=["b"])
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        got = await ask(proxy.url, "POST", PATH, [*OF_CLIENT], body)
        assert got.status == 200
        three.a.script = REFUSAL
        assert (await ask(proxy.url, "POST", PATH, [*OF_CLIENT], body)).status in (200, 429)
    assert [seen.body for seen in three.a.requests] == [body, body]


@pytest.mark.parametrize(
    ("headers", "spent"),
    [
        ([(b"Host", b"localhost:8808")], {"a"}),
        ([(b"Host", b"127.0.0.1:8808")], {"a"}),
        ([(b"Host", b"[::1]:8808"), (b"Origin", b"http://localhost:5173")], {"a"}),
        ([(b"Host", b"localhost:8808"), (b"Origin", b"https://example.com")], set()),
        ([(b"Host", b"localhost:8808"), (b"Origin", b"null")], set()),
        ([(b"Host", b"rebound.example.com:8808")], set()),
    ],
)
async def test_a_page_from_elsewhere_spends_no_key_of_an_upstream(house, three, headers, spent):
    key = (b"Authorization", b"Bearer SECRET-client")
    await ask(house.url, "POST", PATH, [*headers, key], body_of([user("hi")], "a-1"))
    assert secrets(three.a) == spent


@pytest.mark.parametrize("model", ["gemini/x", "gpt-4o"])
def test_a_page_from_elsewhere_spends_no_key_of_a_provider(keys, model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "SECRET-lent")
    for headers in ([(b"origin", b"https://example.com")], [(b"host", b"rebound.example.com")]):
        assert "SECRET" not in repr(way_of(model, CHAT, headers).headers)
    assert "SECRET" in repr(way_of(model, CHAT, [(b"host", b"localhost")]).headers)


def test_a_packed_request_reaches_a_provider_unpacked(keys):
    packed = gzip.compress(body_of([user("hi")], "gemini/x"))
    text = gzip.decompress(packed)
    way = way_of("gemini/x", CHAT, CLIENT, question=Question(packed, text, Parser(SHAPE).parse(text)))
    assert (way.question.body, way.question.asked.body) == (text, text)


async def test_a_packed_request_for_another_name_goes_on_unpacked(three, dsn, tmp_path):
    upstreams = {"a": section(url=three.a.url, models=["nick"], model="real")}
    packed = gzip.compress(body_of([user("hi")], "nick"))
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        await ask(proxy.url, "POST", PATH, [*OF_CLIENT, (b"Content-Encoding", b"gzip")], packed)
    assert three.a.requests[0].body == body_of([user("hi")], "real")
    assert three.a.requests[0].header(b"content-encoding") is None


async def test_a_long_conversation_folds_for_the_window_of_the_upstreams_name(three, dsn, tmp_path):
    provider = Provider()
    three.a.script = provider
    upstreams = {"a": section(url=three.a.url, models=["nick"], model=MODEL)}
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        body = body_of([*history(), user("and so?")], "nick", max_tokens=256)
        got = await ask(proxy.url, "POST", PATH, [*OF_CLIENT], body)
    assert (got.status, note(got, "mode")) == (200, "folded")
    assert provider.prompts[0].body["model"] == MODEL


# Without any setting


MESSAGES = CHAT._replace(shape=SHAPE, errors="anthropic")


def way_of(
    model: str, dialect: Dialect = CHAT, headers: Any = (), question: Question | None = None, **settings: Any
) -> Any:
    """The way of a request, without a network."""
    scope = {"method": "POST", "raw_path": PATH, "query_string": b"", "headers": list(headers)}
    body = body_of([user("hi")], model)
    question = question or Question(body, body, Parser(SHAPE).parse(body))
    return Upstreams(Config(**settings)).managed(Exchange(scope, None, None), question, dialect)


@pytest.fixture
def keys(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "MISTRAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "SECRET-gemini")


CLIENT = [(b"authorization", b"Bearer SECRET-client"), (b"cookie", b"SECRET-client")]


@pytest.mark.parametrize(
    ("model", "dialect", "settings", "name", "url"),
    [
        ("gpt-4o", CHAT, {}, "default", "https://api.openai.com/v1"),
        ("claude-x", MESSAGES, {}, "default-messages", "https://api.anthropic.com"),
        ("claude-x", MESSAGES, {"upstream": "http://h/v1"}, "default", "http://h/v1"),
        (
            "claude-x", MESSAGES, {"upstream": "http://h/v1", "anthropic_upstream": "http://i"},
            "default-messages", "http://i",
        ),
        ("gemini/x", CHAT, {}, "gemini", "http://providers"),
        ("gemini/x", MESSAGES, {}, "gemini", "http://providers"),
        ("gemini/x", MESSAGES, {"anthropic_upstream": "http://i"}, "default-messages", "http://i"),
        ("gemini/x", CHAT, {"upstream": "https://openrouter.ai/api/v1"}, "default", "https://openrouter.ai/api/v1"),
        ("gemini/x", CHAT, {"host": "0.0.0.0"}, "default", "https://api.openai.com/v1"),
        ("mistral/x", CHAT, {}, "default", "https://api.openai.com/v1"),
        ("nobody/x", CHAT, {}, "default", "https://api.openai.com/v1"),
    ],
)  # fmt: skip
def test_where_a_request_goes_by_itself(keys, model, dialect, settings, name, url):
    """A provider is found by its name only with the operator's key for it; a client's key for OpenAI never goes there.

    What stays at the default upstream stays as it came.
    """
    way = way_of(model, dialect, CLIENT, **settings)
    assert (way.name, way.upstream.base_url) == (name, url)
    shown = repr(way.headers)
    assert ("SECRET-client" in shown, "SECRET-gemini" in shown) == (name != "gemini", name == "gemini")
    assert way.question.model == model


async def test_anthropics_paths_go_to_anthropic_while_nobody_says_otherwise(three, dsn, tmp_path):
    """As `ANTHROPIC_BASE_URL=http://127.0.0.1:8808` needs it; the upstream here stands for Anthropic's address."""
    with proxying("https://api.openai.com", dsn, tmp_path, anthropic_upstream=three.a.url) as proxy:
        body = b'{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'
        for target in (b"/v1/messages?beta=true", b"/v1/messages/count_tokens"):
            await ask(proxy.url, "POST", target, [(b"X-Api-Key", b"SECRET-client")], body)
    posted = [seen for seen in three.a.requests if seen.method == "POST"]  # its windows may be asked for as well
    assert [(seen.target, seen.body) for seen in posted] == [
        (b"/v1/messages?beta=true", body),
        (b"/v1/messages/count_tokens", body),
    ]
    assert posted[0].header(b"x-api-key") == b"SECRET-client"


async def test_errors_of_ours_on_anthropics_paths_have_anthropics_shape(dsn, tmp_path):
    with proxying("http://127.0.0.1:9", dsn, tmp_path) as proxy:
        got = await ask(proxy.url, "POST", b"/v1/messages/batches", OF_CLIENT, b"{}")
    assert got.status == 502
    assert json.loads(got.body)["type"] == "error"


# Fallbacks


@pytest.fixture
def second(three, dsn, tmp_path, monkeypatch) -> Iterator[Proxy]:
    """`a` with a key, and `b` with another, which steps in for it under another name; `b` itself falls back to `a`."""
    monkeypatch.setenv("KEY_OF_A", "SECRET-a")
    monkeypatch.setenv("KEY_OF_B", "SECRET-b")
    upstreams = {
        "a": section(url=three.a.url, models=["a-1"], api_key_env="KEY_OF_A", fallback="b/b-2"),
        "b": section(url=three.b.url, models=["b-*"], api_key_env="KEY_OF_B", fallback="a/a-1"),
        "open": section(url=three.a.url, models=["open"], fallback="local/llama"),
        "local": section(url=three.b.url, models=["llama"]),
        "gone": section(url="http://127.0.0.1:9", models=["gone"], fallback="b/b-2"),
    }
    with proxying(three.default.url, dsn, tmp_path, upstreams=upstreams, models=KNOWN_MODELS) as proxy:
        yield proxy


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_fallback_answers_for_an_upstream_that_refuses(second, three, status, stream):
    three.a.script = answer(b'{"error":{"message":"no"}}', status)
    three.b.script = streamed(SAID) if stream else plain(SAID)
    got = await chat(second, "a-1", stream=stream)
    assert (got.status, got.header(b"x-infold-fallback"), got.complete) == (200, b"b/b-2", True)
    assert b"Here." in got.body
    assert three.b.requests[0].body == body_of([user("hi")], "b-2", stream=stream)
    assert (len(three.a.requests), len(three.b.requests), three.default.requests) == (1, 1, [])
    assert (secrets(three.a), secrets(three.b)) == ({"a"}, {"b"})
    assert second.metric("infold_fallbacks_total", upstream="a", to="b") == 1


async def test_a_fallback_answers_for_an_upstream_that_is_not_there(second, three):
    got = await chat(second, "gone")
    assert (got.status, got.header(b"x-infold-fallback")) == (200, b"b/b-2")
    assert secrets(three.b) == {"b"}


async def test_a_fallback_without_a_key_gets_none(second, three):
    """The client's key is for the first upstream."""
    three.a.script = REFUSAL
    got = await chat(second, "open")
    assert got.header(b"x-infold-fallback") == b"local/llama"
    assert (secrets(three.a), secrets(three.b)) == ({"client"}, set())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_what_the_client_can_mend_is_answered_as_it_came(second, three, status):
    three.a.script = answer(b'{"error":{"message":"no"}}', status)
    got = await chat(second, "a-1")
    assert (got.status, got.body, got.header(b"x-infold-fallback")) == (status, b'{"error":{"message":"no"}}', None)
    assert three.b.requests == []


async def test_two_that_refuse_are_asked_once_each(second, three):
    """One hop: `b` would fall back to `a`."""
    three.a.script = three.b.script = REFUSAL
    got = await chat(second, "a-1")
    assert (got.status, got.header(b"x-infold-fallback")) == (429, b"b/b-2")
    assert (len(three.a.requests), len(three.b.requests)) == (1, 1)


async def test_what_was_sent_and_not_answered_is_not_sent_elsewhere(second, three):
    """It may have been paid for already."""
    three.a.script = [End.CLOSE]
    got = await chat(second, "a-1")
    assert (got.status, three.b.requests) == (502, [])


async def test_a_stream_that_breaks_off_is_not_begun_again_elsewhere(second, three):
    three.a.script = cut(streamed(SAID), 300)
    got = await chat(second, "a-1", stream=True)
    assert not got.complete
    assert three.b.requests == []


async def test_what_is_not_understood_has_no_fallback(second, three):
    three.a.script = REFUSAL
    got = await ask(second.url, "POST", PATH, OF_CLIENT, b'{"model":"a-1","messages":7}')
    assert (got.status, three.b.requests) == (429, [])


async def test_without_a_fallback_a_refusal_is_answered_as_it_came(house, three):
    three.b.script = REFUSAL
    got = await chat(house, "b-1")
    assert (got.status, len(three.b.requests)) == (429, 1)


async def test_the_record_tells_both_attempts_and_who_answered(second, three):
    three.a.script = REFUSAL
    got = await chat(second, "a-1")
    told = second.explain(note(got, "turn"), "SECRET-client")
    first, last = told["attempts"]
    assert (first["status"], last["status"]) == ("failed", "answered")
    assert first["error"] == "the upstream answered 429"
    named = [{name: one[name] for name in ("upstream", "model", "fallback")} for one in (first, last)]
    assert named == [
        {"upstream": "a", "model": "a-1", "fallback": None},
        {"upstream": "b", "model": "b-2", "fallback": "b/b-2"},
    ]


# A web worker stays small


def test_litellm_is_not_in_the_web_worker():
    """It takes 170 MB; requests for other providers go to a process of its own."""
    script = (
        "import sys, proxy.app, proxy.cli; from proxy.config import Config; from proxy.upstreams import Upstreams;"
        "from proxy.destinations import UpstreamSection;"
        "Upstreams(Config(upstreams={'g': UpstreamSection(provider='gemini', models=['g'])}));"
        "print('litellm' in sys.modules, 'proxy.providers' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    assert told.stdout.split() == ["False", "False"]
