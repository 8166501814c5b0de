"""What is in quarantine is nowhere else, is read by its thread alone, and comes back by a person alone."""

import asyncio
import json

import pytest

from memory.detect import secrets_in
from memory.errors import Conflict, InvalidRequest, NotAllowed, NotFound, StoreUnavailable
from memory.identify import new_id, place
from memory.nouns import Principal, QuarantineState
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.store.quarantine import holders, oldest_writer
from memory.store.turns import NodeRow, save_nodes
from memory.tokens import Counter
from tests.clock import NOON, Hands
from tests.conversations import TENANT, user
from tests.memory.store.schema import add, retrieve, save_vectors
from tests.memory.test_detect import CAPITALS, drawn
from tests.memory.vectors import vector

HOME, AWAY = place(TENANT, "home"), place(TENANT, "away")
STRANGER = bytes(16)
ANN = Principal(TENANT, "key:1a2b3c4d", is_person=True)
PROGRAM = Principal(TENANT, "local")
KEY = f"AKIA{drawn(16, CAPITALS)}"
CANARY = "the canary sings at dawn"


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def restored():
    return []


@pytest.fixture
def quarantine(pool, hands, restored):
    async def restore(place, id, content_type, content):
        restored.append((place.name, id, content_type, content))

    return Quarantine(pool, Counter(), hands, Settings(), restore)


@pytest.fixture
async def connection(pool):
    async with pool.tenant(TENANT, 60) as made:
        yield made


async def stored(pool, *texts, at=HOME, **more):
    """An item that has a passage and a vector for each text."""
    id = new_id()
    async with pool.connection(30) as connection:
        await add(connection, id, texts, at=at, **more)
        await save_vectors(connection, id, [vector(text) for text in texts], tenant=at.tenant)
    return id


async def rows(owner, table, tenant=TENANT):
    return await owner.fetch(f"select * from infold.{table} where tenant = $1", tenant)


async def counters(owner, at):
    row = await owner.fetchrow("select * from infold.states where tenant = $1 and id = $2", at.tenant, at.id)
    return row["tokens"], row["used"], row["embedded"]


async def seen(pool, id):
    async with pool.connection(30) as connection:
        return await retrieve(connection, id)


async def test_free_content_is_isolated_listed_and_read(quarantine, hands):
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd", {"a": 1})
    (listed,) = await quarantine.listed(HOME)
    assert (listed.thread_id, listed.isolated_content, listed.is_active) == (thread, None, True)
    assert (listed.reason_for_isolation, listed.context_type, listed.session_id) == ("odd", "note", "home")
    assert listed.metadata == {"a": 1}
    assert listed.token_count > 0
    assert await quarantine.listed(AWAY) == ()
    assert (await quarantine.read(PROGRAM, thread)).isolated_content == CANARY


async def test_threads_have_128_random_bits(quarantine):
    threads = {await quarantine.isolate(HOME, CANARY, "note", "odd") for _ in range(3)}
    assert len(threads) == 3
    assert all(len(bytes.fromhex(thread.removeprefix("thread_"))) == 16 for thread in threads)


async def test_every_item_that_holds_it_goes_in_all_sessions_of_the_tenant(quarantine, pool, owner):
    whole = await stored(pool, CANARY)
    part = await stored(pool, f"before {CANARY}", "and after", at=AWAY, form=1)
    other = await stored(pool, "another bird", at=AWAY, shared=True)
    foreign = await stored(pool, CANARY, at=place(STRANGER, "home"))
    await quarantine.isolate(HOME, f"\n{CANARY} ", "note", "odd")

    assert [await seen(pool, id) for id in (whole, part)] == [None, None]
    assert await seen(pool, other)
    assert {row["item"] for row in await rows(owner, "passages")} == {other}
    assert {row["item"] for row in await rows(owner, "vectors")} == {other}
    assert len(await rows(owner, "vectors", STRANGER)) == 1
    assert await counters(owner, HOME) == (0, 0, 0)
    assert await counters(owner, AWAY) == (100, 100, 1)
    (tenant,) = await rows(owner, "tenants")
    assert (tenant["passages"], tenant["embedded"]) == (1, 1)
    assert foreign


