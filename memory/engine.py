"""The memory of one program, running: database, parts, background jobs."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg

from memory.embed import OnnxEmbedder
from memory.errors import ModelError, StoreError, StoreUnavailable
from memory.find import space_id
from memory.identify import key_tenant
from memory.items import Summarize
from memory.models import ModelTable
from memory.nouns import Clock
from memory.settings import Settings
from memory.slm.client import ModelAt
from memory.store.items import want_vectors
from memory.store.migrate import migrate
from memory.store.passages import not_embedded
from memory.store.pool import AWAY, Pool
from memory.store.secrets import load_pepper
from memory.tokens import Counter
from memory.whole import memory

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


def address(dsn: str) -> str:
    """Host and port of a database, or the folder of its socket; never its password."""
    parts = urlsplit(dsn)
    host = parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]
    return f"{host}:{parts.port}" if parts.port else host


class Engine:
    """Made in the event loop that it works in; `open` before use."""

    def __init__(
        self, dsn: str, counter: Counter, models: ModelTable, settings: Settings, clock: Clock,
        summarize: Summarize | None = None, reader: ModelAt | None = None,
    ) -> None:  # fmt: skip
        self._dsn = dsn
        self._pool = Pool(dsn, POOL_SIZE)
        self._tasks: list[asyncio.Task[None]] = []
        self._cut_off: list[tuple[str, bytes | None]] = []  # jobs
        self._before: set[asyncio.Task[Any]] = set()  # tasks that are not ours
        self.embedder = OnnxEmbedder()  # of questions: they do not wait behind what is stored
        self._bulk = OnnxEmbedder(threads=BULK_THREADS)
        self._clock = clock
        whole = memory(self._pool, dsn, counter, models, settings, clock, self.embedder, summarize, reader=reader)
        self.whole, self._signals = whole, whole.signals
        self.items, self.board, self.humans, self.quarantine = whole.items, whole.board, whole.humans, whole.quarantine

    async def open(self, key: str | None, pepper: bytes | None) -> bytes:
        """Reach the database, bring its schema up; gives the tenant that a key names."""
        await patiently(self._reach)
        if pepper is None:
            async with self._pool.connection(PATIENCE_SECONDS) as connection:
                pepper = await load_pepper(connection)
        self._before = asyncio.all_tasks()
        self._tasks = [asyncio.create_task(self._signals.run()), asyncio.create_task(self._work())]
        return key_tenant(pepper, key)

    async def _reach(self) -> None:
        try:
            await migrate(self._dsn)
        except (*AWAY, asyncpg.CannotConnectNowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise StoreUnavailable(f"the database at {address(self._dsn)} cannot be reached: {reason}") from None
        await self._pool.open()

    async def _work(self) -> None:
        """Embed and tidy what is stored, in the background."""
        with suppress(ModelError):
            await self.embedder.embed(["ready"])  # loads the model, so that the first question need not wait for it
        await asyncio.sleep(JOBS_AFTER_SECONDS)
        from memory.queue import Handler, run_queue
        from memory.worker import item_handlers

        def watched(handler: Handler) -> Handler:
            async def run(payload: bytes | None) -> None:
                try:
                    await handler.run(payload)
                except asyncio.CancelledError:
                    self._cut_off.append((handler.name, payload))
                    raise

            return handler._replace(run=run)

        handlers = item_handlers(self._pool, self.items, self._bulk, self._clock)
        await run_queue(self._dsn, [watched(handler) for handler in handlers])

    async def indexed(self, tenant: bytes, timeout_seconds: float) -> bool:
        """Whether every passage of a tenant can be found by meaning, at the latest when the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            async with self._pool.tenant(tenant, PATIENCE_SECONDS) as connection:
                missing = await not_embedded(connection, tenant, space_id(self.embedder.name), limit=1)
            if not missing or time.monotonic() > deadline:
                return not missing
            await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """End at once; an item whose embedding is cut off goes back into the queue, which a cancelled job has left."""
        running = asyncio.all_tasks() - self._before - {asyncio.current_task()}  # the queue's own among them
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CLOSING_SECONDS)
        with suppress(StoreError):
            await self._give_back()
        await self.embedder.close()
        await self._bulk.close()
        await self._pool.close()

    async def _give_back(self) -> None:
        for name, payload in self._cut_off:
            if name == "embed_item":
                tenant, item = (payload or b"").decode().split(" ")
                async with self._pool.tenant(bytes.fromhex(tenant), CLOSING_SECONDS) as connection:
                    await want_vectors(connection, bytes.fromhex(tenant), UUID(item))
