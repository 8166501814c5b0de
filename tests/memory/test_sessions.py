"""A session is deleted in steps, each of which is whole."""

import pytest

from memory import sessions
from memory.errors import NotFound, StoreError
from memory.identify import place
from memory.items import Items
from memory.models import ModelTable
from memory.quarantine import Quarantine
from memory.sessions import Sessions
from memory.settings import Settings
from memory.store.signals import events_after
from tests.clock import Hands
from tests.conversations import COUNTER, TENANT
from tests.memory.counted import agree
from tests.memory.vectors import WordVectors

HOME, AWAY = place(TENANT, "home"), place(TENANT, "away")
STRANGER = place(bytes(16), "home")


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def items(pool, hands):
    return Items(pool, COUNTER, ModelTable(), Settings(), hands, WordVectors())


async def add(items, *texts, at=HOME):
    return [(await items.add(at, "gpt-4o", text, "note")).id for text in texts]


async def left(owner):
    return {str(row["id"]) for row in await owner.fetch("select id from infold.items")}


async def test_a_session_goes_whole_and_takes_nothing_else_along(items, pool, owner, hands, monkeypatch):
    monkeypatch.setattr(sessions, "DELETED_AT_ONCE", 2)
    held, archived, *_ = await add(items, "one", "two", "three", "four", "five", "six")
    stay = await add(items, "elsewhere", at=AWAY) + await add(items, "of another", at=STRANGER)
    await items.change(TENANT, archived, archived=True)
    await Quarantine(pool, COUNTER, hands, Settings()).isolate(HOME, "one", "note", "odd")

    assert await Sessions(pool, hands).delete(TENANT, "home") == 5
    assert await left(owner) == {held, *stay}
    assert await owner.fetchval("select count(*) from infold.passages") == 2
    await agree(owner)
    async with pool.tenant(TENANT) as connection:
        *_, event = await events_after(connection, TENANT, None)
    assert (event.kind, event.session_id, event.data) == ("session_deleted", "home", {"items": 5})
    with pytest.raises(NotFound):
        await Sessions(pool, hands).delete(TENANT, "nowhere")


async def test_a_deletion_that_breaks_off_keeps_what_it_did_and_goes_on(items, pool, owner, hands, monkeypatch):
    monkeypatch.setattr(sessions, "DELETED_AT_ONCE", 2)
    *_, last = sorted(await add(items, "one", "two", "three", "four", "five"))
    await owner.execute(
        "create function infold.fails() returns trigger language plpgsql as $$ begin raise 'no'; end $$;"
        f" create trigger fails before delete on infold.items for each row when (old.id = '{last}')"
        " execute function infold.fails()"
    )
    with pytest.raises(StoreError):
        await Sessions(pool, hands).delete(TENANT, "home")
    assert await left(owner) == {last}
    await agree(owner)
    await owner.execute("drop trigger fails on infold.items")
    assert await Sessions(pool, hands).delete(TENANT, "home") == 1
    assert await left(owner) == set()
    await agree(owner)
