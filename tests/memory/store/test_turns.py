"""Lines and turns in PostgreSQL: written once, read back whole, each tenant's its own."""

import asyncio
import json
import secrets
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memory.bounded import Bounded
from memory.identify import Line, child
from memory.messages import Message
from memory.recorder import Asked, Ended, Kept, Recorder
from memory.spool import Spool
from memory.store.pool import WAIT_SECONDS, Pool
from memory.store.turns import (
    FoldRow,
    NodeRow,
    TurnRecord,
    attempt_id,
    batches,
    decode_fold,
    find_line,
    pack,
    record_turns,
    save_nodes,
    storable,
    unpack_turn,
)
from memory.types import Aside, Block, Form, Frozen, Part, Quote, Stretch
from proxy.wire.content import message_of
from tests.conftest import open_pool
from tests.conversations import TENANT, assistant, line_of, parse, system, user
from tests.proxied import PATIENT

OTHER = bytes(16)
FROZEN = Frozen(
    covers=2,
    parts=(Part(0, 1, 7, b'{"role":"user","content":"d"}', Form.SUMMARY, "old"), Part(1, 2, 3, why="most recent")),
    stretches=(Stretch("aaaaaaaa", 0, 1, 50, "older", members=(Stretch("bbbbbbbb", 0, 1, 20, "oldest \0", "text"),)),),
    tokens=10,
    asked=3,
)
ASIDE = Aside((b'{"role":"assistant"}', b'{"role":"tool"}'), (3, 4), whole=True)
BLOCK = Block(2, 3, b'{"role":"user","content":"b"}', 9, quotes=(Quote(0, 5, 0.5, "relevant", 0, 12),))


def rows_of(line: Line, begin: int = 0) -> tuple[NodeRow, ...]:
    return tuple(
        NodeRow(line.nodes[i], line.parent(i), i, True, line.messages[i].role, m.digest, m.raw, 4)
        for i, m in enumerate(line.messages)
        if i >= begin
    )


def turn_of(line: Line, status: str = "answered", tenant: bytes = TENANT, **more: Any) -> TurnRecord:
    answer = message_of(b'{"role":"assistant","content":"sure"}')
    node = child(tenant, line.tip, answer)
    said = NodeRow(node, line.tip, len(line), False, "assistant", answer.digest, answer.raw, 0)
    given: dict[str, Any] = {
        "tenant": tenant,
        "session": "s-new",
        "nodes": (*rows_of(line), said),
        "turn": line.tip,
        "attempt": attempt_id(),
        "status": status,
        "model": "m",
        "answers": (node,),
        "record": b"{}",
    }
    return TurnRecord(**(given | more))


async def record_turn(connection: Any, turn: TurnRecord, relaxed: bool = False) -> str:
    (session,) = await record_turns(connection, [turn], relaxed)
    return session


async def rows(owner: asyncpg.Connection, table: str) -> list[asyncpg.Record]:
    return await owner.fetch(f"select * from infold.{table}")


def asked_for(messages: list[dict[str, Any]], tenant: bytes = TENANT, **more: Any) -> Asked:
    request = parse(messages)
    return Asked(
        tenant=tenant,
        label=more.pop("label", None),
        model="m",
        request=request,
        line=line_of(messages, tenant),
        tokens=(),
        attempt=attempt_id(),
        record={},
        **more,
    )


def answers(*texts: str) -> Ended:
    said = tuple(message_of(json.dumps(assistant(text)).encode()) for text in texts)
    return Ended("answered", said, {"status_code": 200})


@pytest.fixture
async def recorder(pool, tmp_path):
    spool = Spool(tmp_path / "spool" / "turns", timeout_seconds=PATIENT.disk_seconds)
    yield Recorder(pool, spool)
    spool.close()


async def caught_up(recorder: Recorder, pool: Pool) -> None:
    """A busy machine may spool some: what counts is where everything ends."""
    async with asyncio.timeout(60):
        while recorder.spooled():
            await asyncio.sleep(0.05)
            if pool.available:
                await recorder.drain()


