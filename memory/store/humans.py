"""Questions to people in PostgreSQL. Whether one has expired is asked of the `now` that is given."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from memory.check import metadata_of
from memory.nouns import HumanRequest, HumanStatus, Place

REQUESTS = (
    "select h.*, s.name as session_name from infold.human_requests h"
    " join infold.states s on s.tenant = h.tenant and s.id = h.session where h.tenant = $1"
)


async def save_request(connection: asyncpg.Connection, place: Place, asked: HumanRequest, metadata: str | None) -> None:
    """Again with the same id changes nothing."""
    await connection.execute(
        "insert into infold.human_requests (tenant, id, session, question, response, status, priority, created_at,"
        " answered_at, expires_at, metadata) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        " on conflict do nothing",
        place.tenant, UUID(asked.id), place.id, asked.question, asked.response, asked.status, asked.priority,
        asked.created_at, asked.answered_at, asked.expires_at, metadata,
    )  # fmt: skip


async def load_request(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> HumanRequest | None:
    row = await connection.fetchrow(f"{REQUESTS} and h.id = $2", tenant, id)
    return request_of(row, now) if row else None


async def list_pending(connection: asyncpg.Connection, place: Place, now: datetime) -> tuple[HumanRequest, ...]:
    """By priority, oldest first."""
    rows = await connection.fetch(
        f"{REQUESTS} and h.session = $2 and h.status = 'pending' and h.expires_at > $3"
        " order by h.priority desc, h.created_at, h.id",
        place.tenant, place.id, now,
    )  # fmt: skip
    return tuple(request_of(row, now) for row in rows)


async def save_answer(connection: asyncpg.Connection, tenant: bytes, id: UUID, response: str, now: datetime) -> bool:
    """The first answer stays; False where it came too late."""
    row = await connection.fetchrow(
        "update infold.human_requests set response = $3, status = 'answered', answered_at = $4"
        " where tenant = $1 and id = $2 and status = 'pending' and expires_at > $4 returning id",
        tenant, id, response, now,
    )  # fmt: skip
    return row is not None


async def expire(connection: asyncpg.Connection, tenant: bytes, now: datetime) -> Sequence[asyncpg.Record]:
    """Write down what has expired: id and session's name of each."""
    rows: Sequence[asyncpg.Record] = await connection.fetch(
        "update infold.human_requests h set status = 'expired' from infold.states s"
        " where h.tenant = $1 and h.status = 'pending' and h.expires_at <= $2"
        " and s.tenant = h.tenant and s.id = h.session returning h.id, s.name",
        tenant, now,
    )  # fmt: skip
    return rows


async def questions_pending(connection: asyncpg.Connection, now: datetime) -> int:
    """Of all tenants: a number, no content."""
    count: int = await connection.fetchval("select infold.questions_pending($1)", now)
    return count


def request_of(row: asyncpg.Record, now: datetime) -> HumanRequest:
    status = HumanStatus(row["status"])
    if status is HumanStatus.PENDING and row["expires_at"] <= now:
        status = HumanStatus.EXPIRED
    return HumanRequest(
        id=str(row["id"]), session_id=row["session_name"], question=row["question"], response=row["response"],
        status=status, priority=row["priority"], created_at=row["created_at"], answered_at=row["answered_at"],
        metadata=metadata_of(row["metadata"]), expires_at=row["expires_at"],
    )  # fmt: skip
