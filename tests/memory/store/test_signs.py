"""Signs as the database gives them: all that is there, once, in the order in which it came, and of one's own alone."""

import numpy as np
import pytest
from pgvector import HalfVector

from memory.find import Wanted
from memory.identify import new_id, place
from memory.nouns import NIL
from memory.segments import Segmented
from memory.signs import Shelf, bits_of, nearest, read
from memory.store.items import show_to_search
from memory.store.passages import Scope, Words, save_vectors, search_items
from memory.store.signs import load_signs, search_kept
from tests.conversations import TENANT
from tests.memory.store.schema import HOME, LOG, NOTE, SPACE, add
from tests.memory.vectors import cloud

AWAY = place(TENANT, "away")
STRANGER = place(bytes(16), "home")
NOTHING = Wanted((), (), ())
POINTS = cloud(60, 1)


@pytest.fixture
async def connection(pool):
    async with pool.connection(60) as made:
        yield made


@pytest.fixture
async def other(pool):
    async with pool.connection(60) as made:
        yield made


async def store(connection, points, at=HOME, shared=False, kind=NOTE, id=None):
    """An item with a passage a point."""
    id = id or new_id()
    await add(connection, id, tuple(f"word{n}" for n in range(len(points))), at=at, shared=shared, kind=kind)
    made = [Segmented(point) for point in points]
    await save_vectors(connection, at.tenant, id, SPACE, kind, range(len(made)), made)
    return id


async def write_past_the_functions(connection, id, point):
    """One vector, without the counters, for which two writers would wait for each other."""
    async with connection.transaction():
        await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        await connection.execute(
            "insert into infold.vectors (tenant, item, ordinal, space, session, kind, embedding, bits)"
            " values ($1, $2, 0, $3, $4, $5, $6, binary_quantize($6::halfvec)::bit(384))",
            TENANT, id, SPACE, HOME.id, NOTE, HalfVector(point),
        )  # fmt: skip


async def shelf_of(connection, shelf=None, most=1_000, at=HOME, session=None):
    """What is kept of a session, and all that is there."""
    shelf = shelf or Shelf()
    (page,) = await load_signs(connection, at.tenant, SPACE, [session or at.id], [shelf.mark], most)
    return shelf.with_page(page, most)


async def parts_of(connection, at=HOME):
    return (await shelf_of(connection, at=at))[1]


def told(parts):
    return [(item.tobytes(), ordinal) for part in parts for item, ordinal in part.heads[["item", "ordinal"]]]


def keys(id, count):
    return [(id.bytes, n) for n in range(count)]


async def kept(connection, query, parts, k=5, at=HOME):
    near = nearest(parts, query, 4 * k)
    return await search_kept(connection, Scope(at.tenant, at.scope), Words(), NOTHING, SPACE, query, k, near)


async def test_signs_are_those_of_the_vectors(connection):
    id = new_id()
    await add(connection, id, ("one", "two", "three"))
    made = [
        Segmented(POINTS[0]),
        Segmented(POINTS[1], POINTS[2:4], (1, 2)),
        Segmented(POINTS[4], POINTS[5:8], (1, 2, 3)),
    ]
    await save_vectors(connection, TENANT, id, SPACE, NOTE, range(3), made)
    (signs,) = await parts_of(connection)
    assert told([signs]) == keys(id, 3)
    expected = ([POINTS[0], POINTS[2], POINTS[5]], [POINTS[3], POINTS[6]], [POINTS[7]])
    for layer, points in zip(signs.layers, expected, strict=True):
        assert layer.words.T.tolist() == [bits_of(point).tolist() for point in points]
    assert set(signs.heads["kind"].tolist()) == {NOTE}


async def test_a_session_s_own_alone_and_none_that_is_archived(connection):
    mine, old = await store(connection, POINTS[:3]), await store(connection, POINTS[3:4])
    away, shared = (
        await store(connection, POINTS[:2], AWAY),
        await store(connection, POINTS[:1], AWAY, shared=True, kind=LOG),
    )
    stranger = await store(connection, POINTS[:4], STRANGER)
    async with connection.transaction():
        await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        await show_to_search(connection, TENANT, old, False)
    assert told(await parts_of(connection)) == keys(mine, 3)
    assert told(await parts_of(connection, AWAY)) == keys(away, 2)
    assert told((await shelf_of(connection, session=NIL))[1]) == keys(shared, 1)
    assert told(await parts_of(connection, STRANGER)) == keys(stranger, 4)


