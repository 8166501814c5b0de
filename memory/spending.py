"""What turns took, on its way to the sums: noted in memory, written together every now and then.

A transaction a turn would cost as much as the turn's own. These are statistics: what was noted while the database is
away, or before a crash, is lost.
"""

from collections import defaultdict, deque

import structlog

from memory.errors import StoreError
from memory.store.pool import Pool
from memory.store.signals import tell
from memory.store.usage import Spent, save_usage

log = structlog.get_logger()

MOST_NOTED = 10_000  # turns; written every 2 s, unless the database was never reached


class Spending:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._noted: deque[tuple[bytes, Spent, str | None]] = deque(maxlen=MOST_NOTED)

    def note(self, tenant: bytes, spent: Spent, rolled: str | None) -> None:
        """Note a turn; `rolled` is its id, if it rolled over. Of too many the oldest is forgotten."""
        self._noted.append((tenant, spent, rolled))

    async def write(self) -> None:
        """Write down what was noted, and tell of rollovers."""
        noted: defaultdict[bytes, list[tuple[Spent, str | None]]] = defaultdict(list)
        while self._noted:
            tenant, spent, rolled = self._noted.popleft()
            noted[tenant].append((spent, rolled))
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
