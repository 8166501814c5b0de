"""Ways to break things: processes that freeze or die, and waits that notice a hang."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory.postgres import EmbeddedPostgres

HANG = 5.0  # seconds: whatever takes so long hangs; a busy machine needs less where 0.25 are promised


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


async def in_time(work: Coroutine[Any, Any, Any], seconds: float = HANG) -> Any:
    """The outcome of something that must not hang; it may still hang after it was cancelled, so nobody waits for it."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        pytest.fail(f"it hangs: not done after {seconds:g} seconds")
    return task.result()


async def until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)
