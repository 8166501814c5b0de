"""What was: turns, sessions, usage; everything as lines, in again, and erased."""

from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from memory.errors import NotFound
from memory.identify import node_of
from memory.portable import lines_of
from memory.store.export import load_turn
from proxy.rest.asking import Asking, reply
from proxy.rest.bodies import (
    Confirm,
    Done,
    Erased,
    Imported,
    Page,
    SessionRead,
    SessionsListed,
    TurnQuery,
    TurnsListed,
    UsageQuery,
    UsageTold,
)

MOST_IMPORT_BYTES = 2 * 2**30
EXPLAIN_SECONDS = 10.0


async def sessions(asking: Asking, query: Page) -> SessionsListed:
    found, more = await asking.memory.sessions.listed(asking.tenant, query.cursor, query.limit)
    return SessionsListed(sessions=found, next=more)


async def session(asking: Asking) -> SessionRead:
    return SessionRead(session=await asking.memory.sessions.one(asking.tenant, asking.named["session"]))


async def delete_session(asking: Asking) -> Done:
    count = await asking.memory.sessions.delete(asking.tenant, asking.named["session"])
    return Done(message=f"{count:,} items, and the session's tasks, agents and questions are deleted.")


async def turns(asking: Asking, query: TurnQuery) -> TurnsListed:
    found, more = await asking.memory.sessions.turns(asking.tenant, query.session, query.cursor, query.limit)
    return TurnsListed(turns=found, next=more)


async def turn(asking: Asking) -> Response:
    """What was asked, what the model saw, the numbers that decided, what became of it."""
    node = named(asking.named["turn"])
    async with asking.memory.pool.tenant(asking.tenant, EXPLAIN_SECONDS) as connection:
        told = await load_turn(connection, asking.tenant, node)
    return reply({"success": True, **told})


async def usage(asking: Asking, query: UsageQuery) -> UsageTold:
    found = await asking.memory.usage.sums(
        asking.tenant, query.by, query.since, query.until, query.session, query.limit
    )
    return UsageTold(usage=list(found), by=query.by)


async def export(asking: Asking) -> Response:
    """Everything of the caller's tenant as JSON lines, each with its kind."""
    found = asking.memory.portable.export(asking.tenant)
    first = await anext(found, b"")  # what is refused is refused before the answer begins

    async def lines() -> AsyncIterator[bytes]:
        if first:
            yield first + b"\n"
        async for line in found:
            yield line + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def load(asking: Asking) -> Imported:
    """The body is what `export` gave."""
    lines = lines_of(asking.chunks(MOST_IMPORT_BYTES))
    return Imported(counts=await asking.memory.portable.load(asking.principal, lines))


async def erase(asking: Asking, body: Confirm) -> Erased:
    return Erased(counts=await asking.memory.portable.erase(asking.principal, body.confirm))


def named(turn_id: str) -> bytes:
    """The node that a turn's id names; an id of another shape names nothing."""
    try:
        return node_of(turn_id)
    except ValueError:
        raise NotFound(f"there is no turn {turn_id!r}") from None
