"""Tasks, what they wait for, and agents in PostgreSQL. `now` comes from the caller, as everywhere."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from memory.check import metadata_of
from memory.nouns import Agent, Place, Task, TaskStatus

TASKS = (
    "select t.*, s.name as session_name,"
    " array(select d.needs from infold.dependencies d where d.tenant = t.tenant and d.task = t.id order by d.place)"
    " as needs from infold.tasks t join infold.states s on s.tenant = t.tenant and s.id = t.session where t.tenant = $1"
)
AGENTS = (
    "select a.*, s.name as session_name, w.assigned, w.open, w.completed, w.cancelled from infold.agents a"
    " join infold.states s on s.tenant = a.tenant and s.id = a.session"
    " left join lateral (select count(*) as assigned, count(*) filter (where t.status = 'completed') as completed,"
    " count(*) filter (where t.status = 'cancelled') as cancelled,"
    " count(*) filter (where t.status in ('pending', 'in_progress')) as open from infold.tasks t"
    " where t.tenant = a.tenant and t.session = a.session and t.assigned_agent in (a.id::text, a.name)) w on true"
    " where a.tenant = $1"
)


async def enter(connection: asyncpg.Connection, place: Place, now: datetime, model: str = "") -> None:
    """Make the session's row, where it is not there; longer waits for locks for the rest of the transaction."""
    await connection.execute("select infold.enter($1, $2, $3, $4, $5)", place.tenant, place.id, place.name, model, now)


async def lock_board(connection: asyncpg.Connection, tenant: bytes) -> None:
    """One change at a time, so that two of them cannot make a cycle, or start what the other blocks."""
    await connection.execute("select set_config('lock_timeout', '5s', true)")
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"board {tenant.hex()}")


async def save_task(connection: asyncpg.Connection, place: Place, task: Task, metadata: str | None) -> None:
    """Again with the same id changes nothing."""
    await connection.execute(
        "insert into infold.tasks (tenant, id, session, title, description, status, priority, assigned_agent, progress,"
        " created_at, updated_at, completed_at, metadata)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) on conflict do nothing",
        place.tenant, UUID(task.id), place.id, task.title, task.description, task.status, task.priority,
        task.assigned_agent, task.progress, task.created_at, task.updated_at, task.completed_at, metadata,
    )  # fmt: skip


async def save_needs(connection: asyncpg.Connection, tenant: bytes, task: UUID, needs: Sequence[UUID]) -> None:
    """What a task waits for, instead of what it waited for."""
    await connection.execute("delete from infold.dependencies where tenant = $1 and task = $2", tenant, task)
    await connection.execute(
        "insert into infold.dependencies (tenant, task, needs, place)"
        " select $1, $2, needs, place from unnest($3::uuid[]) with ordinality as new (needs, place)",
        tenant, task, needs,
    )  # fmt: skip


async def change_task(connection: asyncpg.Connection, tenant: bytes, task: Task, metadata: str | None) -> None:
    await connection.execute(
        "update infold.tasks set status = $3, progress = $4, assigned_agent = $5, updated_at = $6, completed_at = $7,"
        " metadata = $8 where tenant = $1 and id = $2",
        tenant, UUID(task.id), task.status, task.progress, task.assigned_agent, task.updated_at, task.completed_at,
        metadata,
    )  # fmt: skip


async def load_task(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> Task | None:
    row = await connection.fetchrow(f"{TASKS} and t.id = $2", tenant, id)
    return task_of(row) if row else None


async def list_tasks(connection: asyncpg.Connection, place: Place, status: TaskStatus | None) -> tuple[Task, ...]:
    """By priority, newest first."""
    rows = await connection.fetch(
        f"{TASKS} and t.session = $2 and ($3::text is null or t.status = $3)"
        " order by t.priority desc, t.created_at desc, t.id desc",
        place.tenant, place.id, status,
    )  # fmt: skip
    return tuple(task_of(row) for row in rows)


async def statuses(connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID]) -> dict[str, TaskStatus]:
    """Of those that are there."""
    rows = await connection.fetch("select id, status from infold.tasks where tenant = $1 and id = any($2)", tenant, ids)
    return {str(row["id"]): TaskStatus(row["status"]) for row in rows}


async def reached(connection: asyncpg.Connection, tenant: bytes, start: Sequence[UUID]) -> Mapping[UUID, set[UUID]]:
    """What some tasks wait for, what that waits for, and so on: task -> needs."""
    rows = await connection.fetch(
        "with recursive reach as (select task, needs from infold.dependencies where tenant = $1 and task = any($2)"
        " union select d.task, d.needs from infold.dependencies d join reach r on d.tenant = $1 and d.task = r.needs)"
        " select task, needs from reach",
        tenant, start,
    )  # fmt: skip
    needs: dict[UUID, set[UUID]] = {}
    for row in rows:
        needs.setdefault(row["task"], set()).add(row["needs"])
    return needs


async def save_agent(connection: asyncpg.Connection, place: Place, agent: Agent, metadata: str | None) -> None:
    """Again with the same id changes nothing."""
    await connection.execute(
        "insert into infold.agents (tenant, id, session, name, type, capabilities, tools, is_active, created_at,"
        " updated_at, metadata) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing",
        place.tenant, UUID(agent.id), place.id, agent.agent_name, agent.agent_type, agent.capabilities,
        agent.assigned_tools, agent.is_active, agent.created_at, agent.updated_at, metadata,
    )  # fmt: skip


async def load_agent(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> Agent | None:
    row = await connection.fetchrow(f"{AGENTS} and a.id = $2", tenant, id)
    return agent_of(row) if row else None


async def list_agents(
    connection: asyncpg.Connection, tenant: bytes, session: UUID, type: str | None
) -> tuple[Agent, ...]:
    """Active ones, newest first."""
    rows = await connection.fetch(
        f"{AGENTS} and a.session = $2 and a.is_active and ($3::text is null or a.type = $3)"
        " order by a.created_at desc, a.id desc",
        tenant, session, type,
    )  # fmt: skip
    return tuple(agent_of(row) for row in rows)


async def session_of(connection: asyncpg.Connection, tenant: bytes, task: UUID) -> UUID:
    id: UUID = await connection.fetchval("select session from infold.tasks where tenant = $1 and id = $2", tenant, task)
    return id


def task_of(row: asyncpg.Record) -> Task:
    return Task(
        id=str(row["id"]), session_id=row["session_name"], title=row["title"], description=row["description"],
        status=TaskStatus(row["status"]), priority=row["priority"], assigned_agent=row["assigned_agent"],
        dependencies=[str(id) for id in row["needs"]], progress=row["progress"], created_at=row["created_at"],
        updated_at=row["updated_at"], completed_at=row["completed_at"], metadata=metadata_of(row["metadata"]),
    )  # fmt: skip


def agent_of(row: asyncpg.Record) -> Agent:
    return Agent(
        id=str(row["id"]), session_id=row["session_name"], agent_name=row["name"], agent_type=row["type"],
        capabilities=row["capabilities"], assigned_tools=row["tools"],
        performance_stats={name: row[name] for name in ("assigned", "open", "completed", "cancelled")},
        is_active=row["is_active"], created_at=row["created_at"], updated_at=row["updated_at"],
        metadata=metadata_of(row["metadata"]),
    )  # fmt: skip
