"""An event loop in a thread of its own, and calls into it: how blocking code uses what is asynchronous."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from memory.errors import LLMMemoryError

T = TypeVar("T")


class LoopThread:
    """May be called from any thread, also from one in which another event loop runs."""

    def __init__(self, name: str = "infold") -> None:
        self._name = name
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> None:
        """Run the loop; returns once it takes calls."""
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(started)), name=self._name, daemon=True)
        self._thread.start()
        started.wait()

    def call(self, work: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run `work` in the loop and wait for its result; an interrupted wait cancels it.

        Raises:
            LLMMemoryError: the loop does not run, or cannot be waited for from here.
            TimeoutError: no result within `timeout_seconds`.
        """
        loop = self._loop
        if loop is None or (reason := self._unreachable()):
            work.close()
            raise LLMMemoryError("it is closed" if loop is None else reason)
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(timeout_seconds)
        except BaseException:
            future.cancel()  # nothing, where it has ended by itself
            raise

    def stop(self) -> None:
        """Cancel what runs in the loop and wait until its thread is gone. Again does nothing."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        assert self._stopping is not None
        loop.call_soon_threadsafe(self._stopping.set)
        thread.join()

    def _unreachable(self) -> str:
        """Why a call from here would wait for ever; "" where it would not."""
        if self._pid != os.getpid():
            return "it belongs to the process that made it; make another one in this process"
        if threading.current_thread() is self._thread:
            return "it cannot wait for itself: this is called from inside its own event loop"
        return ""

    async def _live(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        await self._stopping.wait()
