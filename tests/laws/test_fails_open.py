"""Law 9: our failure is never the user's. The client's bytes go upstream, and header, counter and log say so."""

import asyncio
import gzip
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from memory.errors import ModelError
from memory.postgres import EmbeddedPostgres
from memory.store.migrate import migrate
from tests.conftest import finish, named, own_postgres, run_sql
from tests.conversations import body_of, chat, system, user
from tests.faults import HANG, family, frozen, in_time, until
from tests.proxied import HURRIED, PATIENT, Proxy, proxying
from tests.scripted import Got, answer, ask, connected

CHAT = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer sk-alice")

SHORT = [system("be kind"), user("hello")]


def long(rng: Any) -> list[dict[str, Any]]:
    """A history of some three windows."""
    return [system("be kind"), *chat(rng, 40, 150)]


async def post(proxy: Proxy, messages: list[dict[str, Any]], *headers: tuple[bytes, bytes], **more: Any) -> Got:
    return await ask(proxy.url, "POST", CHAT, [KEY, *headers], body_of(messages, max_tokens=256, **more))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Any:
    return random.Random(request.node.name)


@pytest.fixture(scope="module")
def fragile() -> Iterator[EmbeddedPostgres]:
    with own_postgres() as server:
        finish(migrate(server.address.dsn))
        yield server


# The database freezes, goes, comes back


@pytest.mark.parametrize("stream", [False, True])
async def test_a_frozen_database_costs_a_short_request_one_bound_at_most(fragile, provider, upstream, tmp_path, stream):
    with proxying(upstream.url, fragile.address.dsn, tmp_path, waits=HURRIED) as proxy:
        await post(proxy, SHORT)
        with frozen(family(fragile.address.pid)):
            began = time.monotonic()
            for number in range(6):
                got = await in_time(post(proxy, [*SHORT, user(f"frozen {number}")], stream=stream), HANG)
                assert (got.status, got.complete) == (200, True)
            assert time.monotonic() - began < HANG
            assert got.header(b"x-infold-mode") == b"degraded"
            assert proxy.get("/readyz").json() == {"status": "degraded", "database": False}
        await until(lambda: proxy.parts.pool.available and not proxy.parts.recorder.spooled())
        said = [line.get("content") for line in proxy.export()]
        assert [f"frozen {number}" in said for number in range(6)] == [True] * 6
        assert proxy.metric("infold_turns_total", kept="unrecorded") == 0


async def test_the_first_byte_of_what_fits_does_not_wait_for_a_frozen_database(fragile, provider, upstream, tmp_path):
    """Identity and the opening run beside the upstream call; only the end waits."""
    waits = PATIENT._replace(database_seconds=600)  # who waits for it hangs
    with proxying(upstream.url, fragile.address.dsn, tmp_path, waits=waits) as proxy:
        await until(lambda: proxy.parts.whole.signals.is_connected)
        await post(proxy, SHORT)
        async with connected(proxy.url) as client:
            with frozen(family(fragile.address.pid)):
                body = body_of([*SHORT, user("quick")], stream=True)
                await client.send(
                    b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT, len(body), body)
                )
                await in_time(client.reader.readuntil(b"Noted"))
            await client.reader.readuntil(b"[DONE]")


async def test_over_the_window_a_frozen_database_means_a_shorter_prompt_not_an_error(
    fragile, provider, upstream, tmp_path, rng
):
    messages = long(rng)
    with proxying(upstream.url, fragile.address.dsn, tmp_path, waits=HURRIED) as proxy:
        with frozen(family(fragile.address.pid)):
            got = await in_time(post(proxy, messages), 2 * HANG)
        assert (got.status, got.header(b"x-infold-mode")) == (200, b"degraded")
        (prompt,) = provider.prompts
        assert (prompt.messages[0], prompt.messages[-1]) == (messages[0], messages[-1])
        assert prompt.messages[-3:] == messages[-3:]
        assert len([message for message in prompt.messages if message not in messages]) == 1
        await until(lambda: proxy.parts.pool.available and not proxy.parts.recorder.spooled())


