"""What turns took, on its way to the sums: noted in memory, written together every now and then.

A transaction a turn would cost as much as the turn's own. These are statistics: what was noted while the database is
away, or before a crash, is lost.
"""

import structlog

from memory.errors import StoreError
from memory.store.pool import Pool
from memory.store.signals import tell
from memory.store.usage import Spent, save_usage

log = structlog.get_logger()


class Spending:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._noted: dict[bytes, list[tuple[Spent, str | None]]] = {}

    def note(self, tenant: bytes, spent: Spent, rolled: str | None) -> None:
        """Note a turn; `rolled` is its id, if it rolled over."""
        self._noted.setdefault(tenant, []).append((spent, rolled))

    async def write(self) -> None:
        """Write down what was noted, and tell of rollovers."""
        noted, self._noted = self._noted, {}
        for tenant, turns in noted.items():
            try:
                await self._write(tenant, turns)
            except StoreError as error:
                log.info("usage not written", reason=str(error), turns=len(turns))

    async def _write(self, tenant: bytes, turns: list[tuple[Spent, str | None]]) -> None:
        async with self._pool.tenant(tenant) as connection:
            await connection.execute("set local synchronous_commit = off")
            await save_usage(connection, tenant, [spent for spent, _ in turns])
            for spent, rolled in turns:
                if rolled is not None:
                    data = {"turn": rolled, "model": spent.model}
                    await tell(connection, tenant, "rollover", spent.session, data, spent.at)
