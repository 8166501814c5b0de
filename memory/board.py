"""The work board: tasks that wait for each other, and the agents that take them."""

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from memory import check
from memory.errors import Conflict, InvalidRequest, NotFound
from memory.identify import new_id
from memory.nouns import Agent, Clock, Place, Task, TaskStatus
from memory.store.board import (
    change_task,
    enter,
    list_agents,
    list_tasks,
    load_agent,
    load_task,
    lock_board,
    reached,
    save_agent,
    save_needs,
    save_task,
    session_of,
    statuses,
)
from memory.store.pool import Pool
from memory.store.signals import tell
from memory.tasks import DONE, blocking, cycle, fitting, lacking, refusal

WAIT_SECONDS = 10.0
MOST_DESCRIPTION_CHARS = 100_000


class Board:
    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def create_task(
        self,
        place: Place,
        title: object,
        description: object = "",
        priority: object = 0,
        assigned_agent: object = None,
        dependencies: object = None,
        metadata: object = None,
        *,
        id: UUID | None = None,
    ) -> Task:
        """A new task; with an id that is there already, the one that is there.

        Raises:
            InvalidRequest: names the field.
            NotFound: a dependency that this tenant does not have.
        """
        now, id = self._clock(), id or new_id()
        needs, stored = wanted(dependencies), check.metadata(metadata)
        task = Task(
            id=str(id), session_id=place.name, title=check.text(title, "title", check.MOST_NAME_CHARS),
            description=check.text(description, "description", MOST_DESCRIPTION_CHARS, empty=True),
            status=TaskStatus.PENDING, priority=check.integer(priority, "priority", 0, 10),
            assigned_agent=optional(assigned_agent, "assigned_agent"), dependencies=[str(need) for need in needs],
            progress=0.0, created_at=now, updated_at=now, completed_at=None, metadata=check.metadata_of(stored),
        )  # fmt: skip
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            await enter(connection, place, now)
            if already := await load_task(connection, place.tenant, id):
                return already
            await lock_board(connection, place.tenant)
            await look_at(connection, place.tenant, id, needs)
            await save_task(connection, place, task, stored)
            await save_needs(connection, place.tenant, id, needs)
            await tell(connection, place.tenant, "task", place.name, {"task_id": task.id, "status": task.status}, now)
        return task

    async def update_task(
        self,
        tenant: bytes,
        task_id: object,
        status: object = None,
        progress: object = None,
        metadata: object = None,
        dependencies: object = None,
    ) -> Task:
        """Change what is given. Metadata and dependencies replace the old ones; a completed task is at 100 percent.

        Raises:
            InvalidRequest: names the field; dependencies that wait for each other.
            NotFound: no such task, or no such dependency.
            Conflict: the task is blocked, or has ended.
        """
        id = check.item_id(task_id, "task_id")
        new = None if status is None else check.choice(status, "status", TaskStatus)
        percent = None if progress is None else check.number(progress, "progress", 0, 100)
        given, needs = check.metadata(metadata), wanted(dependencies)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await lock_board(connection, tenant)
            task = await found_task(connection, tenant, id)
            stored = check.metadata(task.metadata) if metadata is None else given
            if dependencies is not None:
                await look_at(connection, tenant, id, needs)
                await save_needs(connection, tenant, id, needs)
                task = msgspec.structs.replace(task, dependencies=[str(need) for need in needs])
            standing = await statuses(connection, tenant, [UUID(need) for need in task.dependencies])
            if new and (why := refusal(task.status, new, blocking(task, standing))):
                raise Conflict(why)
            changed = msgspec.structs.replace(
                moved(task, new, percent, self._clock()), metadata=check.metadata_of(stored)
            )
            await change_task(connection, tenant, changed, stored)
            data = {"task_id": changed.id, "status": changed.status, "progress": changed.progress}
            await tell(connection, tenant, "task", changed.session_id, data, changed.updated_at)
        return changed

    async def tasks(self, place: Place, status: object = None) -> tuple[Task, ...]:
        """A session's, by priority, newest first."""
        wanted = None if status is None else check.choice(status, "status", TaskStatus)
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            return await list_tasks(connection, place, wanted)

    async def assign(self, tenant: bytes, task_id: object, agent_id: object = None) -> Agent:
        """Give a task to an agent; None: to the one of its session that fits best.

        Raises:
            NotFound: no such task, or no such agent.
            Conflict: nobody fits, the agent lacks what the task requires, or the task has ended.
        """
        id = check.item_id(task_id, "task_id")
        chosen = None if agent_id is None else check.item_id(agent_id, "agent_id")
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await lock_board(connection, tenant)
            task = await found_task(connection, tenant, id)
            if task.status in DONE:
                raise Conflict(f"a task that is {task.status} cannot be assigned")
            agent = await self._agent_for(connection, tenant, task, chosen)
            changed = msgspec.structs.replace(task, assigned_agent=agent.id, updated_at=self._clock())
            await change_task(connection, tenant, changed, check.metadata(task.metadata))
            data = {"task_id": task.id, "status": task.status, "agent_id": agent.id}
            await tell(connection, tenant, "task", task.session_id, data, changed.updated_at)
        return agent

    async def create_agent(
        self,
        place: Place,
        agent_name: object,
        agent_type: object,
        capabilities: object,
        assigned_tools: object = None,
        metadata: object = None,
        *,
        id: UUID | None = None,
    ) -> Agent:
        """A new agent; with an id that is there already, the one that is there."""
        now, id, stored = self._clock(), id or new_id(), check.metadata(metadata)
        if capabilities is None:
            raise InvalidRequest("capabilities must be a list of texts, got null", "capabilities")
        agent = Agent(
            id=str(id), session_id=place.name, agent_name=check.text(agent_name, "agent_name", check.MOST_NAME_CHARS),
            agent_type=check.text(agent_type, "agent_type", check.MOST_TYPE_CHARS),
            capabilities=list(check.texts(capabilities, "capabilities")),
            assigned_tools=list(check.texts(assigned_tools, "assigned_tools")),
            performance_stats={"assigned": 0, "open": 0, "completed": 0, "cancelled": 0}, is_active=True,
            created_at=now, updated_at=now, metadata=check.metadata_of(stored),
        )  # fmt: skip
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            await enter(connection, place, now)
            await save_agent(connection, place, agent, stored)
            return await load_agent(connection, place.tenant, id) or agent

    async def agents(self, place: Place, agent_type: object = None) -> tuple[Agent, ...]:
        """A session's active ones, newest first."""
        type = optional(agent_type, "agent_type")
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            return await list_agents(connection, place.tenant, place.id, type)

    async def _agent_for(self, connection: asyncpg.Connection, tenant: bytes, task: Task, chosen: UUID | None) -> Agent:
        if chosen is not None:
            agent = await load_agent(connection, tenant, chosen)
            if agent is None:
                raise NotFound.of("agent_id")
            if missing := lacking(task, agent):
                raise Conflict(f"the agent lacks what the task requires: {', '.join(missing[:10])}")
            return agent
        session = await session_of(connection, tenant, UUID(task.id))
        fits = fitting(task, await list_agents(connection, tenant, session, None))
        if fits is None:
            raise Conflict("no agent of this session has the capabilities that the task asks for")
        return fits


