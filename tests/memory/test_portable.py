"""Everything of a tenant goes out, comes in again unchanged, and ends where it is erased."""

import json

import pytest

from memory.errors import InvalidRequest
from memory.identify import new_id, place
from memory.models import ModelTable
from memory.nouns import Principal
from memory.portable import lines_of
from memory.settings import Settings
from memory.store.usage import Spent, save_usage
from memory.tokens import Counter
from memory.whole import memory
from tests.clock import NOON, Hands
from tests.conversations import TENANT
from tests.memory.vectors import WordVectors

OTHER = b"other" + bytes(11)
HOME, AWAY = place(TENANT, "home"), place(TENANT, "away")
CANARY = "the canary sings at dawn"


def who(tenant, actor="local"):
    return Principal(tenant, actor)


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def whole(pool, dsn, hands):
    return memory(pool, dsn, Counter(), ModelTable(), Settings(), hands, WordVectors())


async def given(lines):
    for line in lines:
        yield line if isinstance(line, bytes) else json.dumps(line).encode()


async def exported(whole, tenant):
    return [line async for line in whole.portable.export(tenant)]


def shown(lines):
    """Without what the counters say of the time of the import."""
    told = [json.loads(line) for line in lines]
    return sorted(
        ({k: v for k, v in line.items() if line["kind"] != "session" or k != "updated_at"} for line in told),
        key=lambda line: (line["kind"], line["id"]),
    )


@pytest.fixture
async def full(whole, hands):
    """A memory that has something of every kind."""
    item = await whole.items.add(HOME, "gpt-4o", "a note that stays\u2028 with 'quotes' 😀", "note", 3, {"a": [1]})
    shared = await whole.items.add(AWAY, "gpt-4o", "all see this", "note", scope="tenant", auto_compress=False)
    hands.forward(days=1)
    await whole.items.retrieve(TENANT, item.id)
    await whole.items.change(TENANT, shared.id, pinned=True)
    old = await whole.items.add(HOME, "gpt-4o", "an old story", "story")
    await whole.items.change(TENANT, old.id, archived=True)
    await whole.items.track_usage(HOME, "gpt-4o", 10, 5)
    first = await whole.board.create_task(HOME, "first", priority=1)
    second = await whole.board.create_task(HOME, "second", dependencies=[first.id], metadata={"x": 1})
    await whole.board.update_task(TENANT, first.id, "in_progress", 40)
    third = await whole.board.create_task(AWAY, "third")
    await whole.board.update_task(TENANT, first.id, dependencies=[third.id])
    await whole.board.create_agent(HOME, "ann", "coder", ["python"], ["git"])
    asked = await whole.humans.ask(HOME, "Ship it?", 5)
    await whole.humans.answer(TENANT, asked.id, "Yes", who(TENANT))
    await whole.humans.ask(HOME, "And now?")
    await whole.quarantine.isolate(HOME, CANARY, "note", "odd")
    call = Spent(attempt=new_id(), at=hands.now, session="home", model="gpt-4o", cost_usd=0.5)
    async with whole.pool.tenant(TENANT, 10) as connection:
        await save_usage(connection, TENANT, [call])
    assert second
    return whole


async def test_an_export_has_every_kind_and_nothing_of_a_quarantine(full):
    await full.items.add(HOME, "gpt-4o", "before the twin of the canary", "note")
    await full.quarantine.isolate(HOME, "the twin of the canary", "note", "again")
    lines = await exported(full, TENANT)
    assert {json.loads(line)["kind"] for line in lines} == {
        "session", "item", "task", "agent", "human_request", "usage", "quarantine",
    }  # fmt: skip
    assert not any(b"canary" in line or b"thread_" in line for line in lines)
    assert await exported(full, OTHER) == []


async def test_what_is_imported_is_what_was_exported(full):
    lines = await exported(full, TENANT)
    counts = await full.portable.load(who(OTHER), given(lines))
    assert counts["item"] == {"imported": 3, "present": 0, "refused": 0, "ignored": 0}
    assert counts["quarantine"]["ignored"] == 1
    assert sum(kind["refused"] for kind in counts.values()) == 0
    known = [line for line in shown(lines) if line["kind"] != "quarantine"]
    assert shown(await exported(full, OTHER)) == known
    (found, *_) = await full.items.search(place(OTHER, "home"), "a note that stays")
    assert found.full_content.startswith("a note that stays")


async def test_importing_twice_changes_nothing(full, owner):
    lines = await exported(full, TENANT)
    await full.portable.load(who(OTHER), given(lines))
    once = await exported(full, OTHER)
    states = "select tokens, used, embedded from infold.states where tenant = $1 order by id"
    before = await owner.fetch(states, OTHER)
    counts = await full.portable.load(who(OTHER), given(lines))
    assert sum(kind["imported"] for kind in counts.values()) == 0
    assert await exported(full, OTHER) == once
    assert await owner.fetch(states, OTHER) == before


