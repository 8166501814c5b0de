"""Our own pages: health, metrics, the explanation of a turn, the export, each for its tenant alone."""

import asyncio
import random
import re
from typing import Any

import httpx
import orjson
import pytest

from memory.store.pool import Pool
from proxy.sections import SlmSection
from tests.conversations import assistant, prose, system, user
from tests.owners import wait_until
from tests.proxied import MODEL, Provider, Proxy, proxying

Json = dict[str, Any]


def history(seed: int = 1, turns: int = 30) -> list[Json]:
    rng = random.Random(seed)
    return [m for _ in range(turns) for m in (user(prose(rng, 90)), assistant(prose(rng, 130)))]


def turn(proxy: Proxy, messages: list[Json], key: str = "sk-alice", model: str = MODEL) -> dict[str, str]:
    with proxy.client(key) as client:
        reply = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=256)  # type: ignore[arg-type]
        return dict(reply.headers)


def test_it_is_alive_and_ready(house):
    proxy, _ = house
    assert proxy.get("/healthz").json()["status"] == "alive"
    assert proxy.get("/readyz").json() == {"status": "ready", "database": True}


def test_whether_the_local_model_may_summarise_is_told_where_it_is_to(new_database, tmp_path):
    elsewhere = SlmSection(backend="openai", url="http://127.0.0.1:1/v1", model="theirs")
    with (
        new_database() as dsn,
        Provider().serving() as upstream,
        proxying(upstream.url, dsn, tmp_path, summarizer="local", slm=elsewhere) as proxy,
    ):
        wait_until(lambda: proxy.get("/readyz").json()["summaries"] is not None, 30)
        told = proxy.get("/readyz").json()
    assert (told["status"], told["summaries"]) == ("ready", "not examined: `infold slm check --summaries` does it")


def test_the_welcome_tells_where_to_point_an_sdk(house):
    proxy, _ = house
    text = proxy.get("/").text
    assert f"{proxy.url}/v1" in text
    assert "/memory-manager/export" in text


def test_metrics_count_turns_tokens_and_rollovers(house):
    proxy, _ = house
    names = {
        "infold_requests_total": {"mode": "folded", "status": "2xx"},
        "infold_prompt_tokens_total": {"side": "asked"},
        "infold_rollovers_total": {},
        "infold_turns_total": {"kept": "committed"},
    }
    before = {name: proxy.metric(name, **labels) for name, labels in names.items()}
    turn(proxy, [*history(2), user("count me")], "sk-metrics")
    after = {name: proxy.metric(name, **labels) for name, labels in names.items()}

    assert after["infold_prompt_tokens_total"] - before["infold_prompt_tokens_total"] > 7_000
    assert [after[name] - before[name] for name in names if "tokens" not in name] == [1, 1, 1]


def test_every_metric_has_help_and_no_label_names_a_client(house):
    proxy, _ = house
    turn(proxy, [user("hi")], "sk-label", "model-of-mine")
    text = proxy.get("/metrics").text
    named = set(re.findall(r"^(infold_\w+)", text, re.M))

    assert named
    assert all(
        f"# HELP {name.removesuffix('_total')}" in text or re.search(r"_(bucket|sum|count|created)$", name)
        for name in named
    )
    assert "model-of-mine" not in text
    assert "sk-label" not in text


# A turn, explained


def test_a_turn_that_fitted_is_explained(house):
    proxy, _ = house
    headers = turn(proxy, [system("be kind"), user("hello there")])
    told = proxy.explain(headers["x-infold-turn"])

    assert told["id"] == headers["x-infold-turn"]
    assert told["session"] == headers["x-infold-session"]
    assert (told["model"], told["status"]) == (MODEL, "answered")
    assert told["asked"][-1]["message"] == user("hello there")
    (attempt,) = told["attempts"]
    assert (attempt["mode"], attempt["status_code"]) == ("wire", 200)
    assert attempt["usage"]["input_tokens"] > 0
    assert attempt["asked_tokens"] == attempt["forwarded_tokens"]
    assert attempt["seconds"] > 0


def test_what_the_client_sent_includes_its_system_messages(house):
    proxy, _ = house
    headers = turn(proxy, [system("answer in Latin"), user("who are you?")])
    assert "answer in Latin" in str(proxy.explain(headers["x-infold-turn"]))


