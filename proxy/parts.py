"""What a web worker consists of, and what goes on when a part of it fails."""

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from memory.manager import MemoryManager
from memory.recorder import Recorder
from memory.slm.admit import Admitted
from memory.store.pool import Pool
from memory.whole import Memory
from proxy.config import Config
from proxy.metrics import Metrics
from proxy.upstreams import Upstreams
from proxy.windows import Windows
from proxy.wire.dialects import Dialect
from proxy.wire.parser import Parser

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(slots=True)
class Parts:
    """What `app.py` wired together."""

    config: Config
    memory: MemoryManager
    upstreams: Upstreams
    windows: Windows
    metrics: Metrics
    pool: Pool
    recorder: Recorder
    pepper: bytes | None = field(default=None, repr=False)  # None: the database has not been reached yet
    whole: Memory | None = None  # what programs do with the memory; None: the database has not been reached yet
    admitted: Admitted | None = None  # whether the local model may summarise; None: nobody wants it to
    listeners: set[object] = field(default_factory=set)  # open streams of events
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    parsers: dict[str, Parser] = field(default_factory=dict)  # by dialect
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def parser(self, dialect: Dialect) -> Parser:
        found = self.parsers.get(dialect.shape.dialect)
        if found is None:
            found = self.parsers[dialect.shape.dialect] = Parser(dialect.shape)
        return found

    def later(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run something beside the request; the end of the program waits for it."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task


async def fail_open(parts: Parts, work: Awaitable[T], otherwise: T) -> T:
    """What memory gives; `otherwise` when it failed. A bug of ours never becomes the user's failure."""
    try:
        return await work
    except Exception as error:  # the one broad except in the house: we fail open, here only
        parts.metrics.passed_through.labels(type(error).__name__).inc()
        log.exception("going on without memory")
        return otherwise