async def whole_turn(recorder: Recorder, asked: Asked, ended: Ended) -> Kept:
    return await recorder.close(asked, recorder.open(asked), ended)


# A turn


async def test_a_turn_is_written_whole_in_one_round_trip(pool, owner):
    line = line_of([user("hi"), assistant("hello"), user("and now?")])
    folds = (FoldRow(line.nodes[1], "frozen", 1, pack(FROZEN)), FoldRow(line.tip, "block", 2, pack(BLOCK)))
    async with pool.connection() as connection:
        session = await record_turn(connection, turn_of(line, folds=folds, jobs=("embed",), label="mine"))

    assert session == "s-new"
    nodes = sorted(await rows(owner, "nodes"), key=lambda row: row["depth"])
    assert [bytes(row["raw"]) for row in nodes][:3] == [m.raw for m in line.messages]
    assert [row["status"] for row in await rows(owner, "turns")] == ["answered"]
    assert {row["kind"] for row in await rows(owner, "folds")} == {"frozen", "block"}
    assert [row["label"] for row in await rows(owner, "sessions")] == ["mine"]
    assert [row["entrypoint"] for row in await rows(owner, "pgqueuer")] == ["embed"]


async def test_the_queue_holds_tenant_and_node_and_no_word_of_the_conversation(pool, owner):
    line = line_of([user("the launch code is heron")])
    async with pool.connection() as connection:
        await record_turn(connection, turn_of(line, jobs=("embed",)))
    (job,) = await rows(owner, "pgqueuer")

    assert job["payload"].decode() == f"{TENANT.hex()} {line.tip.hex()}"
    assert "heron" not in str(dict(job))


async def test_the_same_turn_twice_changes_nothing(pool, owner):
    line = line_of([user("hi"), assistant("hello"), user("and now?")])
    turn = turn_of(line, jobs=("embed",), folds=(FoldRow(line.nodes[1], "frozen", 1, pack(FROZEN)),))
    async with pool.connection() as connection:
        for _ in range(3):
            await record_turn(connection, turn)

    tables = ("nodes", "turns", "attempts", "sessions", "folds", "pgqueuer")
    assert [len(await rows(owner, table)) for table in tables] == [4, 1, 1, 1, 1, 1]


async def test_an_opening_that_comes_late_does_not_reopen_a_turn(pool, owner):
    line = line_of([user("hi")])
    turn = turn_of(line)
    opening = replace(turn, status="open", answers=(), record=b'{"late": true}')
    async with pool.connection() as connection:
        await record_turn(connection, turn)
        await record_turn(connection, opening, relaxed=True)

    assert [row["status"] for row in await rows(owner, "turns")] == ["answered"]
    assert [(row["status"], row["record"]) for row in await rows(owner, "attempts")] == [("answered", b"{}")]


async def test_a_failed_attempt_does_not_undo_an_answer_and_an_answer_heals_a_failed_one(pool, owner):
    first, second = line_of([user("a")]), line_of([user("b")])
    async with pool.connection() as connection:
        await record_turn(connection, turn_of(first, "answered"))
        await record_turn(connection, turn_of(first, "failed", answers=()))
        await record_turn(connection, turn_of(second, "failed", answers=()))
        await record_turn(connection, turn_of(second, "answered"))

    assert [row["status"] for row in await rows(owner, "turns")] == ["answered", "answered"]
    assert len(await rows(owner, "attempts")) == 4