def test_a_folded_turn_is_explained_so_that_the_prompt_can_be_made_again(house):
    proxy, provider = house
    fact = [user("The otter pool opens at 6:45."), assistant("Fine.")]
    messages = [system("be kind"), *fact, *history(3), user("When does the otter pool open?")]
    headers = turn(proxy, messages)
    told = proxy.explain(headers["x-infold-turn"])["attempts"][-1]
    asked, forwarded = map(int, headers["x-infold-tokens"].split("/"))

    assert told["rollover"]
    assert (told["asked_tokens"], told["forwarded_tokens"]) == (asked, forwarded)
    assert told["budget"]["window"] == 8_192
    assert told["prices"]["input"] > 0
    assert len(told["placements"]) == len(provider.prompts[-1].messages)
    assert all({"form", "tokens", "why"} <= set(placement) for placement in told["placements"])
    ours = [m["content"] for m in provider.prompts[-1].messages if m not in messages]
    assert len(told["forwarded"]) == len(ours)
    assert told["block"]["quotes"]
    assert all({"id", "score", "tokens", "why"} <= set(quote) for quote in told["block"]["quotes"])
    assert all(f"[#{told['block']['quotes'][0]['id']}]" in text for text in told["forwarded"][-1:])


def test_what_a_priced_turn_cost_and_would_have_cost_is_told(house):
    """Law 12: what it cost, and what it would have cost."""
    proxy, _ = house
    headers = turn(proxy, [*history(4), user("and the bill?")], model="priced-8k")
    told = proxy.explain(headers["x-infold-turn"])["attempts"][-1]

    assert float(headers["x-infold-saved-usd"]) != 0
    assert "usd" in " ".join(told)


@pytest.mark.parametrize("id", ["a" * 26, "short", "a" * 300, "%00", "é", "AAAA-", "a" * 26 + "=", "🙂"])
def test_an_id_that_names_nothing_is_404_in_openais_shape(house, id):
    proxy, _ = house
    reply = proxy.get(f"/memory-manager/turns/{id}")

    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


def test_an_unknown_page_of_ours_is_404_in_openais_shape(house):
    proxy, _ = house
    reply = proxy.get("/memory-manager/unknown")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("path", ["/memory-manager/turns/aaaa", "/memory-manager/export"])
def test_a_method_that_is_not_offered_is_refused_and_goes_nowhere(house, path):
    proxy, provider = house
    reply = httpx.post(f"{proxy.url}{path}", timeout=60)
    assert reply.status_code == 405
    assert provider.refused == []


# Who may ask


