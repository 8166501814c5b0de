"""Law 10: the memory of one tenant never meets another's, by two bars: the explicit predicate and row-level security.

The last tests take the bars away, one and then both, inside the test's own database: so we know that each holds alone,
and that the probes would notice if both were gone.
"""

import asyncio
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest

from memory.errors import NotFound
from memory.identify import tenant_id
from memory.recorder import Recorder
from memory.spool import Spool
from memory.store.chunks import are_embedded, save_chunks, similarities, to_embed
from memory.store.export import export_lines, load_turn
from memory.store.pool import Pool
from memory.store.said import load_said, may_be_told, turns_of
from memory.store.turns import FoldRow, find_line, pack
from tests.conftest import NewDatabase, open_pool, run_sql
from tests.conversations import assistant, prose, user
from tests.memory.store.test_turns import BLOCK, FROZEN, answers, asked_for, whole_turn
from tests.proxied import MODEL, Provider, Proxy, proxying

Json = dict[str, Any]
TENANTS, PROBES = 10, 10
RESERVE = 256


def opening(rng_seed: int = 1) -> list[Json]:
    """The same for every tenant, and longer than a window: nearly all nodes would be shared."""
    rng = random.Random(rng_seed)
    return [m for _ in range(13) for m in (user(prose(rng, 150)), assistant(prose(rng, 350)))]


def canary(tenant: int) -> str:
    return f"canary{tenant}x{tenant * 7919 % 9973:04d}"


def talk(proxy: Proxy, tenant: int, messages: list[Json]) -> dict[str, str]:
    with proxy.client(f"sk-tenant-{tenant}") as client:
        reply = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=messages,
            max_tokens=RESERVE,  # type: ignore[arg-type]
        )
        return dict(reply.headers)


class Houses:
    """Tenants with identical openings, each with a secret of its own."""

    def __init__(self, proxy: Proxy, provider: Provider) -> None:
        self.proxy, self.provider = proxy, provider
        self.turns: dict[int, str] = {}
        self.hints: dict[int, list[str]] = {}
        for tenant in range(TENANTS):
            secret = [user(f"My locker word is {canary(tenant)}."), assistant(f"{canary(tenant)} it is.")]
            headers = talk(proxy, tenant, [*secret, *opening(), user("xylophone?")])
            self.turns[tenant] = headers["x-infold-turn"]
            self.hints[tenant] = re.findall(r"\[#([a-z2-7]{8})\]", str(provider.prompts[-1].messages))


@pytest.fixture(scope="module")
def houses(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Any:
    provider = Provider()
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("isolation")) as proxy,
    ):
        yield Houses(proxy, provider)


def foreign(told: str, tenant: int) -> list[str]:
    return [canary(other) for other in range(TENANTS) if other != tenant and canary(other) in told]


def test_ten_tenants_by_chat_never_see_a_foreign_word(houses):
    """Their own histories, foreign histories sent as their own openings, foreign ids, foreign words."""
    questions = (
        "what is the locker word?", "locker word canary", "tell me every locker word you know",
        *(f"what of {{hint{n}}}?" for n in range(3)), "My locker word is", "xylophone?",
    )  # fmt: skip

    def probe(number: int) -> list[str]:
        tenant, rng = number % TENANTS, random.Random(number)
        other = (tenant + 1 + rng.randrange(TENANTS - 1)) % TENANTS
        asked = rng.choice(questions)
        for n in range(3):
            asked = asked.replace(f"{{hint{n}}}", f"[#{rng.choice(houses.hints[other] or ['aaaaaaaa'])}]")
        own = [user(f"My locker word is {canary(tenant)}."), assistant(f"{canary(tenant)} it is.")]
        messages = [*(own if rng.random() < 0.5 else []), *opening(), user(f"{number}: {asked}")]
        talk(houses.proxy, tenant, messages)
        return []

    before = len(houses.provider.prompts)
    with ThreadPoolExecutor(4) as many:
        list(many.map(probe, range(TENANTS * PROBES)))
    prompts = houses.provider.prompts[before:]

    assert len(prompts) == TENANTS * PROBES
    leaks = []
    for prompt in prompts:
        key = prompt.seen.header(b"authorization")
        assert key is not None
        leaks += foreign(prompt.seen.body.decode(), int(key.rpartition(b"-")[2]))
    assert leaks == []
    assert sum(bool(prompt.blocks) for prompt in prompts) > len(prompts) / 8  # else nothing was searched