async def test_no_vector_is_written_for_it_afterwards(quarantine, pool, owner):
    id = await stored(pool, CANARY)
    await quarantine.isolate(HOME, CANARY, "note", "odd")
    async with pool.connection(30) as connection:
        assert await save_vectors(connection, id, [vector(CANARY)]) == 0
    assert await rows(owner, "vectors") == []


async def test_content_in_metadata_is_content(quarantine, pool, owner):
    id = await stored(pool, "a harmless text")
    await owner.execute(
        "update infold.items set metadata = $2 where id = $1", id, json.dumps({"said": f'x "{CANARY}"'})
    )
    await quarantine.isolate(HOME, f'"{CANARY}"', "note", "odd")
    assert await seen(pool, id) is None


async def test_who_writes_while_a_text_is_isolated_is_waited_for(quarantine, pool, owner):
    """Its rows are seen by nobody yet, and yet nothing in them escapes."""
    await stored(pool, "the tenant is known")
    raw = json.dumps(user(f"so {CANARY}")).encode()
    item, node = new_id(), NodeRow(b"node", None, 0, True, "user", b"digest of it", raw, 1)
    async with pool.tenant(TENANT) as writer:
        await add(writer, item, [CANARY])
        await save_nodes(writer, TENANT, None, [node], "s")
        isolating = asyncio.create_task(quarantine.isolate(HOME, CANARY, "note", "odd"))
        async with asyncio.timeout(60):
            while not await owner.fetchval("select count(*) from pg_locks where locktype = 'advisory' and not granted"):
                await asyncio.sleep(0.01)
        assert not isolating.done()
    await isolating
    assert await seen(pool, item) is None
    assert len(await rows(owner, "passages")) == 1
    assert b"digest of it" in [row["digest"] for row in await rows(owner, "seals")]


async def test_what_tells_an_item_s_text_in_a_conversation_goes(quarantine, pool, owner):
    """A block may quote an item, and no message says it."""
    data, record = f'["{CANARY}"]'.encode(), json.dumps({"forwarded": [json.dumps(f"a {CANARY}")], "mode": "folded"})
    await owner.execute("insert into infold.folds values ($1, 'n', 'block', 0, $2)", TENANT, data)
    await owner.execute("insert into infold.folds values ($1, 'm', 'block', 0, 'of another bird')", TENANT)
    await owner.execute(
        "insert into infold.attempts (tenant, id, node, status, record) values ($1, $2, 'n', 'answered', $3)",
        TENANT, new_id(), record.encode(),
    )  # fmt: skip
    await quarantine.isolate(HOME, CANARY, "note", "odd")
    assert [row["node"] for row in await rows(owner, "folds")] == [b"m"]
    (attempt,) = await rows(owner, "attempts")
    assert json.loads(attempt["record"]) == {"mode": "folded", "redacted": True}


async def test_only_what_others_wrote_meanwhile_is_read_while_they_wait(quarantine, pool, owner):
    """What was there before is found before others have to wait; only what they wrote meanwhile is read again."""
    await stored(pool, CANARY)
    async with pool.tenant(TENANT) as connection:
        since = await oldest_writer(connection)
        assert await holders(connection, TENANT, CANARY, False, [], since) == []
        late = await stored(pool, CANARY)
        assert [row["id"] for row in await holders(connection, TENANT, CANARY, False, [], since)] == [late]


async def test_a_short_text_takes_only_items_that_are_it(quarantine, pool):
    same, longer = await stored(pool, "abc"), await stored(pool, "abcabc and more")
    await quarantine.isolate(HOME, "abc", "note", "odd")
    assert await seen(pool, same) is None
    assert await seen(pool, longer)


