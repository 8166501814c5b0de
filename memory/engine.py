"""The memory of one program, running: database, parts, background jobs."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import asyncpg

from memory.board import Board
from memory.detect import secrets_in
from memory.embed import OnnxEmbedder
from memory.errors import StoreUnavailable
from memory.humans import Humans
from memory.identify import key_tenant
from memory.items import Items, Summarize
from memory.models import ModelTable
from memory.nouns import Clock
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.state import Shares
from memory.store.migrate import migrate
from memory.store.pool import AWAY, Pool
from memory.store.secrets import load_pepper
from memory.store.signals import Signals
from memory.tokens import Counter

PATIENCE_SECONDS = 15.0  # for a database that another process starts, ends or hands over
RETRY_SECONDS = 0.1
POOL_SIZE = 4
JOBS_AFTER_SECONDS = 0.5  # the queue's imports cost a third of a second; a program that ends at once needs none
CLOSING_SECONDS = 5.0
BULK_THREADS = min(2, os.cpu_count() or 1)

T = TypeVar("T")


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is tried again while the database is away; so it must be one that can run twice.

    Raises:
        StoreUnavailable: it stayed away.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_SECONDS)


class Engine:
    """Made in the event loop that it works in; `open` before use."""

    def __init__(
        self, dsn: str, counter: Counter, models: ModelTable, settings: Settings, clock: Clock,
        summarize: Summarize | None = None,
    ) -> None:  # fmt: skip
        self._dsn = dsn
        self._pool = Pool(dsn, POOL_SIZE)
        self._tasks: list[asyncio.Task[None]] = []
        signals = Signals(dsn)
        self._signals = signals
        self.embedder = OnnxEmbedder()  # of questions: they do not wait behind what is stored
        self._bulk = OnnxEmbedder(threads=BULK_THREADS)
        self.quarantine = Quarantine(self._pool, counter, clock, settings)
        self.items = Items(
            self._pool, counter, models, settings, clock, self.embedder, summarize, secrets_in, self.quarantine.found,
            lambda name: Shares(models.find(name).trigger_share, models.find(name).safe_share),
        )  # fmt: skip
        self.board = Board(self._pool, clock)
        self.humans = Humans(self._pool, clock, signals, timedelta(hours=settings.work.human_expiry_hours))

    async def open(self, key: str | None, pepper: bytes | None) -> bytes:
        """Reach the database, bring its schema up; gives the tenant that a key names."""
        await patiently(self._reach)
        if pepper is None:
            async with self._pool.connection(PATIENCE_SECONDS) as connection:
                pepper = await load_pepper(connection)
        self._tasks = [asyncio.create_task(self._signals.run()), asyncio.create_task(self._work())]
        return key_tenant(pepper, key)

    async def _reach(self) -> None:
        try:
            await migrate(self._dsn)
        except (*AWAY, asyncpg.CannotConnectNowError) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        await self._pool.open()

    async def _work(self) -> None:
        """Embed and tidy what is stored, in the background."""
        await asyncio.sleep(JOBS_AFTER_SECONDS)
        from memory.queue import run_queue
        from memory.worker import item_handlers

        await run_queue(self._dsn, item_handlers(self._pool, self.items, self._bulk))

    async def close(self) -> None:
        """End at once: a job that is cut off is taken up again later, by whoever works on this database then."""
        running = asyncio.all_tasks() - {asyncio.current_task()}  # the queue's own tasks among them: it waits for them
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CLOSING_SECONDS)
        await self.embedder.close()
        await self._bulk.close()
        await self._pool.close()
