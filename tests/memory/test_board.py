"""The work board over real PostgreSQL: tasks block, agents are matched, nothing is half written."""

import asyncio

import msgspec
import pytest

from memory.board import Board
from memory.errors import Conflict, InvalidRequest, NotFound
from memory.identify import new_id, place
from memory.nouns import TaskStatus
from tests.clock import NOON, Hands
from tests.conversations import TENANT

HOME = place(TENANT, "home")
STRANGER = bytes(16)


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def board(pool, hands):
    return Board(pool, hands)


async def test_a_task_has_the_fields_that_programs_know(board):
    task = await board.create_task(HOME, "Build", "the thing", 7, "ann", metadata={"a": 1})
    assert list(msgspec.to_builtins(task)) == [
        "id", "session_id", "title", "description", "status", "priority", "assigned_agent", "dependencies", "progress",
        "created_at", "updated_at", "completed_at", "metadata",
    ]  # fmt: skip
    assert (task.session_id, task.status, task.progress, task.created_at) == ("home", TaskStatus.PENDING, 0, NOON)
    assert await board.tasks(HOME) == (task,)


async def test_tasks_come_by_priority_newest_first(board, hands):
    for title, priority in (("old", 1), ("new", 1), ("high", 9)):
        await board.create_task(HOME, title, priority=priority)
        hands.forward(seconds=1)
    assert [task.title for task in await board.tasks(HOME)] == ["high", "new", "old"]
    assert await board.tasks(HOME, "completed") == ()
    assert await board.tasks(place(TENANT, "elsewhere")) == ()


async def test_a_task_waits_for_what_it_needs(board, hands):
    first = await board.create_task(HOME, "first")
    second = await board.create_task(HOME, "second", dependencies=[first.id])
    for status in ("in_progress", TaskStatus.COMPLETED):
        with pytest.raises(Conflict, match=first.id):
            await board.update_task(TENANT, second.id, status)
    assert (await board.tasks(HOME, "pending"))[-1].updated_at == NOON  # a refusal writes nothing

    hands.forward(hours=1)
    done = await board.update_task(TENANT, first.id, "completed")
    assert (done.progress, done.completed_at) == (100, hands.now)
    assert (await board.update_task(TENANT, second.id, "in_progress", 40)).progress == 40


async def test_completed_is_final_until_it_is_pending_again(board):
    task = await board.create_task(HOME, "a")
    await board.update_task(TENANT, task.id, "completed")
    with pytest.raises(Conflict, match="completed can only become pending"):
        await board.update_task(TENANT, task.id, "in_progress")
    again = await board.update_task(TENANT, task.id, "pending", 0)
    assert (again.progress, again.completed_at) == (0, None)


async def test_metadata_replaces_and_absent_ones_stay(board):
    task = await board.create_task(HOME, "a", metadata={"a": 1})
    assert (await board.update_task(TENANT, task.id, progress=5)).metadata == {"a": 1}
    assert (await board.update_task(TENANT, task.id, metadata={"b": [2]})).metadata == {"b": [2]}
    assert (await board.update_task(TENANT, task.id, metadata={})).metadata == {}


async def test_cycles_are_refused(board):
    a = await board.create_task(HOME, "a")
    b = await board.create_task(HOME, "b", dependencies=[a.id])
    c = await board.create_task(HOME, "c", dependencies=[b.id, a.id, b.id])
    assert c.dependencies == [b.id, a.id]
    for needs in ([a.id], [b.id], [c.id]):
        with pytest.raises(InvalidRequest, match="dependencies must not") as refused:
            await board.update_task(TENANT, a.id, dependencies=needs)
        assert refused.value.field == "dependencies"
    assert (await board.update_task(TENANT, c.id, dependencies=[])).dependencies == []
    assert (await board.update_task(TENANT, a.id, dependencies=[c.id])).dependencies == [c.id]


async def test_two_changes_at_once_make_no_cycle(board):
    a, b = await board.create_task(HOME, "a"), await board.create_task(HOME, "b")
    results = await asyncio.gather(
        board.update_task(TENANT, a.id, dependencies=[b.id]),
        board.update_task(TENANT, b.id, dependencies=[a.id]),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["InvalidRequest", "Task"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"title": ""}, "title"), ({"title": 5}, "title"), ({"title": "a\0"}, "title"), ({"title": "\ud800"}, "title"),
        ({"title": "a", "priority": 11}, "priority"), ({"title": "a", "priority": True}, "priority"),
        ({"title": "a", "description": None}, "description"), ({"title": "a", "metadata": [1]}, "metadata"),
        ({"title": "a", "dependencies": "abc"}, "dependencies"), ({"title": "a", "assigned_agent": 1}, "assigned_agent"),
    ],
)  # fmt: skip
async def test_bad_input_names_its_field(board, arguments, field):
    with pytest.raises(InvalidRequest) as refused:
        await board.create_task(HOME, **arguments)
    assert refused.value.field == field
    assert await board.tasks(HOME) == ()