def moved(task: Task, status: TaskStatus | None, percent: float | None, now: datetime) -> Task:
    """The task in its new state; what is completed is at 100 percent."""
    new = status or task.status
    completed = new is TaskStatus.COMPLETED
    progress = 100.0 if completed else task.progress if percent is None else percent
    ended = (task.completed_at or now) if completed else None
    return msgspec.structs.replace(task, status=new, progress=progress, updated_at=now, completed_at=ended)


async def found_task(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> Task:
    task = await load_task(connection, tenant, id)
    if task is None:
        raise NotFound.of("task_id")
    return task


async def look_at(connection: asyncpg.Connection, tenant: bytes, id: UUID, needs: tuple[UUID, ...]) -> None:
    """Refuse dependencies that are not there, and those that would wait for the task itself."""
    if id in needs:
        raise InvalidRequest("dependencies must not name the task itself", "dependencies")
    there = await statuses(connection, tenant, needs)
    if len(there) < len(needs):
        raise no_task(next(id for id in needs if id not in there))
    graph = {**await reached(connection, tenant, needs), id: set(needs)}
    if round := cycle(graph):
        told = " -> ".join(str(task) for task in round[:20])
        raise InvalidRequest(f"dependencies must not make tasks wait for each other: {told}", "dependencies")


def wanted(dependencies: object) -> tuple[UUID, ...]:
    """The tasks that come first, each once; an id of another shape is that of no task."""
    return tuple(dict.fromkeys(need(id) for id in check.texts(dependencies, "dependencies")))


def need(id: str) -> UUID:
    try:
        return check.item_id(id)
    except NotFound:
        raise no_task(id) from None


def no_task(id: object) -> NotFound:
    return NotFound(f"dependencies: there is no such task: {id}", "dependencies")


def optional(value: object, field: str) -> str | None:
    return None if value is None else check.text(value, field, check.MOST_NAME_CHARS)