async def test_a_frozen_prompt_is_held_to_while_the_database_is_away(fragile, provider, upstream, tmp_path, rng):
    messages = long(rng)
    with proxying(upstream.url, fragile.address.dsn, tmp_path, waits=HURRIED) as proxy:
        await post(proxy, messages)
        with frozen(family(fragile.address.pid)):
            got = await in_time(
                post(proxy, [*messages, {"role": "assistant", "content": "ok"}, user("more")]), 2 * HANG
            )
        assert (got.status, got.header(b"x-infold-mode")) == (200, b"degraded")
        first, second = (prompt.without_blocks for prompt in provider.prompts)
        assert second[: len(first)] == first
        await until(lambda: proxy.parts.pool.available and not proxy.parts.recorder.spooled())


async def test_our_own_pages_answer_while_the_database_is_frozen(fragile, upstream, tmp_path):
    with proxying(upstream.url, fragile.address.dsn, tmp_path, waits=HURRIED) as proxy:
        await post(proxy, SHORT)
        with frozen(family(fragile.address.pid)):
            for path, statuses in {
                "/healthz": {200},
                "/metrics": {200},
                "/readyz": {200},
                "/memory-manager/turns/aaaaaaaaaaaaaaaaaaaaaaaaaa": {503},
                "/memory-manager/export": {503},
            }.items():
                got = await in_time(asyncio.to_thread(proxy.get, path), 2 * HANG)
                assert got.status_code in statuses, path
                if got.status_code == 503:
                    assert got.json()["error"]["code"] == "store_unavailable"
        await until(lambda: proxy.parts.pool.available)


async def test_a_database_dropped_in_the_middle_of_a_conversation_is_no_error(
    new_database, postgres, upstream, tmp_path
):
    with new_database() as dsn:
        database = dsn.split("?")[0].rsplit("/", 1)[1]
        with proxying(upstream.url, dsn, tmp_path) as proxy:
            assert (await post(proxy, SHORT)).header(b"x-infold-mode") == b"wire"
            run_sql(postgres.address.dsn, f"drop database {database} with (force)", f"create database {database}")
            for number in range(4):
                got = await in_time(post(proxy, [*SHORT, user(f"still here {number}")]), HANG)
                assert (got.status, got.complete) == (200, True)


async def test_a_table_that_is_gone_is_no_error_and_nothing_is_lost(dsn, upstream, tmp_path):
    with proxying(upstream.url, dsn, tmp_path) as proxy:
        await post(proxy, SHORT)
        run_sql(dsn, "alter table infold.turns rename to hidden")
        got = await post(proxy, [*SHORT, user("into the spool")])
        assert (got.status, got.complete) == (200, True)
        assert proxy.metric("infold_turns_total", kept="spooled") == 1
        run_sql(dsn, "alter table infold.hidden rename to turns")
        await until(lambda: proxy.parts.recorder.spooled() == 0)
        assert "into the spool" in [line.get("content") for line in proxy.export()]


async def test_a_full_house_of_connections_is_no_error(dsn, upstream, tmp_path):
    """The server takes no more connections: ours are cut and cannot be made anew."""
    database = dsn.split("?")[0].rsplit("/", 1)[1]
    server = named(dsn, "postgres")
    with proxying(upstream.url, dsn, tmp_path) as proxy:
        await post(proxy, SHORT)
        run_sql(
            server,
            f"alter database {database} allow_connections false",
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'",
        )
        for number in range(3):
            got = await in_time(post(proxy, [*SHORT, user(f"no room {number}")]), HANG)
            assert (got.status, got.complete) == (200, True)
        assert got.header(b"x-infold-mode") == b"degraded"
        run_sql(server, f"alter database {database} allow_connections true")
        await until(lambda: proxy.parts.pool.available and not proxy.parts.recorder.spooled())
        said = [line.get("content") for line in proxy.export()]
        assert all(f"no room {number}" in said for number in range(3))


# A bug of ours


class Broken:
    """A part of ours with a bug: whatever it is asked, it fails."""

    def __init__(self, whole: Any, *names: str) -> None:
        self._whole = whole
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            raise ZeroDivisionError("a bug of ours")
        return getattr(self._whole, name)


async def test_a_bug_in_planning_forwards_the_clients_bytes_loudly(proxy, provider, upstream):
    proxy.parts.memory = Broken(proxy.parts.memory, "prepare")
    body = body_of(SHORT)
    got = await ask(proxy.url, "POST", CHAT, [KEY], body)

    assert (got.status, got.complete) == (200, True)
    assert upstream.requests[-1].body == body
    assert got.header(b"x-infold-mode") == b"degraded"
    assert proxy.metric("infold_passed_through_total", reason="ZeroDivisionError") == 1