@pytest.mark.parametrize(
    "arguments", [{"status": "done"}, {"progress": 101}, {"progress": float("nan")}, {"metadata": "x"}]
)
async def test_bad_changes_name_their_field(board, arguments):
    task = await board.create_task(HOME, "a")
    with pytest.raises(InvalidRequest) as refused:
        await board.update_task(TENANT, task.id, **arguments)
    assert refused.value.field == next(iter(arguments))


async def test_unknown_and_foreign_ids_are_not_found_in_the_same_words(board):
    task = await board.create_task(HOME, "a")
    agent = await board.create_agent(HOME, "ann", "coder", ["x"])
    said = set()
    for tenant, id in ((TENANT, str(new_id())), (TENANT, "nonsense"), (STRANGER, task.id)):
        for call in (board.update_task(tenant, id, "completed"), board.assign(tenant, id)):
            with pytest.raises(NotFound) as missing:
                await call
            said.add(str(missing.value))
    for whose, need in ((HOME, str(new_id())), (HOME, "nonsense"), (place(STRANGER), task.id)):
        with pytest.raises(NotFound, match="dependencies: there is no such task"):
            await board.create_task(whose, "b", dependencies=[need])
    other = await board.create_task(place(STRANGER), "c")
    with pytest.raises(NotFound):
        await board.assign(STRANGER, other.id, agent.id)
    assert len(said) == 1


async def test_creating_again_with_the_same_id_changes_nothing(board):
    id = new_id()
    first = await board.create_task(HOME, "a", id=id)
    assert await board.create_task(HOME, "b", id=id) == first
    agent = await board.create_agent(HOME, "ann", "coder", ["x"], id=id)
    assert await board.create_agent(HOME, "ben", "coder", ["x"], id=id) == agent


async def test_a_task_goes_to_the_agent_that_can(board, hands):
    ann = await board.create_agent(HOME, "ann", "coder", ["python", "code_review"], ["git"], {"a": 1})
    ben = await board.create_agent(HOME, "ben", "tester", ["testing"])
    task = await board.create_task(HOME, "Look at it", metadata={"requires": ["Code Review"]})
    hands.forward(minutes=1)
    assert (await board.assign(TENANT, task.id)).id == ann.id
    (assigned,) = await board.tasks(HOME)
    assert (assigned.assigned_agent, assigned.updated_at, assigned.metadata) == (ann.id, hands.now, task.metadata)

    with pytest.raises(Conflict, match="Code Review"):
        await board.assign(TENANT, task.id, ben.id)
    await board.update_task(TENANT, task.id, "completed")
    with pytest.raises(Conflict, match="completed cannot be assigned"):
        await board.assign(TENANT, task.id)
    stats = {agent.agent_name: agent.performance_stats for agent in await board.agents(HOME)}
    assert stats["ann"] == {"assigned": 1, "open": 0, "completed": 1, "cancelled": 0}


async def test_nobody_fits_is_told(board):
    task = await board.create_task(HOME, "Cook soup")
    await board.create_agent(HOME, "ben", "tester", ["testing"])
    with pytest.raises(Conflict, match="no agent"):
        await board.assign(TENANT, task.id)


async def test_agents_are_listed_by_type(board, hands):
    ann = await board.create_agent(HOME, "ann", "coder", ["python"], ["git"])
    hands.forward(seconds=1)
    ben = await board.create_agent(HOME, "ben", "tester", [])
    assert await board.agents(HOME) == (ben, ann)
    assert await board.agents(HOME, "coder") == (ann,)
    for arguments, field in ((("", "t", []), "agent_name"), (("a", "t", None), "capabilities"),
                             (("a", "t", ["x", 1]), "capabilities[1]"), (("a", "t", [], "git"), "assigned_tools")):  # fmt: skip
        with pytest.raises(InvalidRequest) as refused:
            await board.create_agent(HOME, *arguments)
        assert refused.value.field == field
