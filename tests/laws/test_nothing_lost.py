"""Law 5: a turn whose end the client has seen is durable, exactly once; all that was ever said can be read out."""

import asyncio
import base64
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import openai
import pytest

from memory.errors import StoreError
from memory.postgres import EmbeddedPostgres, start
from memory.recorder import Asked, Kept, Opening, Recorder
from memory.spool import Spool
from memory.store.migrate import migrate
from tests.conftest import finish, open_pool, own_postgres, run_sql
from tests.conversations import assistant, body_of, calling, prose, result, user
from tests.faults import murder, until
from tests.memory.store.test_turns import answers, asked_for
from tests.proxied import MODEL, PATIENT, Prompt, proxying
from tests.scripted import End, answer, ask, connected, sse

CHAT = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer sk-alice")


def chunk(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}).encode() + b"\n\n"


STREAM = sse([chunk("Hel"), chunk("lo"), b"data: [DONE]\n\n"])
PLAIN = answer(json.dumps({"choices": [{"index": 0, "message": assistant("Hello")}]}).encode())


def request(*texts: str, stream: bool = True, headers: bytes = b"") -> bytes:
    body = body_of([user(text) for text in texts], stream=stream)
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-alice\r\n%bContent-Length: %d\r\n\r\n"
    return head % (CHAT, headers, len(body)) + body