async def test_a_bug_in_planning_does_not_send_what_cannot_fit(proxy, provider, rng):
    """Where the client's bytes cannot fit, the plan without a store goes."""
    messages = long(rng)
    proxy.parts.memory._recorder = Broken(proxy.parts.memory._recorder, "store_line")
    got = await post(proxy, messages)

    assert (got.status, got.header(b"x-infold-mode")) == (200, b"degraded")
    assert provider.prompts[-1].messages[-1] == messages[-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["open", "record", "session"])
async def test_a_bug_in_recording_does_not_cut_the_answer(proxy, provider, name, stream):
    proxy.parts.memory = Broken(proxy.parts.memory, name)
    got = await post(proxy, SHORT, stream=stream)

    assert (got.status, got.complete) == (200, True)
    assert b"Noted" in got.body
    assert not stream or b"[DONE]" in got.body
    assert proxy.metric("infold_passed_through_total", reason="ZeroDivisionError") == 1
    kept = "unrecorded" if name == "record" else "committed"  # the end of a turn writes what its opening did not
    assert proxy.metric("infold_turns_total", kept=kept) == 1


async def test_an_answer_that_cannot_be_read_goes_out_whole(proxy, upstream):
    body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"caf\xe9"}]}'
    upstream.script = answer(body)
    got = await ask(proxy.url, "POST", CHAT, [KEY], body_of(SHORT))

    assert (got.status, got.complete, got.body) == (200, True, body)
    assert proxy.metric("infold_turns_total", kept="committed") == 1


@pytest.mark.parametrize("part", ["_counter", "models"])
async def test_a_bug_in_counting_forwards_the_clients_bytes(proxy, upstream, part):
    memory = proxy.parts.memory
    setattr(memory, part, Broken(getattr(memory, part), "messages", "find", "known"))
    body = body_of(SHORT)
    got = await ask(proxy.url, "POST", CHAT, [KEY], body)

    assert (got.status, upstream.requests[-1].body) == (200, body)


async def test_an_embedder_that_fails_leaves_the_search_by_words(proxy, provider, rng):
    class Down:
        name = "down"

        async def embed(self, texts: list[str]) -> Any:
            raise ModelError

    proxy.parts.memory._embedder = Down()
    got = await post(proxy, long(rng))
    assert (got.status, got.header(b"x-infold-mode")) == (200, b"folded")


# Where the tenant is uncertain: closed


async def test_who_sends_two_different_keys_has_no_memory(proxy, dsn, provider):
    got = await ask(proxy.url, "POST", CHAT, [KEY, (b"api-key", b"sk-other")], body_of(SHORT))

    assert got.status == 200
    assert proxy.export("sk-alice") == proxy.export("sk-other") == []


async def test_without_memory_an_encoded_body_goes_upstream_as_it_came(provider, upstream, dsn, tmp_path, rng):
    """Decoded bytes under `Content-Encoding: gzip` would be garbage to the provider."""
    upstream.script = answer(b'{"ok":true}')
    packed = gzip.compress(body_of(SHORT))
    with proxying(upstream.url, dsn, tmp_path, host="0.0.0.0") as proxy:
        await ask(proxy.url, "POST", CHAT, [(b"Content-Encoding", b"gzip")], packed)
    seen = upstream.requests[-1]
    assert (seen.body, seen.header(b"content-encoding")) == (packed, b"gzip")


async def test_without_memory_what_cannot_fit_is_cut_and_never_labelled_wrongly(provider, upstream, dsn, tmp_path, rng):
    messages = long(rng)
    with proxying(upstream.url, dsn, tmp_path, host="0.0.0.0") as proxy:
        got = await ask(proxy.url, "POST", CHAT, [(b"Content-Encoding", b"gzip")], gzip.compress(body_of(messages)))
    seen = upstream.requests[-1]
    assert got.status == 200
    assert seen.header(b"content-encoding") is None
    assert json.loads(seen.body)["messages"][-1] == messages[-1]
    assert got.header(b"x-infold-mode") == b"degraded"