async def test_pages_follow_each_other_and_what_came_since_comes_alone(connection):
    first = await store(connection, POINTS[:25])
    shelf, parts = await shelf_of(connection, most=10)
    assert parts is None
    shelf, parts = await shelf_of(connection, shelf, 10)
    shelf, parts = await shelf_of(connection, shelf, 10)
    assert told(parts) == keys(first, 25)
    second = await store(connection, POINTS[25:27])
    (page,) = await load_signs(connection, TENANT, SPACE, [HOME.id], [shelf.mark])
    assert told([read(page)]) == keys(second, 2)


async def test_a_vector_whose_writer_was_slower_is_not_missed(connection, other):
    """Numbers are given when a transaction begins to write; what counts is when it ends."""
    early, late = new_id(), new_id()
    writing = other.transaction()
    await writing.start()
    await write_past_the_functions(other, early, POINTS[0])
    await write_past_the_functions(connection, late, POINTS[1])
    shelf, parts = await shelf_of(connection)
    assert told(parts) == keys(late, 1)
    await writing.commit()
    shelf, parts = await shelf_of(connection, shelf)
    assert set(told(parts)) == {(early.bytes, 0), (late.bytes, 0)}


async def test_kept_signs_find_what_the_database_finds_and_tell_as_much_of_it(connection):
    await store(connection, POINTS[:40])
    wanted, scope = NOTHING, Scope(TENANT, HOME.scope)
    parts = await parts_of(connection)
    for query in cloud(5, 2):
        exact, plan = await search_items(connection, scope, Words(), wanted, SPACE, query, 5)
        found = await kept(connection, query, parts)
        assert plan == "exact"
        assert sorted(found, key=str) == sorted(exact, key=str)


async def test_words_come_beside_with_their_distance_if_they_have_one(connection):
    id, bare = await store(connection, POINTS[:10]), new_id()
    await add(connection, bare, ("not embedded",))
    words = Words(((id, 9), (id, 0), (bare, 0)))
    near = nearest(await parts_of(connection), POINTS[0], 2)
    found = await search_kept(connection, Scope(TENANT, HOME.scope), words, NOTHING, SPACE, POINTS[0], 1, near)
    by_place = {(one.item, one.ordinal): one.distance for one in found}
    assert by_place.keys() == {(id, 0), (id, 9), (bare, 0)}
    assert by_place[id, 0] == pytest.approx(0, abs=1e-3)
    assert by_place[id, 9] == pytest.approx(1 - float(POINTS[0] @ POINTS[9]), abs=1e-2)
    assert by_place[bare, 0] is None


async def as_tenant(connection, statement, *given):
    async with connection.transaction():
        await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        await connection.execute(statement, *given)


async def test_where_something_has_gone_the_signs_say_nothing(connection):
    gone, corrected, archived = [await store(connection, POINTS[n : n + 2]) for n in (0, 2, 4)]
    parts = await parts_of(connection)
    assert await kept(connection, POINTS[0], parts) is not None

    await as_tenant(connection, "delete from infold.vectors where item = $1", gone)
    assert await kept(connection, POINTS[0], parts) is None

    parts = await parts_of(connection)
    await as_tenant(connection, "delete from infold.vectors where item = $1", corrected)
    made = [Segmented(point) for point in POINTS[10:12]]
    await save_vectors(connection, TENANT, corrected, SPACE, NOTE, [0, 1], made)
    assert await kept(connection, POINTS[2], parts) is None

    parts = await parts_of(connection)
    await as_tenant(connection, "update infold.vectors set live = false where item = $1", archived)
    assert await kept(connection, POINTS[4], parts) is None


async def test_what_comes_back_comes_again(connection):
    id = await store(connection, POINTS[:2])
    for live in (False, True):
        shelf, _ = await shelf_of(connection)
        async with connection.transaction():
            await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
            await show_to_search(connection, TENANT, id, live)
    _, parts = await shelf_of(connection, shelf)
    assert told(parts) == keys(id, 2)


@pytest.mark.parametrize("at", [AWAY, STRANGER], ids=["session", "tenant"])
async def test_signs_of_another_session_or_tenant_give_nothing_of_it(connection, at):
    await store(connection, POINTS[:5])
    await store(connection, POINTS[5:10], at)
    foreign = await parts_of(connection, at)
    assert len(told(foreign)) == 5
    assert await kept(connection, POINTS[5], foreign) is None
    words = Words(tuple((new_id(), n) for n in range(3)))
    near = np.concatenate([part.heads for part in foreign])
    assert await search_kept(connection, Scope(TENANT, HOME.scope), words, NOTHING, SPACE, POINTS[5], 5, near) is None