async def fetch(dsn: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


async def messages_of(dsn: str) -> list[str]:
    rows = await fetch(dsn, "select raw from infold.nodes order by depth, created_at")
    return [json.loads(row["raw"])["content"] for row in rows]


async def statuses(dsn: str) -> list[tuple[str, int]]:
    rows = await fetch(
        dsn,
        "select t.status, (select count(*) from infold.attempts a where a.node = t.node) as n from infold.turns t"
        " order by t.created_at",
    )
    return [(row["status"], row["n"]) for row in rows]


# The end of an answer waits until the turn is safe


async def test_when_the_client_sees_done_the_turn_is_committed(proxy, upstream, dsn):
    upstream.script = STREAM
    for number in range(10):
        async with connected(proxy.url) as client:
            await client.send(request(f"turn {number}"))
            await client.reader.readuntil(b"[DONE]")
            assert len(await statuses(dsn)) == number + 1
            assert {status for status, _ in await statuses(dsn)} == {"answered"}


async def test_a_plain_answers_last_byte_comes_after_the_commit(proxy, upstream, dsn):
    upstream.script = PLAIN
    for number in range(10):
        async with connected(proxy.url) as client:
            await client.send(request(f"turn {number}", stream=False))
            await client.answer("POST")
            assert await statuses(dsn) == [("answered", 1)] * (number + 1)


@pytest.mark.parametrize("steps", [STREAM, PLAIN], ids=["stream", "plain"])
async def test_the_end_is_held_back_while_the_turn_is_not_safe(proxy, upstream, dsn, steps):
    """Tables are locked: the commit waits. All but the end goes out, and the end comes when the spool has the turn."""
    upstream.script = steps
    connection = await asyncpg.connect(dsn)
    async with connected(proxy.url) as client, connection.transaction():
        await connection.execute("lock infold.turns in access exclusive mode")
        await client.send(request("wait for me", stream=steps is STREAM))
        got = await client.answer("POST")
        assert got.complete
        assert proxy.metric("infold_turns_total", kept="spooled") == 1
        assert proxy.parts.recorder.spooled() == 1
    await connection.close()


async def test_a_spooled_turn_reaches_the_database_once_it_answers_again(proxy, upstream, dsn):
    upstream.script = STREAM
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute("lock infold.turns in access exclusive mode")
        got = await asyncio.gather(*(ask(proxy.url, "POST", CHAT, [KEY], body_of([user(f"t{i}")])) for i in range(5)))
        assert {one.complete for one in got} == {True}
    await connection.close()
    await until(lambda: proxy.parts.pool.available and proxy.parts.recorder.spooled() == 0)

    assert await statuses(dsn) == [("answered", 1)] * 5
    assert sorted(await messages_of(dsn)) == sorted([*(f"t{i}" for i in range(5)), *["Hello"] * 5])


async def test_when_spool_and_database_fail_the_turn_is_counted_and_the_client_served(upstream, dsn, tmp_path):
    upstream.script = STREAM
    (tmp_path / "spool").write_text("a file where the folder should be")
    with proxying(upstream.url, dsn, tmp_path) as proxy:
        run_sql(dsn, "drop function infold.record_turn")
        got = await ask(proxy.url, "POST", CHAT, [KEY], body_of([user("hi")]))

        assert (got.status, got.complete) == (200, True)
        assert proxy.metric("infold_turns_total", kept="unrecorded") == 1


async def test_every_message_is_stored_whole_before_it_may_leave_the_prompt(proxy, provider, dsn):
    """Looked at from the provider's side, in the moment in which the shortened prompt arrives."""
    rng = random.Random(1)
    messages = [m for _ in range(30) for m in (user(prose(rng, 100)), assistant(prose(rng, 150)))]
    stored: list[list[str]] = []

    def look(prompt: Prompt) -> dict[str, Any]:
        stored.append(ThreadPoolExecutor(1).submit(asyncio.run, messages_of(dsn)).result())
        return assistant("ok")

    provider.reply = look
    got = await ask(proxy.url, "POST", CHAT, [KEY], body_of([*messages, user("and?")], max_tokens=256))

    assert got.header(b"x-infold-mode") == b"folded"
    assert set(stored[0]) >= {message["content"] for message in messages}


async def test_a_result_that_is_shortened_on_arrival_is_stored_whole_before(proxy, provider, dsn):
    """On a line that is known: only this request's own messages are new, and one of them leaves at once."""
    rng = random.Random(2)
    messages = [user("read it")]
    await ask(proxy.url, "POST", CHAT, [KEY], body_of(messages))
    large = prose(rng, 9_000)
    stored: list[str] = []

    def look(prompt: Prompt) -> dict[str, Any]:
        stored.extend(ThreadPoolExecutor(1).submit(asyncio.run, messages_of(dsn)).result())
        return assistant("ok")

    provider.reply = look
    messages += [calling(("c", "{}")), result("c", large)]
    got = await ask(proxy.url, "POST", CHAT, [KEY], body_of(messages, max_tokens=256))

    assert got.header(b"x-infold-mode") == b"folded"
    assert large not in provider.prompts[-1]
    assert large in stored


# Killed


def folder_of(server: EmbeddedPostgres) -> Path:
    return Path(os.readlink(f"/proc/{server.address.pid}/cwd")).parent


async def opened(recorder: Recorder, asked: Asked) -> Opening:
    """An opening that is written, as those of slow answers are."""
    opening = recorder.open(asked)
    await until(lambda: opening._task is not None and opening._task.done())
    return opening


async def test_what_was_acknowledged_survives_a_kill_of_the_database(tmp_path):
    """Also the opening, which commits without waiting for the disk: here the log is never written by itself."""
    with own_postgres() as server:
        dsn, home = server.address.dsn, folder_of(server)
        finish(migrate(dsn))
        run_sql(dsn, "alter system set wal_writer_delay = '10s'", "select pg_reload_conf()")
        acknowledged = []
        async with open_pool(dsn) as pool:
            recorder = Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds))
            for number in range(5):
                asked = asked_for([user(f"question {number}")])
                opening = await opened(recorder, asked)
                if number == 4:  # between the opening and the end
                    murder(server)
                kept = await recorder.close(asked, opening, answers(f"answer {number}"))
                assert kept is (Kept.SPOOLED if number == 4 else Kept.COMMITTED)
                acknowledged += [f"question {number}", f"answer {number}"]
        again = start(home, shared_buffers_mb=16)
        try:
            async with open_pool(again.address.dsn) as pool:
                await Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)).drain()
            assert sorted(await messages_of(again.address.dsn)) == sorted(acknowledged)
            assert await statuses(again.address.dsn) == [("answered", 1)] * 5
        finally:
            again.stop()


async def test_a_process_that_saw_its_openings_die_stores_the_messages_again(tmp_path):
    """What a relaxed commit lost must not count as stored: the next turn's history would have a hole."""
    with own_postgres() as server:
        dsn, home = server.address.dsn, folder_of(server)
        finish(migrate(dsn))
        run_sql(dsn, "alter system set wal_writer_delay = '10s'", "select pg_reload_conf()")
        async with open_pool(dsn) as pool:
            recorder = Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds))
            await opened(recorder, asked_for([user("first")]))
            murder(server)
            again = start(home, shared_buffers_mb=16)
            try:
                assert again.address.dsn == dsn
                with suppress(StoreError):  # whoever comes first finds the old connections cut
                    async with pool.connection() as connection:
                        await connection.fetchval("select 1")
                await until(lambda: pool.available)
                asked = asked_for([user("first"), assistant("it broke off"), user("second")])
                await recorder.close(asked, await opened(recorder, asked), answers("here"))
                await recorder.drain()
                assert await messages_of(dsn) == ["first", "it broke off", "second", "here"]
            finally:
                again.stop()


