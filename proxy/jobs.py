"""The job worker process: PgQueuer's loop over `memory.worker`, and the embedder that web workers ask."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import asyncpg
import structlog
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job

from memory.embed import Embedder, embedder, serve_embeddings
from memory.errors import StoreError
from memory.store.migrate import migrate
from memory.store.pool import AWAY, Pool
from memory.worker import embed_line, parse_payload
from proxy import logs
from proxy.config import Config
from proxy.household import database
from proxy.wire.openai import message_of

log = structlog.get_logger()

RETRY_SECONDS = 1.0
TELL_SECONDS = 60.0  # between two lines about a database that stays away
AT_ONCE = 1  # job: the embedder has one thread


async def run(config: Config) -> None:
    """Work until SIGTERM or SIGINT. A database that is away is waited for."""
    logs.configure(config.log_level)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    model = embedder(config.embedder)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(database(config))
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
        if model is not None:
            tasks.append(asyncio.create_task(work(dsn, model)))
        if model is not None and config.embed_socket is not None:
            tasks.append(asyncio.create_task(serve_embeddings(model, str(config.embed_socket))))
        done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done:
            task.result()


async def work(dsn: str, model: Embedder) -> None:
    """Take jobs as they come; when the database goes, begin again when it is back."""
    told = -TELL_SECONDS
    while True:
        try:
            await take_jobs(dsn, model)
        except (StoreError, *AWAY) as error:
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                log.info("jobs wait for the database", reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(RETRY_SECONDS)


async def take_jobs(dsn: str, model: Embedder) -> None:
    await migrate(dsn)  # whichever process comes first
    pool = Pool(dsn, size=2)
    settings = {"role": "infold_app", "search_path": "infold,public", "application_name": "infold jobs"}
    async with asyncpg.create_pool(dsn, min_size=1, max_size=3, server_settings=settings) as queue:
        await pool.open()
        try:
            jobs = PgQueuer(AsyncpgPoolDriver(queue))

            @jobs.entrypoint("embed", concurrency_limit=AT_ONCE)
            async def embed(job: Job) -> None:
                tenant, node = parse_payload(job.payload)
                done = await embed_line(pool, model, message_of, tenant, node)
                log.info("embedded", messages=done)

            await jobs.run(batch_size=AT_ONCE, shutdown_on_listener_failure=True)
        finally:
            await pool.close()
