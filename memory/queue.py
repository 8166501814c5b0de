"""PgQueuer's loop over a table of handlers: what each process that takes jobs runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import asyncpg
import structlog
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job, Schedule

from memory.errors import StoreError
from memory.store.pool import AWAY

log = structlog.get_logger()

RETRY_SECONDS = 1.0
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
    told = 0.0
    while True:
        began = time.monotonic()
        try:
            await take_jobs(dsn, handlers, schedules)
        except (StoreError, *AWAY) as error:
            if not told or began - told > TELL_SECONDS:
                told = time.monotonic()
                log.info("jobs wait for the database", reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(RETRY_SECONDS)


async def take_jobs(dsn: str, handlers: Sequence[Handler], schedules: Sequence[Scheduled] = ()) -> None:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=3, server_settings=SETTINGS) as queue:
        jobs = PgQueuer(AsyncpgPoolDriver(queue))
        for handler in handlers:
            jobs.entrypoint(handler.name, concurrency_limit=handler.at_once)(on_job(handler))
        for scheduled in schedules:
            jobs.schedule(scheduled.name, scheduled.cron, clean_old=True)(on_time(scheduled))
        most = max((handler.at_once for handler in handlers), default=1)
        await jobs.run(batch_size=most, shutdown_on_listener_failure=True)


def on_job(handler: Handler) -> Callable[[Job], Awaitable[None]]:
    async def run(job: Job) -> None:
        await handler.run(job.payload)

    return run


def on_time(scheduled: Scheduled) -> Callable[[Schedule], Awaitable[None]]:
    async def run(schedule: Schedule) -> None:
        await scheduled.run()

    return run
