"""Blocking code calls what is asynchronous, from wherever it stands, and is told when it cannot."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from memory.errors import LLMMemoryError
from memory.loop import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    made.start()
    yield made
    made.stop()


async def name_of_thread() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


async def fail() -> None:
    raise KeyError("as it was")


def test_a_call_runs_in_the_loops_own_thread(loop):
    assert loop.call(name_of_thread()) == "infold"


def test_what_it_raises_is_raised_here(loop):
    with pytest.raises(KeyError, match="as it was"):
        loop.call(fail())


async def test_it_can_be_called_where_another_loop_runs(loop):
    assert loop.call(name_of_thread()) == "infold"


def test_many_threads_may_call_at_once(loop):
    meeting = asyncio.Barrier(8)  # passes only when eight wait at the same time
    threads = [threading.Thread(target=lambda: loop.call(meet(meeting), 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


async def meet(barrier: asyncio.Barrier) -> None:
    await barrier.wait()


def test_a_call_from_its_own_thread_is_refused_instead_of_waiting_for_ever(loop):
    async def inside() -> None:
        loop.call(name_of_thread())

    with pytest.raises(LLMMemoryError, match="its own event loop"):
        loop.call(inside())


def test_who_waited_too_long_has_ended_the_work(loop):
    ended = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        loop.call(long(), 0.01)
    assert ended.wait(5)


def test_stopping_cancels_what_runs_and_twice_is_once(loop):
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def begin() -> None:
        loop.task = asyncio.create_task(forever())
        await asyncio.sleep(0)

    loop.call(begin())
    loop.stop()
    loop.stop()
    assert ended.is_set()
    with pytest.raises(LLMMemoryError, match="closed"):
        loop.call(name_of_thread())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_fork_it_says_whose_it_is(loop):
    pid = os.fork()
    if not pid:
        try:
            loop.call(name_of_thread(), 5)
        except LLMMemoryError as error:
            os._exit(0 if "make another one" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
