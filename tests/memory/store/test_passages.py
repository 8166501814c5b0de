"""Passages as the search reads them: words counted, the nearest of what a passage speaks of, and its text."""

import numpy as np
import pytest
from pgvector import HalfVector

from memory.find import Candidate, Vocabulary, Wanted, passage_scores
from memory.identify import new_id, place
from memory.segments import Segmented
from memory.store import passages
from memory.store.passages import candidate, load_around, part_text
from memory.store.passages import save_vectors as save
from tests.conversations import TENANT
from tests.memory.store.schema import HOME, NOTE, SPACE, add, save_vectors, search, terms
from tests.memory.vectors import cloud, vector

AWAY = place(TENANT, "away")
SCOPE = HOME.scope


@pytest.fixture
async def connection(pool):
    async with pool.connection(60) as made:
        yield made


async def test_a_word_that_stands_once_counts_more_than_two_that_stand_often(connection):
    """Also where a sample has met none of them, and also those of other sessions tell how rare a word is."""
    rare, often = new_id(), new_id()
    await add(connection, rare, ("zyzzyva is here",))
    await add(connection, often, ("people work here",))
    for _ in range(20):
        await add(connection, new_id(), ("people work there",), at=AWAY)
    words = terms("zyzzyva people work")
    rows = await connection.fetch(
        "select * from infold.find_words($1, $2, null, false, $3, 22, 3, 50)", TENANT, [HOME.id], words
    )
    assert [row["item"] for row in rows] == [rare, often]
    assert sorted(rows[0]["having_terms"]) == [1, 21, 21]
    assert rows[0]["having_terms"][words.index(terms("zyzzyva")[0])] == 1


@pytest.mark.parametrize("bounds", [{"exact": 2_000}, {"exact": 0}], ids=["exact", "bits"])
@pytest.mark.parametrize("place", range(3))
async def test_one_of_many_is_found_by_each_thing_it_speaks_of(connection, bounds, place):
    kept, others = new_id(), new_id()
    await add(connection, others, tuple(f"other {n}" for n in range(100)))
    await save_vectors(connection, others, cloud(100, 9))
    await add(connection, kept, ("one two three",))
    parts = cloud(3, 10)
    await save(connection, TENANT, kept, SPACE, NOTE, [0], [Segmented(cloud(1, 11)[0], parts, (3, 7, 13))])
    found = candidate(*await search(connection, parts[place], scope=SCOPE, k=1, **bounds), frozenset())
    assert (found.item, found.near) == (kept, [(0, 3), (3, 7), (7, 13)][place])


@pytest.mark.parametrize("bytes_a_part", [0, 10, 65_536], ids=["parts alone", "in between", "whole"])
async def test_what_is_nearest_in_a_passage_is_read_alone_unless_the_item_was_corrected(
    connection, monkeypatch, bytes_a_part
):
    monkeypatch.setattr(passages, "READ_WHOLE_BYTES", bytes_a_part)
    id = new_id()
    await add(connection, id, ("one two three", "four five", "six"), tokens=10_000)
    near = Candidate(id, 0, 0, 13, 3, 0.1, (), (4, 7))
    corrected = Candidate(id, 0, 0, 12, 3, 0.1, (), (4, 7))
    unembedded = Candidate(id, 1, 14, 23, 2, None, ())
    gone = Candidate(id, 9, 100, 110, 2, None, ())
    asked = [near, near, near, corrected, unembedded, gone]
    async with connection.transaction():
        await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        read = await load_around(connection, TENANT, asked, [-1, 0, 1, -1, -1, -1], 400)
    assert [(part.place, part.start, part.text) for part in read] == [
        (0, 4, "two"),
        (1, 0, "one two three"),
        (2, 0, "one two three four five"),
        (3, 0, "one two three"),
        (4, 14, "four five"),
    ]


def test_a_part_of_an_item_that_was_corrected_meanwhile_has_no_text():
    row = {"id": new_id(), "digest": b"old", "text": None, "start": 4, "stop": 7}
    assert part_text(row, {row["id"]: (b"old", "one two three")}) == "two"
    assert part_text(row, {row["id"]: (b"new", "uno dos tres")}) is None
    assert part_text(row, {}) is None


