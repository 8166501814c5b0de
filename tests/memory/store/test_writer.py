"""Turns that end together share a commit; one at fault, or a requester who has left, harms no other."""

import asyncio

import asyncpg
import pytest
from msgspec.structs import replace

from memory.errors import StoreBusy, StoreError, StoreRefused, StoreUnavailable
from memory.identify import child
from memory.store import writer
from memory.store.pool import WAIT_SECONDS, Pool
from memory.store.turns import NodeRow, TurnRecord, attempt_id, record_turns
from memory.store.writer import MOST_TURNS, TurnWriter
from proxy.wire.content import message_of
from tests.conftest import open_pool
from tests.faults import HANG

TENANTS = [bytes([number]) * 16 for number in range(1, 6)]


def turn(number: int, tenant: bytes = TENANTS[0], stored: bool = True) -> TurnRecord:
    """A turn of one message; without `stored` its message is missing, so it is refused."""
    asked = message_of(b'{"role":"user","content":"question %d"}' % number)
    node = child(tenant, b"", asked)
    row = NodeRow(node, None, 0, True, "user", asked.digest, asked.raw, 4)
    return TurnRecord(tenant, f"s{number}", (row,) if stored else (), node, attempt_id(), "answered", "m", (), b"{}")


def patient(pool: Pool) -> TurnWriter:
    """A busy machine may take longer than a request would wait."""
    return TurnWriter(pool, wait_seconds=10)


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
    sessions = await asyncio.gather(*map(patient(pool).write, turns))

    assert sessions == [f"s{n}" for n in range(100)]
    assert sum(commits) == 100
    assert max(commits) <= MOST_TURNS
    assert len(commits) <= 100 // MOST_TURNS + 3
    rows = await owner.fetch("select tenant, node from infold.turns")
    assert {(row["tenant"], row["node"]) for row in rows} == {(t.tenant, t.turn) for t in turns}


async def test_one_refused_turn_leaves_the_others_recorded(pool, owner):
    turns = [turn(n, stored=n != 7) for n in range(20)]
    ended = await asyncio.gather(*map(patient(pool).write, turns), return_exceptions=True)

    assert [n for n, end in enumerate(ended) if isinstance(end, StoreRefused)] == [7]
    assert [end for end in ended if isinstance(end, str)] == [f"s{n}" for n in range(20) if n != 7]
    assert await owner.fetchval("select count(*) from infold.turns") == 19


async def test_a_turn_that_waits_for_a_lock_takes_none_of_another_tenant_along(pool, owner):
    turns = [turn(n, TENANTS[n % 5]) for n in range(20)]
    async with pool.tenant(turns[7].tenant) as other:
        await record_turns(other, [turns[7]])  # not committed yet
        ended = await asyncio.gather(*map(patient(pool).write, turns), return_exceptions=True)

    assert {turns[n].tenant for n, end in enumerate(ended) if isinstance(end, StoreBusy)} == {turns[7].tenant}
    assert [n for n, end in enumerate(ended) if isinstance(end, str)] == [n for n in range(20) if n % 5 != 2]


async def test_while_a_tenant_s_door_is_shut_the_others_are_written(pool, owner, commits):
    """An isolation keeps its own tenant waiting, and nobody else."""
    await owner.execute("select pg_advisory_lock(infold.door($1))", TENANTS[0])
    ended: list[bytes] = []

    async def write(waiting: TurnWriter, one: TurnRecord) -> str:
        try:
            return await waiting.write(one)
        finally:
            ended.append(one.tenant)

    turns, waiting = [turn(n, TENANTS[n % 2]) for n in range(6)], patient(pool)
    results = await asyncio.gather(*(write(waiting, one) for one in turns), return_exceptions=True)

    assert [n for n, result in enumerate(results) if isinstance(result, StoreError)] == [0, 2, 4]
    assert ended == [TENANTS[1]] * 3 + [TENANTS[0]] * 3
    assert commits == [6, 3, 3]


async def test_a_requester_who_leaves_takes_no_turn_along(pool, owner):
    waiting = patient(pool)
    writes = [asyncio.create_task(waiting.write(turn(n))) for n in range(10)]
    await asyncio.sleep(0)
    writes[4].cancel()
    await asyncio.gather(*writes, return_exceptions=True)

    assert await owner.fetchval("select count(*) from infold.turns") == 10


async def test_a_database_that_is_away_fails_all_who_wait_and_a_later_turn_passes(pool, dsn, owner):
    nobody = patient(Pool("postgresql://nobody@127.0.0.1:1/none"))
    ended = await asyncio.gather(*(nobody.write(turn(n)) for n in range(50)), return_exceptions=True)

    assert all(isinstance(end, StoreUnavailable) for end in ended)
    nobody._pool = pool
    assert await nobody.write(turn(99)) == "s99"


async def test_without_statistics_a_turn_reads_no_more_than_its_own_rows(pool, owner):
    """A fresh database is analysed a minute after it has grown; until then its plans must do."""
    await owner.execute("alter table infold.nodes set (autovacuum_enabled = off)")  # the minute may end in this test
    waiting = patient(pool)
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
    waiting = patient(pool)
    monkeypatch.setattr(writer, "record_turns", None)
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*(waiting.write(turn(n)) for n in range(50)), return_exceptions=True)
    assert all(isinstance(end, StoreUnavailable) for end in ended)

    monkeypatch.undo()
    assert await waiting.write(turn(99)) == "s99"


async def test_a_turn_waits_for_its_commit_no_longer_than_a_request_may(dsn):
    connection = await asyncpg.connect(dsn)
    async with open_pool(dsn, wait_seconds=WAIT_SECONDS) as pool, connection.transaction():
        await connection.execute("lock infold.turns in access exclusive mode")
        began = asyncio.get_running_loop().time()
        ended = await asyncio.gather(*map(TurnWriter(pool).write, map(turn, range(100))), return_exceptions=True)
        waited = asyncio.get_running_loop().time() - began
    await connection.close()

    assert all(isinstance(end, StoreError) for end in ended)
    assert waited < HANG


async def test_a_commit_holds_no_more_than_a_batch(pool, commits, monkeypatch):
    monkeypatch.setattr(writer, "BATCH_BYTES", 5_000)
    large = replace(turn(3), record=b"x" * 20_000)
    await asyncio.gather(*map(patient(pool).write, [turn(1), turn(2), large, turn(4)]))

    assert commits[:3] == [2, 1, 1]
