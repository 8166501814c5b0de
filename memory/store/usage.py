"""What calls of models took and cost: one narrow row a call."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec

from memory.nouns import UsageSum

By = Literal["day", "model", "session"]

KEYS: Mapping[By, str] = {
    "day": "to_char(at at time zone 'utc', 'YYYY-MM-DD')",
    "model": "model",
    "session": "session",
}


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """One call; `cost_usd` None: its price is not known."""

    attempt: UUID
    at: datetime
    session: str
    model: str
    input_tokens: int = 0  # cached ones among them
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    direct_usd: float | None = None  # what it would have cost without us
    own_usd: float = 0.0  # our own calls


async def save_usage(connection: asyncpg.Connection, tenant: bytes, calls: Sequence[Spent]) -> None:
    """Again with the same attempts changes nothing."""
    await connection.executemany(
        "insert into infold.usage (tenant, attempt, at, session, model, input_tokens, cached_tokens, output_tokens,"
        " cost_usd, direct_usd, own_usd) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing",
        [
            (tenant, spent.attempt, spent.at, spent.session, spent.model, spent.input_tokens, spent.cached_tokens,
             spent.output_tokens, spent.cost_usd, spent.direct_usd, spent.own_usd)
            for spent in calls
        ],
    )  # fmt: skip


async def sum_usage(
    connection: asyncpg.Connection,
    tenant: bytes,
    by: By,
    since: datetime | None,
    until: datetime | None,
    session: str | None,
    limit: int,
) -> tuple[UsageSum, ...]:
    """By day, newest first; by model or session, the dearest first."""
    order = "1 desc" if by == "day" else "6 desc, 3 desc, 1"
    rows = await connection.fetch(
        f"select {KEYS[by]}, count(*), sum(input_tokens)::bigint, sum(cached_tokens)::bigint,"
        " sum(output_tokens)::bigint, coalesce(sum(cost_usd), 0), coalesce(sum(coalesce(direct_usd, cost_usd)), 0),"
        " sum(own_usd), count(*) filter (where cost_usd is null)"
        " from infold.usage where tenant = $1 and ($2::timestamptz is null or at >= $2)"
        " and ($3::timestamptz is null or at < $3) and ($4::text is null or session = $4)"
        f" group by 1 order by {order} limit $5",
        tenant, since, until, session, limit,
    )  # fmt: skip
    return tuple(UsageSum(*row) for row in rows)
