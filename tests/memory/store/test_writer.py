"""Turns that end together share a commit; one at fault, or a requester who has left, harms no other."""

import asyncio

import pytest

from memory.errors import StoreRefused, StoreUnavailable
from memory.identify import child
from memory.store import writer
from memory.store.pool import Pool
from memory.store.turns import NodeRow, TurnRecord, attempt_id
from memory.store.writer import MOST_TURNS, TurnWriter
from proxy.wire.openai import message_of

TENANTS = [bytes([number]) * 16 for number in range(1, 6)]


def turn(number: int, tenant: bytes = TENANTS[0], stored: bool = True) -> TurnRecord:
    """A turn of one message; without `stored` its message is missing, so it is refused."""
    asked = message_of(b'{"role":"user","content":"question %d"}' % number)
    node = child(tenant, b"", asked)
    row = NodeRow(node, None, 0, True, "user", asked.digest, asked.raw, 4)
    return TurnRecord(tenant, f"s{number}", (row,) if stored else (), node, attempt_id(), "answered", "m", (), b"{}")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many turns each commit held that was tried."""
    tried: list[int] = []
    record_turns = writer.record_turns

    async def counted(connection, turns, relaxed):
        tried.append(len(turns))
        return await record_turns(connection, turns, relaxed)

    monkeypatch.setattr(writer, "record_turns", counted)
    return tried


async def test_turns_that_end_together_share_commits_and_each_gets_its_session(pool, owner, commits):
    turns = [turn(n, TENANTS[n % 5]) for n in range(100)]
    sessions = await asyncio.gather(*map(TurnWriter(pool).write, turns))

    assert sessions == [f"s{n}" for n in range(100)]
    assert sum(commits) == 100
    assert max(commits) <= MOST_TURNS
    assert len(commits) <= 100 // MOST_TURNS + 3
    rows = await owner.fetch("select tenant, node from infold.turns")
    assert {(row["tenant"], row["node"]) for row in rows} == {(t.tenant, t.turn) for t in turns}


async def test_one_refused_turn_leaves_the_others_recorded(pool, owner):
    turns = [turn(n, stored=n != 7) for n in range(20)]
    ended = await asyncio.gather(*map(TurnWriter(pool).write, turns), return_exceptions=True)

    assert [n for n, end in enumerate(ended) if isinstance(end, StoreRefused)] == [7]
    assert [end for end in ended if isinstance(end, str)] == [f"s{n}" for n in range(20) if n != 7]
    assert await owner.fetchval("select count(*) from infold.turns") == 19


async def test_a_requester_who_leaves_takes_no_turn_along(pool, owner):
    waiting = TurnWriter(pool)
    writes = [asyncio.create_task(waiting.write(turn(n))) for n in range(10)]
    await asyncio.sleep(0)
    writes[4].cancel()
    await asyncio.gather(*writes, return_exceptions=True)

    assert await owner.fetchval("select count(*) from infold.turns") == 10


async def test_a_database_that_is_away_fails_all_who_wait_and_a_later_turn_passes(pool, dsn, owner):
    nobody = TurnWriter(Pool("postgresql://nobody@127.0.0.1:1/none"))
    ended = await asyncio.gather(*(nobody.write(turn(n)) for n in range(50)), return_exceptions=True)

    assert all(isinstance(end, StoreUnavailable) for end in ended)
    nobody._pool = pool
    assert await nobody.write(turn(99)) == "s99"


async def test_without_statistics_a_turn_reads_no_more_than_its_own_rows(pool, owner):
    """A fresh database is analysed a minute after it has grown; until then its plans must do."""
    waiting = TurnWriter(pool)
    for begin in range(0, 600, 30):
        await asyncio.gather(*(waiting.write(turn(n)) for n in range(begin, begin + 30)))
    async with pool.connection() as connection:
        await connection.execute("select pg_stat_force_next_flush()")
        await connection.execute("select 1")
    read = await owner.fetchval(
        "select sum(idx_tup_read) from pg_stat_user_indexes where schemaname = 'infold' and relname = 'nodes'"
    )
    scanned = await owner.fetchval("select seq_tup_read from pg_stat_user_tables where relname = 'nodes'")

    assert await owner.fetchval("select last_autoanalyze is null from pg_stat_user_tables where relname = 'nodes'")
    assert read + scanned < 600 * 10


async def test_whatever_breaks_a_commit_off_nobody_waits_for_ever(pool, monkeypatch, owner):
    waiting = TurnWriter(pool)
    monkeypatch.setattr(writer, "record_turns", None)
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*(waiting.write(turn(n)) for n in range(50)), return_exceptions=True)
    assert all(isinstance(end, StoreUnavailable) for end in ended)

    monkeypatch.undo()
    assert await waiting.write(turn(99)) == "s99"
