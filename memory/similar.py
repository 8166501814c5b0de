"""How close earlier messages are in meaning, where they have been embedded."""

import structlog

from memory.assemble import displaced
from memory.embed import Embedder
from memory.errors import ModelError, StoreError
from memory.reinject import Search
from memory.store.chunks import are_embedded, similarities
from memory.store.pool import Pool

log = structlog.get_logger()


class Similar:
    def __init__(self, pool: Pool, embedder: Embedder | None) -> None:
        self._pool = pool
        self._embedder = embedder

    async def to(self, text: str, tenant: bytes, search: Search) -> dict[int, float]:
        """Cosines of displaced messages to a text, by position; none where embedding is not at hand."""
        gone = {search.line.nodes[i]: i for i in displaced(search.frozen)}
        if self._embedder is None or not gone or not text.strip():
            return {}
        try:
            async with self._pool.tenant(tenant, self._pool.wait_seconds) as connection:
                if not await are_embedded(connection, tenant, self._embedder.name, list(gone)):
                    return {}
            vector = (await self._embedder.embed([text]))[0]
            async with self._pool.tenant(tenant, self._pool.wait_seconds) as connection:
                found = await similarities(connection, tenant, self._embedder.name, list(gone), vector)
        except (StoreError, ModelError) as error:
            log.info("searching by words alone", reason=str(error))
            return {}
        return {gone[node]: similarity for node, similarity in found.items()}
