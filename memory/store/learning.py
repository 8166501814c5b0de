"""Learning in PostgreSQL: who allows it, which messages may be learnt from, trainings, and who trains."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from memory.nouns import Training
from memory.slm.eligible import Waiting

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
MOST_MESSAGE_BYTES = 2**20  # what is larger has mostly images
LONGEST_TURN = timedelta(hours=6)  # from a question to the answer that is recorded with it
MOST_MESSAGES = 20_000  # the newest, that are learnt from
MOST_TRAININGS = 100  # that are told

# Messages since a tenant allows learning that nobody has decided about, with the records of the turns that an answer
# belongs to. What is sealed is told; what is held and not sealed yet is `said.may_be_told`'s to know.
UNDECIDED = (
    "with scope as materialized (select distinct session from infold.turns where tenant = $1 and created_at >= $2)"
    " select n.node, n.session, n.role, n.digest, n.raw, array(select a.record from infold.attempts a"
    "  where a.tenant = $1 and a.node = n.parent and a.status = 'answered' and n.node = any(a.answers)) as records"
    " from scope join infold.nodes n on n.session = scope.session and n.tenant = $1 and n.depth >= 0"
    " where n.created_at >= $3 and octet_length(n.raw) <= $5"
    " and not exists (select from infold.samples s where s.tenant = $1 and s.node = n.node)"
    " order by n.created_at, n.node limit $4"
)
# The newest messages with one reason; "": they may be learnt from.
LEARNT = (
    "select n.node, n.session, n.role, n.digest, n.raw, n.created_at from infold.samples s"
    " join infold.nodes n on n.tenant = $1 and n.node = s.node"
    " where s.tenant = $1 and s.reason = $3"
    " and not exists (select from infold.seals q where q.tenant = $1 and q.digest = n.digest)"
    " order by n.created_at desc, n.depth desc, n.node limit $2"
)


class Learner(msgspec.Struct, frozen=True):
    """A tenant's word, and how the bare model reads for it."""

    enabled: bool
    since: datetime
    scanned_at: datetime
    asked: int
    accepted: int
    recent: str


class Undecided(msgspec.Struct, frozen=True, array_like=True, gc=False):
    node: bytes
    session: str
    role: str
    digest: bytes
    raw: bytes
    records: list[bytes]  # of the turns that have it as their answer


class Sample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    node: bytes
    session: str
    digest: bytes
    importance: int
    reason: str


class LearntRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message that may be learnt from."""

    node: bytes
    session: str
    role: str
    digest: bytes
    raw: bytes
    created_at: datetime


async def load_learner(connection: asyncpg.Connection, tenant: bytes) -> Learner | None:
    row = await connection.fetchrow(
        "select enabled, since, scanned_at, asked, accepted, recent from infold.learners where tenant = $1", tenant
    )
    return Learner(*row) if row else None


async def save_learner(
    connection: asyncpg.Connection, tenant: bytes, enabled: bool, since: datetime, now: datetime
) -> None:
    """`since`: what was said before is not learnt from; kept where learning is on already."""
    await connection.execute(
        "insert into infold.learners (tenant, enabled, since, scanned_at, updated_at) values ($1, $2, $3, $3, $4)"
        " on conflict (tenant) do update set enabled = excluded.enabled, updated_at = excluded.updated_at,"
        " since = case when learners.enabled then least(learners.since, excluded.since) else excluded.since end,"
        " scanned_at = case when learners.enabled then least(learners.scanned_at, excluded.since)"
        " else excluded.since end",
        tenant, enabled, since, now,
    )  # fmt: skip


async def list_learning(connection: asyncpg.Connection) -> list[bytes]:
    """Tenants that allow learning or still have an adapter."""
    return [row["tenant"] for row in await connection.fetch("select tenant from infold.learning() order by tenant")]


# Samples


async def share_the_door(connection: asyncpg.Connection, tenant: bytes) -> None:
    """An isolation either is seen by this transaction or sees what it writes."""
    await connection.execute("select pg_advisory_xact_lock_shared(infold.door($1))", tenant)


async def load_undecided(connection: asyncpg.Connection, tenant: bytes, learner: Learner, most: int) -> list[Undecided]:
    since = max(learner.scanned_at - LONGEST_TURN, LONG_AGO)
    rows = await connection.fetch(UNDECIDED, tenant, since, learner.since, most, MOST_MESSAGE_BYTES)
    return [Undecided(*row) for row in rows]


async def save_samples(connection: asyncpg.Connection, tenant: bytes, samples: Sequence[Sample], now: datetime) -> None:
    """Again changes nothing: what is decided stays so."""
    await connection.executemany(
        "insert into infold.samples (tenant, node, session, digest, importance, reason, decided_at)"
        " values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
        [(tenant, s.node, s.session, s.digest, s.importance, s.reason, now) for s in samples],
    )


async def mark_scanned(connection: asyncpg.Connection, tenant: bytes, now: datetime) -> None:
    await connection.execute(
        "update infold.learners set scanned_at = $2 where tenant = $1 and scanned_at < $2", tenant, now
    )


async def load_waiting(connection: asyncpg.Connection, tenant: bytes) -> Waiting | None:
    """What came since the last training; None where there is nothing."""
    row = await connection.fetchrow(
        "with last as (select max(queued_at) as at from infold.trainings where tenant = $1)"
        " select count(*) as samples, count(distinct session) as conversations, sum(importance) as importance,"
        " coalesce(max(last.at), min(decided_at)) as since from infold.samples, last"
        " where tenant = $1 and reason = '' and (last.at is null or decided_at > last.at)",
        tenant,
    )
    return Waiting(*row) if row["samples"] else None


async def count_samples(connection: asyncpg.Connection, tenant: bytes) -> dict[str, int]:
    """Messages by the reason why they are not learnt from; "": they are."""
    rows = await connection.fetch(
        "select reason, count(*) as many from infold.samples where tenant = $1 group by reason order by reason", tenant
    )
    return {row["reason"]: row["many"] for row in rows}


async def are_learnt(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> bool:
    """Whether all of some messages may still be learnt from."""
    many: int = await connection.fetchval(
        "select count(*) from infold.samples where tenant = $1 and node = any($2) and reason = ''", tenant, nodes
    )
    return many == len(set(nodes))


async def load_learnt(connection: asyncpg.Connection, tenant: bytes, most: int = MOST_MESSAGES) -> list[LearntRow]:
    """The newest messages that may be learnt from, in no order."""
    return [LearntRow(*row) for row in await connection.fetch(LEARNT, tenant, most, "")]


async def load_secret(connection: asyncpg.Connection, tenant: bytes, most: int) -> list[LearntRow]:
    """The newest messages that are not learnt from because a key stands in them; what is sealed is left out."""
    return [LearntRow(*row) for row in await connection.fetch(LEARNT, tenant, most, "secret")]


# Trainings


TRAININGS = (
    "select id, state, why, force, samples, tries, recipe, seed, metrics, error, queued_at, begun_at, ended_at"
    " from infold.trainings where tenant = $1"
)


async def queue_training(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, why: str, force: bool, recipe: str, seed: int,
    now: datetime,
) -> UUID | None:  # fmt: skip
    """The training that is queued now: a new one, or the last one where that was stopped. None: one waits already."""
    stopped: UUID | None = await connection.fetchval(
        "update infold.trainings t set state = 'queued', ended_at = null, error = null, tries = 0,"
        " force = force or $2 where tenant = $1"
        " and state = 'stopped' and recipe = $3 and not exists (select from infold.trainings o where o.tenant = $1"
        "  and (o.queued_at > t.queued_at or o.state in ('queued', 'running')))"
        " and exists (select from infold.adapters a where a.tenant = $1 and a.id = t.id and a.state = 'training')"
        " returning id",
        tenant, force, recipe,
    )  # fmt: skip
    if stopped is not None:
        return stopped
    made: UUID | None = await connection.fetchval(
        "insert into infold.trainings (tenant, id, state, why, force, recipe, seed, queued_at)"
        " values ($1, $2, 'queued', $3, $4, $5, $6, $7) on conflict do nothing returning id",
        tenant, id, why, force, recipe, seed, now,
    )  # fmt: skip
    return made


async def list_waiting(connection: asyncpg.Connection) -> list[tuple[bytes, UUID]]:
    """Trainings of all tenants that wait or were begun; those that were begun first."""
    rows = await connection.fetch("select tenant, id from infold.trainings_waiting()")
    return [(row["tenant"], row["id"]) for row in rows]


async def load_training(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> Training | None:
    row = await connection.fetchrow(f"{TRAININGS} and id = $2", tenant, id)
    return training_of(row) if row else None


async def list_trainings(connection: asyncpg.Connection, tenant: bytes, most: int = MOST_TRAININGS) -> list[Training]:
    """Newest first."""
    rows = await connection.fetch(f"{TRAININGS} order by queued_at desc, id desc limit $2", tenant, most)
    return [training_of(row) for row in rows]


def training_of(row: asyncpg.Record) -> Training:
    read = {name: json.loads(row[name]) if row[name] else {} for name in ("recipe", "metrics")}
    return Training(**{**dict(row), "id": str(row["id"]), **read})


async def begin_training(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> bool:
    """Whether it still waits, or was begun by somebody who is gone."""
    status = await connection.execute(
        "update infold.trainings set state = 'running', begun_at = coalesce(begun_at, $3), tries = tries + 1"
        " where tenant = $1 and id = $2 and state in ('queued', 'running')",
        tenant, id, now,
    )  # fmt: skip
    return str(status) == "UPDATE 1"


async def note_training(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, metrics: Mapping[str, Any], samples: int | None = None
) -> None:
    """Numbers beside those that are known."""
    await connection.execute(
        "update infold.trainings set metrics = (metrics::jsonb || $3::jsonb)::text, samples = coalesce($4, samples)"
        " where tenant = $1 and id = $2",
        tenant, id, json.dumps(metrics), samples,
    )  # fmt: skip


async def end_training(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, state: str, error: str | None, now: datetime
) -> None:
    """`queued`: it goes on later, where it stands."""
    await connection.execute(
        "update infold.trainings set state = $3, error = $4,"
        " ended_at = case when $3 = 'queued' then null else $5::timestamptz end where tenant = $1 and id = $2",
        tenant, id, state, error, now,
    )  # fmt: skip


# Who trains


async def take_lease(connection: asyncpg.Connection, name: str, holder: UUID, now: datetime, seconds: float) -> bool:
    """Take or renew it; False: another holds it."""
    held = await connection.fetchval(
        "insert into infold.leases (name, holder, until) values ($1, $2, $4) on conflict (name) do update"
        " set holder = excluded.holder, until = excluded.until"
        " where leases.holder = excluded.holder or leases.until <= $3 returning true",
        name, holder, now, now + timedelta(seconds=seconds),
    )  # fmt: skip
    return bool(held)


async def leave_lease(connection: asyncpg.Connection, name: str, holder: UUID) -> None:
    await connection.execute("delete from infold.leases where name = $1 and holder = $2", name, holder)