async def test_messages_of_another_tenant_become_items(whole):
    line = {
        "kind": "message",
        "id": "a" * 26,
        "session": "abcd",
        "role": "user",
        "time": NOON.isoformat(),
        "parent": None,
    }
    lines = [line | {"content": "hello there"}, line | {"id": "b" * 26, "content": None}, {"kind": "turn", "id": "c"}]
    for result in ("imported", "present"):
        counts = await whole.portable.load(who(TENANT), given(lines))
        assert counts["message"][result] == 1
        assert (counts["message"]["ignored"], counts["turn"]["ignored"]) == (1, 1)
    ((item,), _) = await whole.items.listed(None, TENANT, None)
    assert (item.full_content, item.content_type, item.session_id, item.metadata) == (
        "hello there", "message", "abcd", {"role": "user"},
    )  # fmt: skip


async def test_a_message_in_text_parts_becomes_an_item_in_words(whole):
    parts = [{"type": "output_text", "text": "hello", "annotations": []}, {"type": "output_text", "text": "there"}]
    line = {"kind": "message", "id": "c" * 26, "session": "abcd", "role": "assistant", "time": NOON.isoformat()}
    await whole.portable.load(who(TENANT), given([line | {"content": parts}]))
    ((item,), _) = await whole.items.listed(None, TENANT, None)

    assert item.full_content == "hello\nthere"


ITEM = {"kind": "item", "id": str(new_id()), "session_id": "home", "content": "a", "content_type": "note",
        "created_at": NOON.isoformat()}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"no json", b"[]", b"\xff", b'{"kind": 1}', b"[" * 5_000, b'{"kind": "item"}', ITEM | {"content": ""},
        ITEM | {"priority": 11}, ITEM | {"id": "7"}, ITEM | {"session_id": "a b"}, ITEM | {"content": "a\0"},
        ITEM | {"created_at": "2026-01-05T12:00:00"}, ITEM | {"access_count": -1}, ITEM | {"status": "quarantined"},
        {"kind": "task", "id": str(new_id()), "session_id": "s", "title": "t", "created_at": NOON.isoformat(), "progress": 101},
    ],
)  # fmt: skip
async def test_a_line_that_cannot_be_taken_is_counted_and_the_next_one_read(whole, line):
    counts = await whole.portable.load(who(TENANT), given([line, b"", ITEM | {"content": "the next"}]))
    assert sum(kind["refused"] for kind in counts.values()) == 1
    assert counts["item"]["imported"] == 1


async def test_cycles_are_not_imported(whole):
    a, b = str(new_id()), str(new_id())
    task = {"kind": "task", "session_id": "s", "title": "t", "created_at": NOON.isoformat()}
    await whole.portable.load(
        who(TENANT), given([task | {"id": a, "dependencies": [b]}, task | {"id": b, "dependencies": [a]}])
    )
    assert sorted(len(task.dependencies) for task in await whole.board.tasks(place(TENANT, "s"))) == [0, 1]


async def test_what_is_in_quarantine_is_not_imported(whole):
    await whole.quarantine.isolate(HOME, CANARY, "note", "odd")
    counts = await whole.portable.load(
        who(TENANT), given([ITEM | {"content": CANARY}, ITEM | {"content": f"so {CANARY}"}])
    )
    assert counts["item"] == {"imported": 0, "present": 0, "refused": 2, "ignored": 0}


async def test_too_many_bad_lines_end_it(whole):
    with pytest.raises(InvalidRequest, match="1,000 lines"):
        await whole.portable.load(who(TENANT), given([ITEM, *[b"{}"] * 1_001, ITEM | {"id": str(new_id())}]))
    (items, _) = await whole.items.listed(None, TENANT, None)
    assert len(items) == 1


async def test_erasing_leaves_no_row_of_the_tenant_but_the_audit(full, owner):
    await full.portable.load(who(OTHER), given(await exported(full, TENANT)))
    others = await exported(full, OTHER)
    for confirm in (None, True, "yes"):
        with pytest.raises(InvalidRequest) as refused:
            await full.portable.erase(who(TENANT), confirm)
        assert refused.value.field == "confirm"

    counts = await full.portable.erase(who(TENANT, "key:1a2b3c4d"), "erase")
    assert counts["items"] == 3
    tables = await owner.fetch(
        "select table_name as name from information_schema.columns where table_schema = 'infold' and column_name = 'tenant'"
    )
    assert len(tables) > 15
    left = {row["name"]: await owner.fetchval(f"select count(*) from infold.{row['name']} where tenant = $1", TENANT)
            for row in tables}  # fmt: skip
    assert {name for name, count in left.items() if count} == {"audit"}
    assert (
        await owner.fetchval("select count(*) from infold.pgqueuer where payload like $1", TENANT.hex().encode() + b"%")
        == 0
    )
    (row,) = await owner.fetch("select * from infold.audit where tenant = $1 and action = 'erase'", TENANT)
    assert (row["actor"], json.loads(row["detail"])["tasks"]) == ("key:1a2b3c4d", 3)
    assert await exported(full, OTHER) == others


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_lines_do_not_depend_on_where_a_body_is_cut(size):
    body = b"one\ntwo\n\nthree four"

    async def pieces():
        for at in range(0, len(body), size):
            yield body[at : at + size]

    assert [line async for line in lines_of(pieces())] == [b"one", b"two", b"", b"three four"]
    assert [line async for line in lines_of(pieces(), 2)] == [b"one", b"two", b"", b"thr"]