async def test_reading_is_written_down_with_the_reading(quarantine, owner, hands):
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd", principal=PROGRAM)
    hands.forward(hours=1)
    await quarantine.read(ANN, thread)
    await quarantine.release(ANN, thread)
    audit = await rows(owner, "audit")
    assert [(row["actor"], row["action"], row["at"]) for row in sorted(audit, key=lambda row: row["id"])] == [
        ("local", "quarantine.isolate", NOON),
        ("key:1a2b3c4d", "quarantine.read", hands.now),
        ("key:1a2b3c4d", "quarantine.release", hands.now),
    ]
    assert not any(CANARY in str(tuple(row.values())) or thread in str(tuple(row.values())) for row in audit)


async def test_only_a_person_releases(quarantine, owner):
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    with pytest.raises(NotAllowed):
        await quarantine.release(PROGRAM, thread)
    assert (await quarantine.read(PROGRAM, thread)).state is QuarantineState.ISOLATED
    await quarantine.release(ANN, thread)
    assert await quarantine.read(PROGRAM, thread) is None
    assert await quarantine.listed(HOME) == ()
    with pytest.raises(Conflict, match="released"):
        await quarantine.release(ANN, thread)
    (row,) = await rows(owner, "quarantine")
    assert (row["state"], row["content"]) == ("released", "")
    assert await rows(owner, "seals") == []


async def test_released_items_are_counted_shortened_and_made_searchable_again(quarantine, pool, owner, restored):
    id = await stored(pool, CANARY, at=AWAY)
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    await quarantine.release(ANN, thread)
    assert (await seen(pool, id))["form"] == 1
    assert await counters(owner, AWAY) == (100, 10, 0)
    assert restored == [("home", id, "", CANARY)]


async def test_what_was_in_no_item_is_given_back_as_a_new_one(quarantine, restored):
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    await quarantine.release(ANN, thread)
    ((name, _, content_type, content),) = restored
    assert (name, content_type, content) == ("home", "note", CANARY)


async def test_what_holds_a_part_that_is_held_too_waits_for_that(quarantine, restored, owner):
    """Releasing the whole was refused where it became an item, and yet it was released: its content was gone."""
    whole = await quarantine.isolate(HOME, CANARY, "note", "odd")
    part = await quarantine.isolate(HOME, "canary sings", "note", "odd")
    seals = "select count(*) from infold.seals"
    before = await owner.fetchval(seals)
    with pytest.raises(Conflict, match="held in quarantine"):
        await quarantine.release(ANN, whole)
    assert (await quarantine.read(PROGRAM, whole)).isolated_content == CANARY
    assert await owner.fetchval(seals) == before > 0
    assert "quarantine.release" not in {row["action"] for row in await rows(owner, "audit")}
    for thread in (part, whole):
        await quarantine.release(ANN, thread)
    assert [content for *_, content in restored] == ["canary sings", CANARY]


async def test_a_text_held_twice_comes_back_with_the_last_release(quarantine, restored):
    threads = [await quarantine.isolate(HOME, text, "note", "odd") for text in (CANARY, f" {CANARY}\n")]
    await quarantine.release(ANN, threads[0])
    assert restored == []
    await quarantine.release(ANN, threads[1])
    assert [content.strip() for *_, content in restored] == [CANARY]


async def test_a_release_that_is_refused_at_its_end_leaves_the_content(pool, hands):
    """Somebody isolates a part of it between its first transaction and its last."""

    async def refuse(place, id, content_type, content):
        raise Conflict

    quarantine = Quarantine(pool, Counter(), hands, Settings(), refuse)
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    with pytest.raises(Conflict):
        await quarantine.release(ANN, thread)
    assert (await quarantine.read(PROGRAM, thread)).isolated_content == CANARY


async def test_what_was_in_items_that_are_gone_comes_back_as_a_new_one(quarantine, pool, owner, restored):
    id = await stored(pool, CANARY)
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    await owner.execute("delete from infold.items where id = $1", id)
    await quarantine.release(ANN, thread)
    assert [content for *_, content in restored] == [CANARY]


