"""Adapters in PostgreSQL: what each was made of, what became of it, which one reads, and folders to delete.

A state is written only from the states that may come before it: what a trigger made stale meanwhile stays so.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from memory.nouns import AdapterTold
from memory.slm.trial import WINDOW, Record
from memory.store.passages import affected

ROWS = (
    "select id, number, base, quantization, state, folder, served, verdict, error, asked, accepted, recent, standard,"
    " created_at, updated_at from infold.adapters where tenant = $1"
)


class AdapterRow(msgspec.Struct, frozen=True):
    id: UUID
    number: int | None
    base: str
    quantization: str
    state: str
    folder: str | None  # below the data directory
    served: bool
    verdict: str | None
    error: str | None
    asked: int
    accepted: int
    recent: str
    standard: float | None
    created_at: datetime
    updated_at: datetime

    @property
    def record(self) -> Record:
        return Record(self.recent)


async def begin_adapter(
    connection: asyncpg.Connection,
    tenant: bytes,
    id: UUID,
    base: str,
    quantization: str,
    sources: Sequence[tuple[bytes, bytes]],
    now: datetime,
) -> None:
    """A row for what is being trained, with what it learns from: from now on a quarantine finds it.

    Args:
        sources: node and digest of each message.
    """
    await connection.execute(
        "insert into infold.adapters (tenant, id, base, quantization, state, created_at, updated_at)"
        " values ($1, $2, $3, $4, 'training', $5, $5) on conflict (tenant, id) do nothing",
        tenant, id, base, quantization, now,
    )  # fmt: skip
    await connection.execute(
        "insert into infold.adapter_sources (tenant, node, adapter, digest)"
        " select $1, node, $2, digest from unnest($3::bytea[], $4::bytea[]) as new (node, digest)"
        " on conflict do nothing",
        tenant, id, [node for node, _ in sources], [digest for _, digest in sources],
    )  # fmt: skip


async def list_adapters(connection: asyncpg.Connection, tenant: bytes) -> list[AdapterRow]:
    """Newest first."""
    rows = await connection.fetch(f"{ROWS} order by created_at desc, id desc", tenant)
    return [AdapterRow(**dict(row)) for row in rows]


async def load_adapter(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> AdapterRow | None:
    row = await connection.fetchrow(f"{ROWS} and id = $2", tenant, id)
    return AdapterRow(**dict(row)) if row else None


def told(row: AdapterRow) -> AdapterTold:
    verdict = json.loads(row.verdict) if row.verdict else {}
    return AdapterTold(
        id=str(row.id), number=row.number, state=row.state, base=row.base, quantization=row.quantization,
        served=row.served, asked=row.asked, accepted=row.accepted, error=row.error,
        reasons=verdict.get("reasons", []), table=verdict.get("table", []), created_at=row.created_at,
        updated_at=row.updated_at,
    )  # fmt: skip


async def set_state(
    connection: asyncpg.Connection,
    tenant: bytes,
    id: UUID,
    state: str,
    before: Sequence[str],
    now: datetime,
    **more: Any,
) -> bool:
    """Whether it was in one of the states `before`, and is in this one now; `more` are other columns."""
    columns = "".join(f", {name} = ${place}" for place, name in enumerate(more, 6))
    status = await connection.execute(
        f"update infold.adapters set state = $3, updated_at = $4{columns}"
        " where tenant = $1 and id = $2 and state = any($5)",
        tenant, id, state, now, before, *more.values(),
    )  # fmt: skip
    return affected(status) == 1


async def set_served(connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID]) -> None:
    """Those that an engine has loaded; all others it has not."""
    await connection.execute(
        "update infold.adapters set served = id = any($2) where tenant = $1 and served <> (id = any($2))", tenant, ids
    )


async def forget_folder(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> None:
    """Its folder is gone; what it learnt from is of no more use."""
    await connection.execute("update infold.adapters set folder = null where tenant = $1 and id = $2", tenant, id)
    await connection.execute("delete from infold.adapter_sources where tenant = $1 and adapter = $2", tenant, id)


async def lock(connection: asyncpg.Connection, tenant: bytes) -> list[AdapterRow]:
    """All of a tenant's, newest first, held until the transaction ends: one decision at a time."""
    await connection.execute("select from infold.adapters where tenant = $1 order by id for update", tenant)
    return await list_adapters(connection, tenant)


async def put_on_trial(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> bool:
    """Make it the canary; one that was on trial is retired."""
    await retire(connection, tenant, "canary", now, "a newer one came before its trial was over", but=id)
    return await set_state(connection, tenant, id, "canary", ["trained", "evaluated"], now)


async def promote(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, standard: float | None, now: datetime
) -> bool:
    """Make it the one in use; the one before is retired, and stays to go back to.

    Args:
        standard: share of answers that held before it.
    """
    await retire(connection, tenant, "active", now, but=id)
    before = ["trained", "evaluated", "canary", "retired"]
    return await set_state(connection, tenant, id, "active", before, now, standard=standard)


async def retire(
    connection: asyncpg.Connection, tenant: bytes, state: str, now: datetime, why: str | None = None,
    but: UUID | None = None,
) -> None:  # fmt: skip
    """
    Args:
        why: it is never gone back to; None: it may be.
    """
    await connection.execute(
        "update infold.adapters set state = 'retired', updated_at = $3, error = $5"
        " where tenant = $1 and state = $2 and id is distinct from $4",
        tenant, state, now, but, why,
    )  # fmt: skip


async def restore(
    connection: asyncpg.Connection, tenant: bytes, rows: Sequence[AdapterRow], gone: AdapterRow, now: datetime
) -> None:
    """Let the adapter read again that was in use before one that is gone; without one the bare model does.

    Args:
        rows: newest first, as they were before.
    """
    for row in rows:
        earlier = row.state == "retired" and row.created_at < gone.created_at
        if earlier and row.folder and row.base == gone.base and row.error is None:
            await promote(connection, tenant, row.id, row.standard, now)
            return


class Reading(msgspec.Struct, frozen=True):
    """An adapter that reads for a tenant."""

    id: UUID
    number: int
    state: str


async def load_reading(connection: asyncpg.Connection, tenant: bytes) -> Mapping[str, Reading]:
    """The adapter in use and the one on trial, by their state, of those that an engine has loaded."""
    rows = await connection.fetch(
        "select a.id, a.number, a.state from infold.adapters a join infold.learners l on l.tenant = $1 and l.enabled"
        " where a.tenant = $1 and a.state in ('active', 'canary') and a.served and a.number is not null",
        tenant,
    )
    return {row["state"]: Reading(**dict(row)) for row in rows}


async def count_answer(connection: asyncpg.Connection, tenant: bytes, adapter: UUID | None, held: bool) -> None:
    """An answer of an adapter, or of the bare model, that held or did not."""
    table, where = ("adapters", " and id = $5 and state in ('canary', 'active')") if adapter else ("learners", "")
    await connection.execute(
        f"update infold.{table} set asked = asked + 1, accepted = accepted + $2, recent = right(recent || $3, $4)"
        f" where tenant = $1{where}",
        tenant, int(held), "1" if held else "0", WINDOW, *([adapter] if adapter else []),
    )  # fmt: skip


# Folders that nobody's row names


async def list_litter(connection: asyncpg.Connection) -> list[str]:
    return [row["folder"] for row in await connection.fetch("select folder from infold.litter")]


async def forget_litter(connection: asyncpg.Connection, folder: str) -> None:
    await connection.execute("delete from infold.litter where folder = $1", folder)