def test_a_foreign_turn_is_as_unknown_as_one_that_never_was(houses):
    made_up = "a" * 26
    for tenant in range(TENANTS):
        key = f"sk-tenant-{tenant}"
        foreign_turn = houses.turns[(tenant + 1) % TENANTS]
        own = houses.proxy.get(f"/memory-manager/turns/{houses.turns[tenant]}", key)
        probes = [houses.proxy.get(f"/memory-manager/turns/{id}", key) for id in (foreign_turn, made_up)]

        assert own.status_code == 200
        assert [probe.status_code for probe in probes] == [404, 404]
        assert probes[0].text.replace(foreign_turn, "") == probes[1].text.replace(made_up, "")
        assert not foreign(own.text, tenant)


def test_an_export_holds_ones_own_and_nothing_else(houses):
    for tenant in range(TENANTS):
        text = houses.proxy.get("/memory-manager/export", f"sk-tenant-{tenant}").text
        assert canary(tenant) in text
        assert foreign(text, tenant) == []


def test_a_key_nobody_knows_exports_nothing(houses):
    assert houses.proxy.export("sk-stranger") == []


def test_two_forks_of_one_tenant_never_see_each_others_words(new_database, tmp_path):
    """Two users behind one key who begin alike."""
    provider = Provider()
    with new_database() as dsn, provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path) as proxy:
        for rounds in range(2):
            for fork in range(4):
                secret = [user(f"My locker word is {canary(fork)}."), assistant("Noted.")]
                talk(proxy, 0, [*opening()[:6], *secret, *opening()[6:], user(f"what is the locker word? ({rounds})")])
                assert canary(fork) in provider.prompts[-1]
                assert foreign(provider.prompts[-1].seen.body.decode(), fork) == []


def test_the_key_itself_is_nowhere_in_the_database(houses):
    config = houses.proxy.config
    assert config.database_url is not None

    async def everything() -> str:
        connection = await asyncpg.connect(config.database_url.get_secret_value())  # type: ignore[union-attr]
        try:
            tables = await connection.fetch("select tablename from pg_tables where schemaname = 'infold'")
            rows = [await connection.fetch(f'select * from infold."{table["tablename"]}"') for table in tables]
            return " ".join(str(dict(row)) for found in rows for row in found)
        finally:
            await connection.close()

    assert "sk-tenant" not in asyncio.run(everything())


# The two bars, one at a time


PEPPER = b"p" * 32
ALICE, BOB = tenant_id(PEPPER, "alice"), tenant_id(PEPPER, "bob")


async def probes(pool: Pool, owner: asyncpg.Connection) -> list[str]:
    """All reads of the store, as Bob, aimed at what is Alice's; gives what of hers was found."""
    found: list[str] = []
    nodes = [row["node"] for row in await owner.fetch("select node from infold.nodes where $1 = tenant", ALICE)]
    turns = [row["node"] for row in await owner.fetch("select node from infold.turns where $1 = tenant", ALICE)]
    async with pool.connection(5) as connection:
        state = await find_line(connection, BOB, nodes)
        found += ["find_line"] * (state.known > 0 or bool(state.frozen) or bool(state.blocks))
    async with pool.tenant(BOB) as connection:
        exported = b"".join([line async for line in export_lines(connection, BOB)])
        found += ["export"] * (b"alices-canary" in exported)
    for turn in turns:
        with suppress(NotFound):
            async with pool.tenant(BOB) as connection:
                told = msgspec.json.encode(await load_turn(connection, BOB, turn))
                found += ["turn"] * (b"alices-canary" in told)
    async with pool.tenant(BOB) as connection:
        found += ["embedded"] * await are_embedded(connection, BOB, "s", nodes)
        found += ["similar"] * bool(await similarities(connection, BOB, "s", nodes, VECTOR))
        found += ["to embed"] * any(
            b"alices-canary" in row["raw"] for row in await to_embed(connection, BOB, "t", turns[0])
        )
        found += ["said"] * any(b"alices-canary" in row.raw for row in await load_said(connection, BOB, None))
        found += ["said in a session"] * bool(await load_said(connection, BOB, ALICES_LABEL))
        found += ["may be told"] * bool(await may_be_told(connection, BOB, nodes))
        found += ["turns of"] * bool(await turns_of(connection, BOB, nodes))
    return sorted(set(found))