async def test_two_equal_answers_of_one_request_are_one_message(recorder, owner):
    """With n=2 and a short answer both choices are often the same; PostgreSQL refuses to upsert one row twice."""
    kept = await whole_turn(recorder, asked_for([user("yes or no?")]), answers("yes", "yes"))

    assert kept is Kept.COMMITTED
    assert len(await rows(owner, "nodes")) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b'{"role":"user","content":"a\\u0000b"}',
        rb'{"role":"user","content":"\ud800"}',
        '{"role":"user","content":"\u202e\u200b\U0001f600"}'.encode(),
        b'{"role":"user" , "content" : "spaced",  "n": 1e400, "big": 123456789012345678901234567890}',
    ],
    ids=["NUL", "half a pair", "direction marks", "spacing and numbers"],
)
async def test_a_message_is_stored_byte_for_byte(pool, owner, raw):
    message = message_of(raw)
    node = child(TENANT, b"", message)
    async with pool.connection() as connection:
        row = NodeRow(node, None, 0, True, message.role, message.digest, raw, 1)
        await save_nodes(connection, TENANT, None, [row], "s")

    assert [bytes(row["raw"]) for row in await rows(owner, "nodes")] == [raw]


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_labels_and_models_always_become_text_that_postgres_takes(text):
    stored = storable(text)
    assert stored is not None
    assert "\0" not in stored
    stored.encode()


async def test_odd_names_of_roles_models_and_labels_are_taken(pool):
    line = line_of([user("x")])
    turn = turn_of(line, model="m\0\ud800", label="l\udfff")
    odd = replace(turn, nodes=tuple(replace(row, role="r\0") for row in turn.nodes))
    async with pool.connection() as connection:
        assert await record_turn(connection, odd) == "s-new"


# A line


async def test_a_line_nobody_knows_has_no_state(pool):
    async with pool.connection() as connection:
        state = await find_line(connection, TENANT, line_of([user("hi")]).nodes)
    assert (state.known, state.session, state.age_seconds, state.frozen, state.blocks) == (0, None, None, (), ())


async def test_a_line_is_found_by_its_longest_known_path(pool):
    base = [user("hi"), assistant("hello"), user("and now?")]
    async with pool.connection() as connection:
        await record_turn(connection, turn_of(line_of(base)))
        longer = await find_line(connection, TENANT, line_of([*base, assistant("x"), user("y")]).nodes)
        edited = await find_line(connection, TENANT, line_of([*base[:2], user("or now?")]).nodes)

    assert (longer.known, edited.known) == (3, 2)
    assert longer.age_seconds is not None
    assert 0 <= longer.age_seconds < 60


async def test_of_several_frozen_prompts_the_newest_on_this_line_counts(pool):
    line = line_of([user("a"), assistant("b"), user("c"), assistant("d"), user("e")])
    fork = line_of([user("a"), assistant("b"), user("c"), assistant("other"), user("e")])
    deeper = replace(FROZEN, covers=4, rollovers=2)
    folds = (FoldRow(line.nodes[1], "frozen", 1, pack(FROZEN)), FoldRow(line.nodes[3], "frozen", 3, pack(deeper)))
    async with pool.connection() as connection:
        await record_turn(connection, turn_of(line, folds=(*folds, FoldRow(line.tip, "block", 4, pack(BLOCK)))))
        here = await find_line(connection, TENANT, line.nodes)
        there = await find_line(connection, TENANT, fork.nodes)
        from_deeper = await find_line(connection, TENANT, line.nodes, 3)

    assert ([frozen for _, frozen in from_deeper.frozen], from_deeper.blocks) == ([deeper], (BLOCK,))
    assert (from_deeper.known, from_deeper.session) == (here.known, here.session) == (5, here.session)
    assert ([frozen for _, frozen in here.frozen], here.blocks) == ([deeper, FROZEN], (BLOCK,))
    assert ([frozen for _, frozen in there.frozen], there.blocks) == ([FROZEN], ())


async def test_what_was_said_before_an_answer_is_found_with_its_node_behind_the_frozen_prompt(pool):
    line = line_of([user("a"), assistant("b"), user("c"), assistant("d"), user("e")])
    folds = [FoldRow(line.nodes[1], "frozen", 1, pack(FROZEN))]
    folds += [FoldRow(line.nodes[n], "aside", n, pack(replace(ASIDE, tokens=(n, 0)))) for n in (1, 3)]
    async with pool.connection() as connection:
        await record_turn(connection, turn_of(line, folds=tuple(folds)))
        state = await find_line(connection, TENANT, line.nodes)
        later = await find_line(connection, TENANT, line.nodes, 2)

    assert sorted((line.nodes.index(node), aside.tokens) for node, aside in state.asides) == [(1, (1, 0)), (3, (3, 0))]
    assert [(node, aside.tokens) for node, aside in later.asides] == [(line.nodes[3], (3, 0))]
    assert state.blocks == ()


