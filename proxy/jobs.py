"""The job worker process: PgQueuer's loop over `memory.worker`, and the embedder that web workers ask."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Protocol

import structlog

from memory.embed import Embedder, embedder, serve_embeddings
from memory.errors import StoreError
from memory.identify import text_id
from memory.learning import Learning
from memory.models import ModelTable
from memory.nouns import Clock, utc_now
from memory.queue import RETRY_SECONDS, TELL_SECONDS, Handler, Scheduled, run_queue
from memory.settings import Slm
from memory.slm.adapting import Adapting, adapting
from memory.slm.bases import Bases
from memory.store.migrate import migrate
from memory.store.pool import AWAY, Pool
from memory.tending import Tending
from memory.tokens import Counter
from memory.trainer import Children, Trainer
from memory.whole import Memory, memory
from memory.worker import embed_line, expire, hygiene, item_handlers, job_done, parse_payload
from proxy import logs
from proxy.config import Config, ConfigError, engine_environment
from proxy.household import database
from proxy.local import nearby
from proxy.wire.content import message_of

log = structlog.get_logger()

EVERY_MINUTE = "* * * * *"
TRAIN_SECONDS = 20.0  # between two looks whether a training waits
AT_ONCE = 1  # job: the embedder has one thread


async def run(config: Config) -> None:
    """Work until SIGTERM or SIGINT. A database that is away is waited for."""
    logs.configure(config.log_level)
    stop = told_to_stop()
    model = embedder(config.embedder)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(database(config))
        working = [work(config, dsn, model)]
        if model is not None and config.embed_socket is not None:
            working.append(serve_embeddings(model, str(config.embed_socket)))
        await until(stop, working)


async def embed_alone(config: Config) -> None:
    """Only the embedder for the web workers of this machine, until SIGTERM or SIGINT: others do the jobs."""
    logs.configure(config.log_level)
    stop = told_to_stop()
    model = embedder(config.embedder)
    if model is None or config.embed_socket is None:
        raise ConfigError("`infold serve` starts this by itself, where `job_worker` is false")
    await until(stop, [serve_embeddings(model, str(config.embed_socket))])


def told_to_stop() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def until(stop: asyncio.Event, working: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of these until we are told to stop, or one of them ends; its error is ours."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), *map(asyncio.create_task, working)]
    done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in done:
        task.result()


async def work(
    config: Config, dsn: str, model: Embedder | None, clock: Clock = utc_now, engine: Adapting | None = None
) -> None:
    """Take jobs, once the database has been reached.

    Args:
        engine: that adapters are loaded into; None: that of the settings.
    """
    pool = Pool(dsn, size=3)
    await reach(dsn, pool)
    try:
        whole = memory(pool, dsn, Counter(), ModelTable(config.overrides), config.settings, clock, model)
        handlers = item_handlers(pool, whole.items, model, clock)
        if model is not None:
            handlers.append(Handler("embed", line_embedder(pool, model, clock), AT_ONCE))
        bases = Bases(config.slm_settings, config.models_home, engine_environment())

        def tended(slm: Slm) -> Tending:
            return Tending(pool, config.data_dir, slm, clock, bases, engine or adapting(slm))

        tending = Beside(config, tended)
        scheduled = [*schedules(config, pool, whole, model), learner(whole.learning, tending)]
        trainer = Trainer(pool, config.data_dir, config.slm_settings, clock, bases, Children(engine_environment()))
        async with asyncio.TaskGroup() as group:
            if config.slm.learning.enabled:
                group.create_task(train_on(trainer, tending))
            await run_queue(dsn, handlers, scheduled)
    finally:
        await pool.close()


def schedules(config: Config, pool: Pool, whole: Memory, model: Embedder | None) -> list[Scheduled]:
    expiring = Scheduled("expire", EVERY_MINUTE, partial(expire, pool, whole.humans, whole.clock))
    cron = config.settings.hygiene.schedule
    if not cron:
        return [expiring]
    return [expiring, Scheduled("hygiene", cron, partial(hygiene, pool, whole.items, model, whole.clock))]


class Tends(Protocol):
    async def tend(self) -> None: ...


class Beside:
    """Adapters, looked after beside the engine that is to carry them: our server's own, that of the settings, or what
    another server runs on our data directory.

    A worker elsewhere that names no engine has no folders either, and would tell the database that both are gone.
    """

    def __init__(self, config: Config, tended: Callable[[Slm], Tends]) -> None:
        self._config, self._tended = config, tended
        self._made: tuple[Slm, Tends] | None = None

    async def tend(self) -> None:
        slm = await asyncio.to_thread(nearby, self._config)
        if slm.url is None and not self._config.supervised:
            return
        if self._made is None or self._made[0] != slm:  # a server was started again
            self._made = (slm, self._tended(slm))
        await self._made[1].tend()


def learner(learning: Learning, tending: Tends) -> Scheduled:
    """What may be learnt from, whether a training is due, and what becomes of adapters."""

    async def learn() -> None:
        await learning.look()
        await tending.tend()

    return Scheduled("learn", EVERY_MINUTE, learn)


async def train_on(trainer: Trainer, tending: Tends, pause_seconds: float = TRAIN_SECONDS) -> None:
    """Do trainings as they are wanted, and let the engine have what came of them. Not a job of the queue: that ends its
    jobs when the database goes for a moment, and a training takes hours."""
    changed = True  # an engine that was started with us knows no adapter
    while True:
        try:
            if changed:
                await tending.tend()
            changed = await trainer.run() is not None
        except StoreError as error:
            changed = True
            log.info("training waits for the database", reason=str(error))
            await asyncio.sleep(pause_seconds)
        else:
            await asyncio.sleep(0 if changed else pause_seconds)


async def reach(dsn: str, pool: Pool) -> None:
    """Wait for the database; whichever process comes first migrates it."""
    told = -TELL_SECONDS
    while True:
        try:
            await migrate(dsn)
            return await pool.open()
        except (StoreError, *AWAY) as error:
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                log.info("jobs wait for the database", reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(RETRY_SECONDS)


def line_embedder(pool: Pool, model: Embedder, clock: Clock) -> Callable[[bytes | None], Awaitable[None]]:
    async def embed(payload: bytes | None) -> None:
        tenant, node = parse_payload(payload)
        messages = await embed_line(pool, model, message_of, tenant, node)
        log.info("embedded", messages=messages)
        done = {"name": "embed", "turn": text_id(node), "messages": messages}
        await job_done(pool, tenant, None, done, clock())

    return embed
