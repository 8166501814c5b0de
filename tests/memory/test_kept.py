"""A search by signs that the process keeps tells what the database would tell, whatever happened in between."""

import pytest

from memory.errors import StoreError
from memory.find import kind_id
from memory.identify import place
from memory.items import Items
from memory.models import ModelTable
from memory.search import Finder
from memory.settings import Settings
from memory.store.passages import Scope
from tests.clock import Hands
from tests.conversations import COUNTER, TENANT, WORDS
from tests.memory.vectors import WordVectors

HOME, AWAY = place(TENANT, "home"), place(TENANT, "away")
STRANGER = place(bytes(16), "home")
SCOPE = Scope(TENANT, HOME.scope)
FEW = 10  # vectors up to which each is compared
QUERY = "harbour lantern"


@pytest.fixture
def items(pool):
    return Items(pool, COUNTER, ModelTable(), Settings(), Hands(), WordVectors())


@pytest.fixture
async def ids(items):
    """Items of three words each, some beside them in another session, shared, and of a stranger."""
    for at, more in ((AWAY, {}), (AWAY, {"scope": "tenant"}), (STRANGER, {})):
        await add(items, f"{QUERY} {at.name} {more.get('scope', '')}", at, **more)
    return [await add(items, " ".join(WORDS[n : n + 3])) for n in range(40)]


@pytest.fixture
def finder(pool):
    return Finder(pool, WordVectors())


async def add(items, text, at=HOME, **more):
    return (await items.add(at, "gpt-4o", text, "note", **more)).id


async def find(finder, query=QUERY, scope=SCOPE, exact=FEW):
    """The plan, and the distances that were found, by item; only the five nearest, for words find more."""
    found = await finder.find(scope, query, 5, exact=exact)
    near = sorted((one.distance, str(one.item)) for one in found.candidates if one.distance is not None)[:5]
    return found.plan, {item: distance for distance, item in near}


async def exactly(pool, query=QUERY, scope=SCOPE):
    return (await find(Finder(pool, WordVectors()), query, scope, exact=1_000))[1]


async def test_the_first_search_is_the_database_s_and_the_next_ones_are_by_signs(pool, finder, ids):
    plans = [await find(finder) for _ in range(3)]
    assert [plan for plan, _ in plans] == ["bits", "kept", "kept"]
    assert plans[1][1] == await exactly(pool)
    assert ids[0] in plans[1][1]


async def test_small_sessions_are_not_kept(finder, ids):
    assert [(await find(finder, exact=1_000))[0] for _ in range(3)] == ["exact"] * 3


async def test_what_was_added_a_moment_ago_is_found(pool, items, finder, ids):
    for _ in range(2):
        await find(finder)
    for n in range(3):
        new = await add(items, f"{QUERY} {n}")
        plan, found = await find(finder)
        assert (plan, new in found) == ("kept", True)
        assert found == await exactly(pool)


async def test_what_is_no_more_is_not_found_and_stands_in_nobody_s_way(pool, items, finder, ids):
    for change in (items.delete(TENANT, ids[0]), items.change(TENANT, ids[1], archived=True)):
        for _ in range(2):
            assert (await find(finder))[0] in ("bits", "kept")
        await change
        plans = []
        for _ in range(3):
            plan, found = await find(finder)
            plans.append(plan)
            assert found == await exactly(pool)
        assert plans == ["bits", "kept", "kept"]
        assert ids[0] not in found
    assert ids[1] not in found
    await items.change(TENANT, ids[1], archived=False)
    plan, found = await find(finder, " ".join(WORDS[1:4]))
    assert (plan, next(iter(found))) == ("kept", ids[1])


async def test_corrected_words_are_found_and_the_old_ones_are_not(pool, items, finder, ids):
    for _ in range(2):
        await find(finder)
    await items.change(TENANT, ids[0], content="nothing of the kind")
    for _ in range(2):
        assert (await find(finder))[1] == await exactly(pool)
    assert ids[0] not in (await find(finder))[1]


async def test_other_sessions_and_tenants_are_searched_by_their_own(pool, finder, items, ids):
    mine = {HOME: set(ids)}
    for at in (AWAY, STRANGER):
        mine[at] = {await add(items, f"{QUERY} {WORDS[n]} {WORDS[n + 20]}", at) for n in range(15)}
    for at in (HOME, AWAY, STRANGER) * 3:
        plan, found = await find(finder, f"{QUERY} {WORDS[3]} {WORDS[23]}", Scope(at.tenant, at.scope))
        others = set().union(*(those for place, those in mine.items() if place != at))
        assert len(found) == 5
        assert not others & set(found)
    assert plan == "kept"


@pytest.mark.parametrize("more", [{"sessions": None}, {"archived": True}], ids=["tenant", "archived"])
async def test_wider_searches_are_the_database_s(finder, ids, more):
    scope = Scope(TENANT, **({"sessions": HOME.scope} | more))
    for _ in range(3):
        assert (await find(finder, scope=scope))[0] == "bits"


async def test_kinds_are_kept_apart(pool, items, finder, ids):
    log = (await items.add(HOME, "gpt-4o", f"{QUERY} log", "log")).id
    for _ in range(2):
        await find(finder)
    for kind, expected in (("log", {log}), ("unheard", set())):
        plan, found = await find(finder, scope=Scope(TENANT, HOME.scope, [kind_id(kind)]))
        assert (plan, set(found)) == ("kept", expected)
    assert (await find(finder))[0] == "kept"


async def test_a_search_that_fails_leaves_what_is_kept_as_it_was(pool, finder, ids, owner):
    for _ in range(2):
        await find(finder)
    await owner.execute("alter function infold.load_signs rename to gone")
    with pytest.raises(StoreError):
        await find(finder)
    await owner.execute("alter function infold.gone rename to load_signs")
    plan, found = await find(finder)
    assert (plan, found) == ("kept", await exactly(pool))