# Exactly once


def ask_by_sdk(client: openai.OpenAI, text: str, retries: int | None = None) -> str:
    headers = {} if retries is None else {"x-stainless-retry-count": str(retries)}
    said = client.chat.completions.create(model=MODEL, messages=[user(text)], extra_headers=headers)  # type: ignore[list-item]
    return said.choices[0].message.content or ""


async def test_the_same_request_again_is_another_attempt_at_the_same_turn(client, provider, dsn):
    for retries in (None, 1, 2, None):
        ask_by_sdk(client, "hello", retries)

    assert len(provider.prompts) == 4  # each goes upstream: we never answer from memory
    assert await statuses(dsn) == [("answered", 4)]
    assert (await messages_of(dsn)).count("hello") == 1


async def test_a_storm_of_the_same_request_is_one_turn(client, proxy, provider, dsn):
    with ThreadPoolExecutor(20) as storm:
        told = list(storm.map(lambda n: ask_by_sdk(client, "storm", n), range(20)))
    await until(lambda: proxy.parts.pool.available and proxy.parts.recorder.spooled() == 0)

    assert len(told) == len(provider.prompts) == 20
    assert await statuses(dsn) == [("answered", 20)]
    assert (await messages_of(dsn)).count("storm") == 1


async def test_the_sdks_own_retry_after_a_500_is_the_same_turn(proxy, upstream, provider, dsn):
    def first_fails(seen):
        return answer(b"{}", 500) if len(upstream.requests) == 1 else provider(seen)

    upstream.script = first_fails
    with proxy.client(max_retries=2) as sdk:
        ask_by_sdk(sdk, "again")

    assert await statuses(dsn) == [("answered", 2)]


async def test_a_replay_of_the_spool_changes_nothing(pool, tmp_path, owner):
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    recorder = Recorder(pool, spool)
    asked = asked_for([user("hi")])
    await recorder.close(asked, recorder.open(asked), answers("hello"))
    before = await owner.fetch("select * from infold.attempts")
    turn = recorder._turn(asked, recorder._new_rows(asked, 0), answers("hello"))
    for _ in range(3):
        await recorder._spool_turn(turn)
        await recorder.drain()

    assert [dict(row) | {"updated_at": 0} for row in await owner.fetch("select * from infold.attempts")] == [
        dict(row) | {"updated_at": 0} for row in before
    ]
    assert await owner.fetchval("select count(*) from infold.turns") == 1


async def test_a_record_the_database_will_never_take_does_not_hold_up_those_behind_it(pool, tmp_path, owner):
    recorder = Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds))
    bad, good = asked_for([user("bad")]), asked_for([user("good")])
    await recorder._spool_turn(msgspec.structs.replace(recorder._turn(bad, (), answers()), status="nonsense"))
    await recorder._spool_turn(recorder._turn(good, recorder._new_rows(good, 0), answers("fine")))
    await recorder.drain()
    await recorder.drain()

    assert [row["status"] for row in await owner.fetch("select status from infold.turns")] == ["answered"]


# What breaks off


async def test_a_stream_cut_by_the_upstream_is_recorded_as_partial_and_no_end_is_forged(proxy, upstream, dsn):
    upstream.script = [*sse([chunk("Hel")])[:-1], End.RESET]
    async with connected(proxy.url) as client:
        await client.send(request("cut"))
        got = await client.answer("POST")

    assert not got.complete
    assert b"[DONE]" not in got.body
    await until_status(dsn, "partial")
    assert (await messages_of(dsn))[0] == "cut"


async def test_what_a_client_heard_before_it_left_is_kept(proxy, upstream, dsn):
    upstream.script = sse([chunk("first words "), chunk("never heard"), b"data: [DONE]\n\n"], pause=0.4)
    async with connected(proxy.url) as client:
        await client.send(request("leaving"))
        await client.reader.readuntil(b"first words")
        client.reset()

    await until_status(dsn, "partial")
    assert (await messages_of(dsn))[:1] == ["leaving"]
    assert "first words " in "".join(await messages_of(dsn))


async def until_status(dsn: str, status: str) -> None:
    async with asyncio.timeout(60):
        while [found for found, _ in await statuses(dsn)] != [status]:
            await asyncio.sleep(0.05)