async def test_a_word_costs_what_it_finds_however_much_its_tenant_has(connection, owner):
    await owner.execute(
        "insert into infold.passages (tenant, item, ordinal, session, kind, start, stop, length, terms)"
        " select case when n % 10 = 0 then $1::bytea else $3 end, gen_random_uuid(), 0, $2, 1, 0, 9, 3, array[n % 1000, n]"
        " from generate_series(1, 50000) n",
        TENANT, HOME.id, bytes(16),
    )  # fmt: skip
    await owner.execute("vacuum analyze infold.passages")
    rows = await connection.fetch(
        "select * from infold.find_words($1, $2, null, false, $3, 5000, 3, 50)", TENANT, SCOPE, [10, 20, 30]
    )
    await connection.execute("select pg_stat_force_next_flush()")
    key = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'passages_pkey'"
    assert (len(rows), rows[0]["having_terms"]) == (50, [50, 50, 50])
    assert await owner.fetchval(key) == 0


async def test_the_database_ranks_words_as_the_fusion_does(connection):
    ids = [new_id() for _ in range(4)]
    for id, words in zip(ids, ("rare", "rare " + "x " * 40, "often", "often rare " + "x " * 90), strict=True):
        await add(connection, id, (words,))
    for _ in range(5):
        await add(connection, new_id(), ("often and more",))
    known = Vocabulary(9, 3.0, {}, 9, 0.0)
    searched = tuple(terms("rare often"))
    rows = await connection.fetch(
        "select * from infold.find_words($1, $2, null, false, $3, 9, 3, 50)", TENANT, SCOPE, list(searched)
    )
    wanted = Wanted(searched, (0.0, 0.0), searched).counted(rows[0]["having_terms"], known)
    found = [
        candidate(row, set(searched)) for row in await search(connection, None, words=[(r[0], r[1]) for r in rows])
    ]
    scores = dict(zip([one.item for one in found], passage_scores(found, wanted, known), strict=True))
    ranked = [scores[row["item"]] for row in rows]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) > 3


@pytest.mark.parametrize("bounds", [{"exact": 2_000}, {"exact": 0}], ids=["exact", "bits"])
async def test_a_passage_is_as_near_as_the_nearest_thing_it_speaks_of(connection, bounds):
    mixed, plain = new_id(), new_id()
    await add(connection, mixed, ("tree house apple pie green car",))
    await add(connection, plain, ("apple tree",))
    await save_vectors(connection, plain, [vector("apple tree")])
    parts = [vector(text) for text in ("tree house", "apple pie", "green car")]
    whole = vector("tree house apple pie green car")
    await save(connection, TENANT, mixed, SPACE, NOTE, [0], [Segmented(whole, np.array(parts), (10, 20, 30))])
    found = candidate(
        *await search(connection, vector("apple pie"), scope=SCOPE, k=1, **bounds), frozenset(terms("apple"))
    )
    assert (found.item, found.near) == (mixed, (10, 20))
    assert found.distance == pytest.approx(0, abs=1e-3)
    assert found.matched == tuple(terms("apple"))
    other = candidate(*await search(connection, vector("apple tree"), scope=SCOPE, k=1, **bounds), frozenset())
    assert (other.item, other.near, other.matched) == (plain, (0, 10), ())


async def test_each_passage_gets_its_own_segments(connection):
    kept = new_id()
    await add(connection, kept, ("one", "two", "three"))
    whole, many = [vector(text) for text in ("one", "two", "three")], np.array([vector(text) for text in "abcde"])
    made = [Segmented(whole[0], many[:2], (1, 3)), Segmented(whole[1]), Segmented(whole[2], many[2:], (1, 2, 5))]
    async with connection.transaction():
        assert await save(connection, TENANT, kept, SPACE, NOTE, [0, 1, 2], made) == 3
        await connection.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        rows = await connection.fetch(
            "select coalesce(cardinality(segments), 0) as n, stops, bits_2 is null and bits_3 is null as alone,"
            " infold.nearest(embedding, segments, $2) as apart from infold.vectors where item = $1 order by ordinal",
            kept, HalfVector(many[4]),
        )  # fmt: skip
    assert [row["n"] for row in rows] == [2, 0, 3]
    assert [row["stops"] for row in rows] == [[1, 3], None, [1, 2, 5]]
    assert [row["alone"] for row in rows] == [False, True, False]
    assert rows[2]["apart"] == pytest.approx(0, abs=1e-3)
    assert min(rows[0]["apart"], rows[1]["apart"]) > 0.5