ALICES_LABEL = "alices-label"
VECTOR = np.ones(384, dtype=np.float32) / 384**0.5


@pytest.fixture
async def shared(dsn: str, tmp_path: Path) -> str:
    """A database with Alice's conversation in it, folded and embedded, and a short one of Bob's."""
    async with open_pool(dsn) as pool:
        recorder = Recorder(pool, Spool(tmp_path / "turns"))
        said = [user("alices-canary one"), assistant("alices-canary two"), user("alices-canary three")]
        asked = asked_for(said, ALICE)
        folds = (
            FoldRow(asked.line.nodes[0], "frozen", 0, pack(FROZEN)),
            FoldRow(asked.line.tip, "block", 2, pack(BLOCK)),
        )
        await whole_turn(
            recorder, asked_for(said, ALICE, folds=folds, label=ALICES_LABEL), answers("alices-canary four")
        )
        await whole_turn(recorder, asked_for([user("bob here")], BOB), answers("hello bob"))
        async with pool.tenant(ALICE) as connection:
            await save_chunks(connection, ALICE, "s", asked.line.tip, [(0, 5)], np.array([VECTOR]))
    return dsn


TABLES = ("nodes", "sessions", "turns", "attempts", "folds", "chunks")
NO_RLS = tuple(f"alter table infold.{t} disable row level security" for t in TABLES) + tuple(
    f"alter table infold.{t} no force row level security" for t in TABLES
)


def without_predicates(sql: str) -> str:
    """`tenant = $1` and its likes, always true; the parameter is still used, so that the query still prepares."""
    return re.sub(r"(\w+\.)?tenant = (\$1|p_tenant|\w+\.tenant)", r"(\2)::bytea is not null", sql)


async def careless_functions(owner: asyncpg.Connection) -> None:
    """Make the SQL functions anew without their predicates."""
    rows = await owner.fetch(
        "select pg_get_functiondef(p.oid) as sql from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = 'infold' and p.proname = 'find_line'"
    )
    for row in rows:
        assert without_predicates(row["sql"]) != row["sql"]
        await owner.execute(without_predicates(row["sql"]))


@pytest.fixture
def careless_queries(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Take the predicates out of what Python asks; the only place where a test patches, because it makes mutants."""

    def lose() -> None:
        for name in ("fetch", "fetchrow", "fetchval", "cursor"):
            whole = getattr(asyncpg.Connection, name)

            def mutant(self: Any, query: str, *arguments: Any, _whole: Any = whole, **more: Any) -> Any:
                return _whole(self, without_predicates(query), *arguments, **more)

            monkeypatch.setattr(asyncpg.Connection, name, mutant)

    return lose


async def test_with_both_bars_nothing_of_alices_reaches_bob(shared, owner):
    async with open_pool(shared) as pool:
        assert await probes(pool, owner) == []


async def test_row_level_security_alone_holds_where_a_predicate_was_forgotten(shared, owner, careless_queries):
    await careless_functions(owner)
    async with open_pool(shared) as pool:
        careless_queries()
        assert await probes(pool, owner) == []


async def test_the_predicates_alone_hold_where_row_level_security_is_off(shared, owner):
    run_sql(shared, *NO_RLS)
    async with open_pool(shared) as pool:
        assert await probes(pool, owner) == []


async def test_with_both_bars_gone_the_probes_notice_at_every_place(shared, owner, careless_queries):
    """So the tests above can fail."""
    run_sql(shared, *NO_RLS)
    await careless_functions(owner)
    async with open_pool(shared) as pool:
        careless_queries()
        assert await probes(pool, owner) == [
            "embedded", "export", "find_line", "may be told", "said", "said in a session", "similar", "to embed", "turn",
            "turns of",
        ]  # fmt: skip


async def test_writing_for_another_tenant_is_refused_by_the_database(shared):
    async with open_pool(shared) as pool, pool.tenant(BOB) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("insert into infold.sessions (tenant, id) values ($1, 'x')", ALICE)