@pytest.fixture(scope="module")
def public(new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A listener that others can reach."""
    provider = Provider()
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("public"), host="0.0.0.0") as proxy,
    ):
        yield proxy, provider


@pytest.mark.parametrize("path", ["/memory-manager/turns/aaaa", "/memory-manager/export"])
@pytest.mark.parametrize("key", [None, "EMPTY", "sk-xxx"])
def test_without_a_key_of_ones_own_a_public_listener_shows_nothing(public, path, key):
    proxy, _ = public
    reply = proxy.get(path, key)
    assert reply.status_code == 401
    assert reply.json()["error"]["type"] in ("authentication_error", "invalid_request_error")


def test_without_a_key_a_public_listener_serves_and_remembers_nothing(public):
    proxy, provider = public
    turn(proxy, [user("remember the word ptarmigan")], "EMPTY")
    headers = httpx.post(
        f"{proxy.url}/v1/chat/completions", json={"model": MODEL, "messages": [user("ptarmigan")]}, timeout=60
    ).headers

    assert headers["x-infold-mode"] == "degraded"
    assert len(provider.prompts) >= 2
    for key in ("EMPTY", "", "sk-any", "local"):
        assert "ptarmigan" not in proxy.get("/memory-manager/export", key or None).text


def test_at_home_without_a_key_one_is_the_local_tenant(house):
    proxy, _ = house
    httpx.post(f"{proxy.url}/v1/chat/completions", json={"model": MODEL, "messages": [user("cassowary")]}, timeout=60)
    assert "cassowary" in proxy.get("/memory-manager/export", None).text
    assert "cassowary" in proxy.get("/memory-manager/export", "EMPTY").text
    assert "cassowary" not in proxy.get("/memory-manager/export", "sk-alice").text


def test_an_export_is_read_in_one_state_and_in_pieces(house):
    proxy, _ = house
    key = "sk-export"
    for number in range(5):
        turn(proxy, [*history(10 + number, 12), user(f"question {number}")], key)
    lines = proxy.export(key)
    kinds = [line["kind"] for line in lines]

    assert kinds.count("turn") == 5
    assert kinds.count("message") == 5 * (24 + 2)
    ids = {line["id"] for line in lines if line["kind"] == "message"}
    assert all(line["parent"] is None or line["parent"] in ids for line in lines if line["kind"] == "message")


def test_summaries_and_blocks_are_in_the_export_with_their_hints(house):
    proxy, provider = house
    key = "sk-summaries"
    turn(proxy, [*history(5), user("what of the harbour lantern?")], key)
    hints = set(re.findall(r"\[#([a-z2-7]{8})\]", provider.prompts[-1].messages[0]["content"]))
    lines = [line for line in proxy.export(key) if line["kind"] not in ("message", "turn")]

    assert {"summary"} <= {line["kind"] for line in lines}
    assert hints
    assert all(hint in str(lines) for hint in hints)


def test_explanations_and_gauges_take_no_connection_of_the_hot_path(proxy, dsn):
    headers = turn(proxy, [user("who holds the lock?")])
    httpx.post(f"{proxy.url}/memory-manager/hil/request", json={"question": "Who goes there?"}, timeout=60)
    proxy.parts.pool = Pool(dsn)  # never opened, so that every call of it is refused
    assert proxy.explain(headers["x-infold-turn"])["id"] == headers["x-infold-turn"]
    proxy.get("/metrics")
    assert proxy.metric("infold_human_requests_pending") == 1


async def test_what_a_turn_took_is_written_down_once(proxy, owner):
    """Beside the turn's record, after the client has its answer."""
    headers = await asyncio.to_thread(turn, proxy, [user("what does this cost?")], "sk-usage", "gpt-4o")
    async with asyncio.timeout(60):
        while not (rows := await owner.fetch("select * from infold.usage")):
            await asyncio.sleep(0.02)
    (row,) = rows
    (attempt,) = await owner.fetch("select id, record from infold.attempts")
    record = orjson.loads(attempt["record"])
    assert row["attempt"] == attempt["id"]
    assert (row["model"], row["session"]) == ("gpt-4o", headers["x-infold-session"])
    assert (row["input_tokens"], row["output_tokens"]) == (
        record["usage"]["input_tokens"], record["usage"]["output_tokens"],
    )  # fmt: skip
    assert (row["cost_usd"], row["direct_usd"]) == (record["cost_usd"], record["direct_usd"])
    assert row["cost_usd"] > 0


def called(*names: str) -> Json:
    calls = [{"id": f"call_{n}", "type": "function", "function": {"name": n, "arguments": "{}"}} for n in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_a_turn_lists_its_calls_and_what_became_of_them(proxy, provider):
    asked, answer = user("What is the weather?"), called("look", "feel")
    provider.reply = lambda prompt: answer
    first = turn(proxy, [asked])
    waiting = proxy.get(f"/memory-manager/turns/{first['x-infold-turn']}", "sk-alice").json()["calls"]
    provider.reply = lambda prompt: {"role": "assistant", "content": "Fine."}
    results = [
        {"role": "tool", "tool_call_id": "call_look", "content": "Error: no window"},
        {"role": "tool", "tool_call_id": "call_feel", "content": "warm"},
    ]
    second = turn(proxy, [asked, answer, *results])

    calls = proxy.get(f"/memory-manager/turns/{first['x-infold-turn']}", "sk-alice").json()["calls"]
    assert [(call["id"], call["name"], call["success"]) for call in waiting] == [
        ("call_look", "look", None), ("call_feel", "feel", None),
    ]  # fmt: skip
    assert [(call["name"], call["success"]) for call in calls] == [("look", False), ("feel", True)]
    assert all(0 <= call["milliseconds"] < 60_000 for call in calls)
    assert proxy.get(f"/memory-manager/turns/{second['x-infold-turn']}", "sk-alice").json()["calls"] == []