@pytest.mark.parametrize(("kind", "value"), [("frozen", FROZEN), ("block", BLOCK), ("aside", ASIDE)])
def test_what_was_frozen_comes_back_as_it_was(kind, value):
    assert decode_fold(kind, pack(value)) == value


def test_a_turn_survives_the_spool():
    turn = turn_of(line_of([user("a"), assistant("b"), user("c")]), label="x", jobs=("embed",))
    assert unpack_turn(pack(turn)) == turn


# Sessions and forks


async def test_a_line_stays_in_its_session_and_an_edit_begins_another(recorder, owner):
    base = [user("plan a trip"), assistant("where to?"), user("to the sea")]
    await whole_turn(recorder, asked_for(base[:1]), answers("where to?"))
    await whole_turn(recorder, asked_for(base), answers("nice"))
    went_on = {row["session"] for row in await rows(owner, "turns")}
    edited = asked_for([*base[:2], user("to the mountains")])
    await whole_turn(recorder, edited, answers("high"))
    turns = {bytes(row["node"]): row["session"] for row in await rows(owner, "turns")}

    assert len(went_on) == 1
    assert turns[edited.line.tip] not in went_on
    assert recorder.session(edited.line) == turns[edited.line.tip]


async def test_a_regenerated_answer_is_a_sibling_in_the_same_session(recorder, owner):
    asked = asked_for([user("a number?")])
    await whole_turn(recorder, asked, answers("4"))
    await whole_turn(recorder, replace(asked, attempt=attempt_id()), answers("5"))
    nodes = await rows(owner, "nodes")

    assert sorted(bytes(row["raw"]) for row in nodes if row["parent"] == asked.line.tip) == [
        json.dumps(assistant("4")).encode(),
        json.dumps(assistant("5")).encode(),
    ]
    assert len({row["session"] for row in nodes}) == 1
    assert len(await rows(owner, "turns")) == 1
    assert len(await rows(owner, "attempts")) == 2


async def test_a_shared_system_prompt_does_not_pull_a_turn_into_another_session(pool, tmp_path, owner):
    """After a restart all of a resent line is known but, to this process, its system message: which is elsewhere's."""
    prompt = system("you are helpful")
    first = [prompt, user("one")]
    long = [prompt, *(message for i in range(6) for message in (user(f"q{i}"), assistant(f"a{i}"))), user("end")]
    for messages in (first, long):
        recorder = Recorder(pool, Spool(tmp_path / "a"))
        await whole_turn(recorder, asked_for(messages, label=messages[-1]["content"]), answers("ok"))
    restarted = Recorder(pool, Spool(tmp_path / "b"))
    earlier = asked_for(long[:-2], label="end")
    await whole_turn(restarted, earlier, answers("other"))

    sessions = {row["label"]: row["id"] for row in await rows(owner, "sessions")}
    turns = {bytes(row["node"]): row["session"] for row in await rows(owner, "turns")}
    assert set(sessions) == {"one", "end"}
    assert turns[earlier.line.tip] == sessions["end"]


async def test_system_messages_are_stored_once_and_whole(recorder, owner):
    prompt = {**system("you are helpful"), "cache_control": {"type": "ephemeral"}}
    await whole_turn(recorder, asked_for([prompt, user("one")]), answers("ok"))
    await whole_turn(recorder, asked_for([prompt, user("two")]), answers("ok"))
    stored = [json.loads(row["raw"]) for row in await rows(owner, "nodes") if row["role"] == "system"]

    assert stored == [prompt]


# Many at once


async def test_the_same_request_many_times_at_once_is_one_turn_with_as_many_attempts(recorder, pool, owner):
    asked = [asked_for([user("hi"), assistant("hello"), user("go")]) for _ in range(20)]
    kept = await asyncio.gather(*(whole_turn(recorder, one, answers("gone")) for one in asked))
    await caught_up(recorder, pool)

    assert Kept.UNRECORDED not in kept
    assert [len(await rows(owner, table)) for table in ("nodes", "turns", "attempts")] == [4, 1, 20]


