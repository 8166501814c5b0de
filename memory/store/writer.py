"""Turns on their way to the database: those that end while a commit is under way share the next one.

A commit costs a round trip and a flush of the log, whether one turn is in it or thirty.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import asyncpg

from memory.errors import StoreBusy, StoreError, StoreUnavailable
from memory.store.pool import Pool
from memory.store.turns import BATCH_BYTES, TurnRecord, record_turns

MOST_TURNS = 32  # in one commit; they fail together, and then those of each tenant are tried, then each alone

Waiting = tuple[TurnRecord, asyncio.Future[str]]


class TurnWriter:
    """Belongs to one event loop."""

    def __init__(self, pool: Pool, relaxed: bool = False, wait_seconds: float | None = None) -> None:
        """
        Args:
            relaxed: commits do not wait for the disk: right for openings, which the end's commit flushes.
            wait_seconds: for a commit; None: as long as a request waits.
        """
        self._pool = pool
        self._relaxed = relaxed
        self._wait_seconds = pool.wait_seconds if wait_seconds is None else wait_seconds
        self._waiting: deque[Waiting] = deque()
        self._committing: asyncio.Task[None] | None = None

    async def write(self, turn: TurnRecord) -> str:
        """The turn's session, once it is committed.

        Raises:
            StoreUnavailable: the database is away or too slow.
            StoreRefused: it will never take this record.
            StoreError: it refused for another reason.
        """
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, ended))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await ended
        except TimeoutError as error:  # it may be written yet; written again, it changes nothing
            raise StoreUnavailable("the turn was not committed in time") from error

    async def _commit_all(self) -> None:
        taken: list[Waiting] = []
        try:
            while self._waiting:
                taken = self._next()
                await self._commit(taken)
        finally:  # whatever broke this off, nobody waits for ever
            self._committing = None
            for _, ended in (*taken, *self._waiting):
                if not ended.done():
                    ended.set_exception(StoreUnavailable("the commit broke off"))
            self._waiting.clear()

    def _next(self) -> list[Waiting]:
        """What waits, up to MOST_TURNS and BATCH_BYTES."""
        taken = [self._waiting.popleft()]
        room = BATCH_BYTES - size_of(taken[0][0])
        while self._waiting and len(taken) < MOST_TURNS:
            room -= size_of(self._waiting[0][0])
            if room < 0:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _commit(self, waiting: Sequence[Waiting]) -> None:
        try:
            async with self._pool.connection(self._wait_seconds) as connection:
                sessions = await record_turns(connection, [turn for turn, _ in waiting], self._relaxed)
        except StoreError as error:
            parts = apart(waiting, error)
            if len(parts) > 1:
                await asyncio.gather(*map(self._commit, parts))
                return
            for _, ended in waiting:
                if not ended.done():
                    ended.set_exception(error)
            return
        for (_, ended), session in zip(waiting, sessions, strict=True):
            if not ended.done():
                ended.set_result(session)


def apart(waiting: Sequence[Waiting], error: StoreError) -> list[Sequence[Waiting]]:
    """Turns that failed together, as they are tried again; one part: they are not.

    By tenant first, for an isolation in one is nothing to another; then each alone, for one of them is at fault.
    """
    locked = isinstance(error.__cause__, asyncpg.LockNotAvailableError)
    if isinstance(error, StoreUnavailable) and not isinstance(error, StoreBusy):
        return [waiting]
    of_tenants: dict[bytes, list[Waiting]] = {}
    for one in waiting:
        of_tenants.setdefault(one[0].tenant, []).append(one)
    if len(of_tenants) > 1:
        return [*of_tenants.values()]
    return [waiting] if locked else [[one] for one in waiting]


def size_of(turn: TurnRecord) -> int:
    """Bytes of what makes a turn large."""
    return len(turn.record) + sum(len(row.raw) for row in turn.nodes) + sum(len(fold.data) for fold in turn.folds)
