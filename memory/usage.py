"""What was spent: tokens, the bill, what it would have been without us, and what we spent ourselves."""

from datetime import UTC, datetime
from typing import cast

from memory import check
from memory.errors import InvalidRequest
from memory.nouns import UsageSum
from memory.store.pool import Pool
from memory.store.usage import KEYS, By, sum_usage

WAIT_SECONDS = 10.0


class UsageBook:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def sums(
        self,
        tenant: bytes,
        by: object = "day",
        since: object = None,
        until: object = None,
        session: object = None,
        limit: object = check.MOST_LIMIT,
    ) -> tuple[UsageSum, ...]:
        """Sums by day (newest first), model or session (dearest first).

        Args:
            by: "day" (of UTC), "model", "session".
            since, until: a date, or a time in ISO 8601 with its offset; `until` itself is left out.
            session: only this one's.
        """
        if not isinstance(by, str) or by not in KEYS:
            raise InvalidRequest(f"by must be one of {', '.join(KEYS)}", "by")
        first, last = moment(since, "from"), moment(until, "to")
        name = None if session is None else check.text(session, "session", check.MOST_NAME_CHARS)
        most = check.integer(limit, "limit", 1, check.MOST_LIMIT)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            return await sum_usage(connection, tenant, cast(By, by), first, last, name, most)


def moment(value: object, field: str) -> datetime | None:
    """A point in time; a date, and a time without offset, are those of UTC."""
    if value is None:
        return None
    try:
        made = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return made.astimezone(UTC) if made.tzinfo else made.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # one in year 1 or 9999 can have none in UTC
        raise InvalidRequest(f"{field} must be a date or a time in ISO 8601, such as 2026-01-05", field) from None