async def test_different_turns_of_one_conversation_at_once_are_siblings(dsn, tmp_path, owner):
    base = [user("hi"), assistant("hello")]
    asked = [asked_for([*base, user(f"question {i}")]) for i in range(30)]
    async with open_pool(dsn, 4) as one, open_pool(dsn, 4) as two:
        replicas = [Recorder(one, Spool(tmp_path / "1")), Recorder(two, Spool(tmp_path / "2"))]
        kept = await asyncio.gather(
            *(whole_turn(replicas[i % 2], each, answers(f"answer {i}")) for i, each in enumerate(asked))
        )
        await caught_up(replicas[0], one)
        await caught_up(replicas[1], two)
    nodes = {bytes(row["node"]): row for row in await rows(owner, "nodes")}

    assert Kept.UNRECORDED not in kept
    assert len(nodes) == 2 + 60
    assert all(nodes[each.line.tip]["parent"] == each.line.nodes[1] for each in asked)


# Batches


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_batches_hold_every_row_once_in_order_and_no_more_than_they_may(sizes, most):
    made = [NodeRow(bytes([i]), None, 0, True, "user", b"", bytes(size), 0) for i, size in enumerate(sizes)]
    cut = batches(made, most)

    assert [row for batch in cut for row in batch] == made
    assert all(sum(len(row.raw) for row in batch) <= most or len(batch) == 1 for batch in cut)
    assert all(cut)


async def test_a_history_of_many_batches_is_stored_whole(recorder, owner):
    messages = [user(f"{i} " + secrets.token_hex(30_000)) for i in range(20)]
    kept = await whole_turn(recorder, asked_for(messages), answers("long"))

    assert kept is Kept.COMMITTED
    assert sorted(json.loads(row["raw"])["content"] for row in await rows(owner, "nodes") if row["sent"]) == sorted(
        message["content"] for message in messages
    )


def test_attempt_ids_are_version_7_sort_by_time_and_never_meet():
    ids = [attempt_id() for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert all(id[6] >> 4 == 7 and id[8] >> 6 == 2 for id in ids)
    assert [id[:6] for id in ids] == sorted(id[:6] for id in ids)


def test_a_cache_that_was_cleared_is_empty_and_takes_as_much_as_before():
    kept: Bounded[int, str] = Bounded(4, len)
    kept.put(0, "abc")
    kept.clear()
    assert (kept.get(0), len(kept)) == (None, 0)
    kept.put(1, "ab")
    kept.put(2, "cd")
    assert len(kept) == 2


def test_a_cache_forgets_what_was_used_longest_ago():
    kept: Bounded[int, str] = Bounded(3)
    for i in range(4):
        kept.put(i, str(i))
        kept.get(0)
    assert (kept.get(0), kept.get(1), len(kept)) == ("0", None, 3)


def test_messages_are_compared_by_content():
    assert message_of(b'{"role":"user","content":"a"}') == message_of(b'{"content":"a ","role":"user"}')
    assert isinstance(message_of(b'{"role":"user","content":"a"}'), Message)


async def test_a_turn_that_waited_on_disk_may_take_longer_than_a_request(dsn, owner, tmp_path):
    """Else it and all behind it would wait for ever, and each try would shut the gate."""
    spool, asked = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds), asked_for([user("a")])
    assert await Recorder(Pool("postgresql://nobody@127.0.0.1:1/none"), spool).close(
        asked, None, Ended("answered", (), {})
    ) is Kept.SPOOLED  # fmt: skip
    await owner.execute(
        "create function slowly() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.4); return new; end $$;"
        "create trigger slowly before insert on infold.turns for each row execute function slowly()"
    )
    async with open_pool(dsn, wait_seconds=WAIT_SECONDS) as pool:
        assert await Recorder(pool, spool).drain() == 1
        assert pool.available
    spool.close()