async def test_an_item_held_by_two_threads_stays_until_both_are_released(quarantine, pool):
    id = await stored(pool, CANARY, "and another secret")
    first = await quarantine.isolate(HOME, CANARY, "note", "odd")
    second = await quarantine.isolate(HOME, "another secret", "note", "odd")
    await quarantine.release(ANN, first)
    assert await seen(pool, id) is None
    await quarantine.release(ANN, second)
    assert await seen(pool, id)


async def test_isolating_again_with_the_same_id_gives_the_same_thread(quarantine, owner):
    id = new_id()
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd", id=id)
    assert await quarantine.isolate(HOME, CANARY, "note", "odd", id=id) == thread
    assert len(await rows(owner, "quarantine")) == 1


async def test_what_a_detector_finds_is_proposed_once_and_stays_usable(quarantine, pool, owner):
    text = f"the key is {KEY}"
    id = await stored(pool, text)
    await quarantine.propose(HOME, text, secrets_in(text), id)
    await quarantine.propose(HOME, text, secrets_in(text), id)
    (proposed,) = await quarantine.listed(HOME)
    assert (proposed.state, proposed.is_active, proposed.metadata["item_id"]) == ("proposed", False, str(id))
    assert proposed.reason_for_isolation == "looks like: aws key"
    assert await quarantine.read(ANN, proposed.thread_id) is None
    with pytest.raises(Conflict, match="proposed"):
        await quarantine.release(ANN, proposed.thread_id)
    assert await seen(pool, id)
    told = await rows(owner, "quarantine") + await rows(owner, "events")
    assert not any(KEY in str(tuple(row.values())) for row in told)

    await quarantine.isolate(HOME, text, "note", "as proposed")
    (isolated,) = await quarantine.listed(HOME)
    assert isolated.state is QuarantineState.ISOLATED
    assert await quarantine.propose(HOME, text, secrets_in(text), id) is None


async def test_an_item_in_which_a_detector_finds_something_is_stored_and_taken_away_at_once(quarantine, pool, owner):
    older, id = await stored(pool, f"also {KEY}"), new_id()

    async def store(connection):
        await add(connection, id, [KEY])

    for is_new in (True, False):
        assert await quarantine.store_isolated(HOME, KEY, secrets_in(KEY), store, id) is is_new
        assert [await seen(pool, each) for each in (older, id)] == [None, None]
        (isolated,) = await quarantine.listed(HOME)
        assert isolated.is_active
        (row,) = await rows(owner, "quarantine")
        assert set(row["items"]) == {older, id}
    assert await counters(owner, HOME) == (0, 0, 0)


async def test_of_an_item_that_cannot_be_isolated_nothing_is_stored(quarantine, pool, owner):
    """It was stored and sealed first, and isolated in a second transaction: where that failed, it was lost."""
    id = new_id()

    async def store(connection):
        await add(connection, id, [KEY])
        raise ConnectionResetError

    with pytest.raises(StoreUnavailable):
        await quarantine.store_isolated(HOME, KEY, secrets_in(KEY), store, id)
    assert await rows(owner, "items") == await rows(owner, "quarantine") == []


async def test_foreign_and_unknown_threads_are_not_there(quarantine):
    thread = await quarantine.isolate(HOME, CANARY, "note", "odd")
    eve = Principal(STRANGER, "key:00000000", is_person=True)
    said = set()
    for who, which in ((eve, thread), (ANN, f"thread_{'0' * 32}"), (ANN, "nonsense"), (ANN, None)):
        assert await quarantine.read(who, which) is None
        with pytest.raises(NotFound) as missing:
            await quarantine.release(who, which)
        said.add(str(missing.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("", "note", "odd"), "content"), ((7, "note", "odd"), "content"), ((CANARY, "", "odd"), "context_type"),
     ((CANARY, "note", None), "reason"), ((CANARY, "note", "odd", "x"), "metadata"), (("a\0b", "note", "odd"), "content")],
)  # fmt: skip
async def test_bad_input_names_its_field(quarantine, arguments, field):
    with pytest.raises(InvalidRequest) as refused:
        await quarantine.isolate(HOME, *arguments)
    assert refused.value.field == field
    assert await quarantine.listed(HOME) == ()
