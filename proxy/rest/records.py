"""What was: turns, sessions, usage, everything as lines."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.responses import Response, StreamingResponse

from memory.errors import NotFound
from memory.identify import node_of
from memory.store.export import export_lines, load_turn
from proxy.rest.asking import Asking, reply


async def turn(asking: Asking) -> Response:
    """What was asked, what the model saw, the numbers that decided, what became of it."""
    node = named(asking.named["turn"])
    async with asking.parts.pool.tenant(asking.tenant) as connection:
        told = await load_turn(connection, asking.tenant, node)
    return reply({"success": True, **told})


async def export(asking: Asking) -> Response:
    """Everything of the caller's tenant as JSON lines, each with its kind."""
    reading = AsyncExitStack()
    connection = await reading.enter_async_context(asking.parts.pool.reader(asking.tenant))

    async def lines() -> AsyncIterator[bytes]:
        async with reading:
            async for line in export_lines(connection, asking.tenant):
                yield line + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def named(turn_id: str) -> bytes:
    """The node that a turn's id names; an id of another shape names nothing."""
    try:
        return node_of(turn_id)
    except ValueError:
        raise NotFound(f"there is no turn {turn_id!r}") from None
