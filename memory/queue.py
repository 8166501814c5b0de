"""PgQueuer's loop over a table of handlers: what each process that takes jobs runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import asyncpg
import structlog
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.errors import FailingListenerError
from pgqueuer.models import Job, Schedule

from memory.errors import StoreError, StoreUnavailable
from memory.store.pool import AWAY

log = structlog.get_logger()

RETRY_SECONDS = 1.0
END_SECONDS = 5.0  # for jobs at work to end, when the queue is left
TELL_SECONDS = 60.0  # between two lines about a database that stays away
SETTINGS = {"role": "infold_app", "search_path": "infold,public", "application_name": "infold jobs"}


class Handler(NamedTuple):
    """What runs the jobs of one name; a job can run twice with the same result."""

    name: str
    run: Callable[[bytes | None], Awaitable[None]]  # gets the payload
    at_once: int = 1


class Scheduled(NamedTuple):
    name: str
    cron: str  # UTC
    run: Callable[[], Awaitable[None]]


async def run_queue(dsn: str, handlers: Sequence[Handler], schedules: Sequence[Scheduled] = ()) -> None:
    """Take jobs as they come, until cancelled; when the database goes, begin again when it is back."""
    told = -TELL_SECONDS
    while True:
        try:
            await take_jobs(dsn, handlers, schedules)
        except (StoreError, FailingListenerError, *AWAY) as error:
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                log.info("jobs wait for the database", reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(RETRY_SECONDS)


async def take_jobs(dsn: str, handlers: Sequence[Handler], schedules: Sequence[Scheduled] = ()) -> None:
    """Take jobs until cancelled, or until one of the connections is lost.

    PgQueuer notices a lost listener only at its next look, and closing its pool then waits for a connection that
    nobody gives back; so the loss is noticed here, and both have a bounded time to end.
    """
    lost = asyncio.Event()

    async def watch(connection: asyncpg.Connection) -> None:
        connection.add_termination_listener(lambda _: lost.set())

    queue = await asyncpg.create_pool(
        dsn, min_size=1, max_size=3, init=watch, max_inactive_connection_lifetime=0, server_settings=SETTINGS
    )
    running = asyncio.create_task(run_pgqueuer(queue, handlers, schedules))
    losing = asyncio.create_task(lost.wait())
    try:
        await asyncio.wait((running, losing), return_when=asyncio.FIRST_COMPLETED)
        if lost.is_set():
            raise StoreUnavailable("a connection was lost")
        running.result()
    finally:
        running.add_done_callback(look_away)
        running.cancel()
        losing.cancel()
        await asyncio.wait((running, losing), timeout=END_SECONDS)
        queue.terminate()


async def run_pgqueuer(queue: asyncpg.Pool, handlers: Sequence[Handler], schedules: Sequence[Scheduled]) -> None:
    jobs = PgQueuer(AsyncpgPoolDriver(queue))
    for handler in handlers:
        jobs.entrypoint(handler.name, concurrency_limit=handler.at_once)(on_job(handler))
    for scheduled in schedules:
        jobs.schedule(scheduled.name, scheduled.cron, clean_old=True)(on_time(scheduled))
    most = max((handler.at_once for handler in handlers), default=1)
    await jobs.run(batch_size=most, shutdown_on_listener_failure=True)


def look_away(task: asyncio.Task[None]) -> None:
    """What a queue says that was told to end is no news."""
    if not task.cancelled():
        task.exception()


def on_job(handler: Handler) -> Callable[[Job], Awaitable[None]]:
    async def run(job: Job) -> None:
        await handler.run(job.payload)

    return run


def on_time(scheduled: Scheduled) -> Callable[[Schedule], Awaitable[None]]:
    async def run(schedule: Schedule) -> None:
        await scheduled.run()

    return run
