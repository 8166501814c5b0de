"""Ways to break things: processes that freeze or die, and waits that notice a hang."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory.postgres import EmbeddedPostgres

HANG = 15.0  # seconds: whatever takes so long hangs; a busy machine needs less where 0.25 are promised


def family(pid: int) -> list[int]:
    """A server and all its children."""
    children = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                children.append(int(entry.name))
    return [pid, *children]


@contextlib.contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes that do not answer, and whose connections stay open."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def murder(server: EmbeddedPostgres) -> None:
    """kill -9 of the server and all its processes at one moment: nothing is flushed."""
    for pid in family(server.address.pid):
        os.kill(pid, signal.SIGKILL)
    while server.poll() is None:
        time.sleep(0.01)


async def in_time(work: Awaitable[Any], seconds: float = HANG) -> Any:
    """The outcome of something that must not hang; it may still hang after it was cancelled, so nobody waits for it."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        pytest.fail(f"it hangs: not done after {seconds:g} seconds")
    return task.result()


class Stalls:
    """How long an event loop, or whoever asks again and again, had to wait for this process.

    Counted in seconds of the process's own CPU time: that others use the machine is no stall of ours.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        began = time.process_time()
        yield
        self.longest_seconds = max(self.longest_seconds, time.process_time() - began)

    @contextlib.asynccontextmanager
    async def of_this_loop(self) -> AsyncIterator["Stalls"]:
        async def watch() -> None:
            while True:
                with self.turn():
                    await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        try:
            yield self
            await asyncio.sleep(0.002)  # what has stalled it last is counted, too
        finally:
            watching.cancel()


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)
