"""What was said in conversations, as a question about them reads it: the newest messages, without those in quarantine.

System messages take no part, for they stand beside the conversations.
"""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

NO_BOUND = 2**62  # bytes to search
MOST_TURNS = 5_000  # of a tenant, whose conversations are read
MOST_MESSAGES = 10_000
MOST_BYTES = 16 * 2**20  # of messages together
MOST_MESSAGE_BYTES = 2**20  # of one: what is larger has mostly images
MOST_STEPS = 2_000  # from a message to the turn in which a client sent it

OF_SESSION = (
    "select id, coalesce(label, id) as name from infold.sessions"
    " where tenant = $1 and (label = $2 or label is null and id = $2)"
)
OF_TENANT = (
    "select s.id, coalesce(s.label, s.id) as name from infold.sessions s where s.tenant = $1 and s.id in"
    " (select session from (select session from infold.turns where tenant = $1"
    "  order by created_at desc limit $2) as newest)"
)
# Messages of a scope, the newest first, until one of the bounds is reached.
NEWEST = (
    "with scope as materialized ({scope}),"
    " known as (select n.node, n.session, scope.name, n.created_at, n.depth, octet_length(n.raw) as bytes"
    "  from scope join infold.nodes n on n.session = scope.id and n.tenant = $1 and n.depth >= 0"
    "  where octet_length(n.raw) <= $5"
    "  and not exists (select from infold.seals s where s.tenant = $1 and s.digest = n.digest)),"
    " newest as (select node, name, sum(bytes) over (order by created_at desc, depth desc, node) as total from known"
    "  order by created_at desc, depth desc, node limit $3)"
    " select n.node, n.session, newest.name, n.role, n.digest, n.raw, n.created_at"
    " from newest join infold.nodes n on n.tenant = $1 and n.node = newest.node where newest.total <= $4"
    " order by n.session, n.created_at, n.depth, n.node"
)


class SaidRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message of a conversation."""

    node: bytes
    session: str
    name: str  # of the session: its label, else its id
    role: str
    digest: bytes
    raw: bytes
    created_at: datetime


async def load_said(
    connection: asyncpg.Connection,
    tenant: bytes,
    session: str | None,
    most: int = MOST_MESSAGES,
    most_bytes: int = MOST_BYTES,
) -> list[SaidRow]:
    """The newest messages of the conversations that carry a label, or of all; each conversation in its order."""
    scope, value = (OF_TENANT, MOST_TURNS) if session is None else (OF_SESSION, session)
    rows = await connection.fetch(
        NEWEST.format(scope=scope), tenant, value, most, most_bytes, MOST_MESSAGE_BYTES,
    )  # fmt: skip
    return [SaidRow(*row) for row in rows]


async def may_be_told(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> set[bytes]:
    """Those of some messages that are there, and neither sealed nor hold what is in quarantine.

    A message that came a moment ago may hold such a text and not be sealed yet.
    """
    rows = await connection.fetch(
        "select n.node from infold.nodes n cross join infold.held_in($1, n.raw, $3) h"
        " where n.tenant = $1 and n.node = any($2) and coalesce(h.threads, '{}') = '{}'"
        " and not exists (select from infold.seals s where s.tenant = $1 and s.digest = n.digest)",
        tenant, nodes, NO_BOUND,
    )  # fmt: skip
    return {row["node"] for row in rows}


async def turns_of(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> dict[bytes, bytes]:
    """The turn of each message: for an answer the one that it answers, else the first that was asked with it."""
    rows = await connection.fetch(
        "with recursive after as ("
        " select n.node as origin, n.node, 0 as steps from infold.nodes n where n.tenant = $1 and n.node = any($2)"
        " union all select a.origin, n.node, a.steps + 1 from after a"
        " join infold.nodes n on n.tenant = $1 and n.parent = a.node where a.steps < $3"
        " and not exists (select from infold.turns t where t.tenant = $1 and t.node = a.node)),"
        " asked as (select a.origin, a.node, a.steps from after a"
        "  join infold.turns t on t.tenant = $1 and t.node = a.node"
        " union all select n.node, t.node, -1 from infold.nodes n"
        "  join infold.turns t on t.tenant = $1 and t.node = n.parent"
        "  where n.tenant = $1 and n.node = any($2) and n.role = 'assistant')"
        " select distinct on (origin) origin, node from asked order by origin, steps",
        tenant, nodes, MOST_STEPS,
    )  # fmt: skip
    return {row["origin"]: row["node"] for row in rows}
