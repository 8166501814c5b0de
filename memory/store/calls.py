"""What an answer called, how long until its result came, and whether that was an error: read from messages alone."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from memory.written import calls_in, results_in

FAILED = ("error", "traceback", '{"error"', "exception")  # how results of calls that failed begin


async def calls_of(connection: asyncpg.Connection, tenant: bytes, answers: Sequence[bytes]) -> list[dict[str, object]]:
    """Calls in some answers that are not in quarantine.

    Each with id, name, milliseconds until the result was sent, success; null while there is none.
    """
    made = await connection.fetch(
        "select raw, created_at from infold.nodes n where tenant = $1 and node = any($2) and not exists"
        " (select from infold.seals s where s.tenant = $1 and s.digest = n.digest) order by created_at",
        tenant, answers,
    )  # fmt: skip
    asked = [(call, row["created_at"]) for row in made for call in calls_in(row["raw"])]
    if not asked:
        return []
    rows = await connection.fetch(
        "with recursive results as ("
        " select node, raw, created_at from infold.nodes where tenant = $1 and parent = any($2) and role = 'tool'"
        " union all select n.node, n.raw, n.created_at from infold.nodes n"
        " join results r on n.tenant = $1 and n.parent = r.node and n.role = 'tool')"
        " select raw, created_at from results order by created_at desc",
        tenant, answers,
    )  # fmt: skip
    results = {id: (row["created_at"], text) for row in rows for id, text in results_in(row["raw"])}
    return [told(id, name, when, results.get(str(id))) for (id, name), when in asked]


def told(id: object, name: object, when: datetime, ended: tuple[datetime, str] | None) -> dict[str, object]:
    if ended is None:
        return {"id": id, "name": name, "milliseconds": None, "success": None}
    milliseconds = round((ended[0] - when).total_seconds() * 1000, 3)
    success = not ended[1].lstrip().lower().startswith(FAILED)
    return {"id": id, "name": name, "milliseconds": milliseconds, "success": success}