async def test_a_turn_the_upstream_refused_is_kept_as_failed(proxy, upstream, dsn):
    upstream.script = answer(b'{"error":{"message":"no"}}', 429)
    await ask(proxy.url, "POST", CHAT, [KEY], body_of([user("please")]))

    assert await statuses(dsn) == [("failed", 1)]


async def test_a_turn_whose_upstream_is_not_there_is_kept_as_failed(dsn, tmp_path):
    with proxying("http://127.0.0.1:9", dsn, tmp_path) as proxy:
        got = await ask(proxy.url, "POST", CHAT, [KEY], body_of([user("anybody?")]))

        assert got.status == 502
        await until_status(dsn, "failed")


# Reading everything out


def test_the_export_has_every_message_and_turn_once(client, proxy):
    said = [user("one"), user("tw\0o"), user("three")]
    history = []
    for message in said:
        history.append(message)
        reply = client.chat.completions.create(model=MODEL, messages=history)
        history.append({"role": "assistant", "content": reply.choices[0].message.content})
    client.chat.completions.create(model=MODEL, messages=history[:1])
    lines = proxy.export()
    messages = [line for line in lines if line["kind"] == "message"]
    turns = [line for line in lines if line["kind"] == "turn"]

    assert [line["content"] for line in messages] == [message["content"] for message in history]
    assert len({line["id"] for line in messages}) == len(messages) == 6
    parents = {line["id"]: line["parent"] for line in messages}
    assert list(parents.values())[1:] == list(parents)[:-1]
    assert sorted(line["attempts"] for line in turns) == [1, 1, 2]
    assert {line["status"] for line in turns} == {"answered"}
    assert all(line["time"] for line in lines)


def test_the_export_keeps_fields_that_are_called_like_ours(client, proxy):
    own = {"id": "msg_77", "kind": "mine", "time": "noon", "parent": "p", "session": "s"}
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi", **own}])  # type: ignore[list-item]
    text = json.dumps(proxy.export())

    assert all(value in text for value in ("msg_77", '"mine"', '"noon"'))


async def test_the_export_of_odd_bodies_is_json_line_by_line(proxy, upstream):
    upstream.script = PLAIN
    odd = [b"\xff\xfe", b'{"a":\xff}', b'{"a":NaN}', b"[" * 3_000, b'{"messages":"\\ud800"}', b'"\xed\xa0\x80"', b"\0"]
    for body in odd:
        await ask(proxy.url, "POST", CHAT, [KEY], body)
    kept = [line for line in proxy.export() if line["kind"] == "message" and line["role"] == "raw"]

    assert {base64.b64decode(line["bytes"]) if "bytes" in line else b"" for line in kept} >= {odd[0], odd[1], odd[2]}
    assert len(kept) == len(odd)


async def test_the_export_holds_text_as_it_was_written(proxy, upstream):
    upstream.script = PLAIN
    raw = rb'{"model":"small-8k","messages":[{"role":"user","content":"\ud800 \u0000 \u00e9"}]}'
    await ask(proxy.url, "POST", CHAT, [KEY], raw)

    assert rb"\ud800 \u0000" in proxy.get("/memory-manager/export").content


# The database is not there when we start


async def test_without_a_database_at_the_start_the_client_is_served_and_told_and_a_late_one_is_taken_up(
    provider, upstream, tmp_path
):
    with own_postgres() as server:
        dsn, home = server.address.dsn, folder_of(server)
        server.stop()
        with proxying(upstream.url, dsn, tmp_path) as proxy:
            got = await ask(proxy.url, "POST", CHAT, [KEY], body_of([user("early")]))
            assert (got.status, got.complete) == (200, True)
            assert got.header(b"x-infold-mode") == b"degraded"
            assert proxy.get("/readyz").json()["status"] == "degraded"
            assert (proxy.get("/healthz").status_code, proxy.get("/metrics").status_code) == (200, 200)
            kept = [proxy.metric("infold_turns_total", kept=where) for where in ("spooled", "unrecorded")]
            assert sum(kept) == 1

            again = start(home, shared_buffers_mb=16)
            try:
                assert again.address.dsn == dsn
                await until(lambda: proxy.parts.pool.available)
                got = await ask(proxy.url, "POST", CHAT, [KEY], body_of([user("late")]))
                assert got.header(b"x-infold-mode") == b"wire"
                assert "late" in [line.get("content") for line in proxy.export()]
            finally:
                again.stop()
    assert [prompt.messages for prompt in provider.prompts] == [[user("early")], [user("late")]]
