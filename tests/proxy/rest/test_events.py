"""A stream of events stays open while somebody listens, and no longer; a process takes so many of them."""

import asyncio
import contextlib
import time

import httpx
import pytest

from memory.errors import StoreUnavailable
from memory.store.signals import Signals
from proxy.rest.events import MOST_LISTENERS, told
from tests.conversations import TENANT
from tests.faults import HANG
from tests.proxy.rest.conftest import Caller, refused


class Nothing:
    """A reading in which nothing happens, or of a database that is away."""

    def __init__(self, error=None):
        self.error = error
        self.times = 0

    async def more(self):
        self.times += 1
        if self.error is not None:
            raise self.error
        return
        yield


@pytest.mark.parametrize("error", [None, StoreUnavailable()])
async def test_it_stays_open_and_pings_while_nothing_happens_also_without_a_database(dsn, error):
    reading = Nothing(error)
    with Signals(dsn).watch(TENANT, ()) as watch:
        stream = told(reading, watch, ping_seconds=0.001)
        assert [await anext(stream) for _ in range(50)] == [b": ping\n\n"] * 50
        await stream.aclose()
    assert reading.times == 50


async def test_it_ends_when_the_program_stops_whether_it_listened_before_or_comes_after(dsn):
    signals = Signals(dsn)
    with signals.watch(TENANT, ()) as watch:
        stream = told(Nothing(), watch)
        waiting = asyncio.ensure_future(anext(stream, "ended"))
        await asyncio.sleep(0)
        signals.end()
        async with asyncio.timeout(HANG):
            assert await waiting == "ended"
    with signals.watch(TENANT, ()) as late:
        assert await anext(told(Nothing(), late), "ended") == "ended"


@contextlib.contextmanager
def listening(caller):
    headers = {"authorization": f"Bearer {caller.key}"}
    with httpx.stream("GET", f"{caller.url}/memory-manager/events", headers=headers, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()
        assert next(lines) == "retry: 1000"
        yield lines


def test_a_process_takes_so_many_listeners_and_one_more_when_one_has_left(proxy):
    caller, listeners = Caller(proxy.url), proxy.parts.listeners
    listeners.update(range(MOST_LISTENERS - 1))
    with listening(caller):
        assert "100 programs listen" in refused(caller.ask("GET", "events"), 503)
    deadline = time.monotonic() + 60
    while len(listeners) == MOST_LISTENERS:
        assert time.monotonic() < deadline, "the listener that left is still counted"
        time.sleep(0.01)
    with listening(caller):
        pass


def test_what_is_told_has_an_id_a_kind_and_no_content(proxy):
    caller = Caller(proxy.url, session="home")
    with listening(caller) as lines:
        task = caller.post("tasks/create", title="the secret title")["task_id"]
        told = {}
        for line in lines:
            name, _, value = line.partition(": ")
            told[name] = value
            if name == "data":
                break
    assert told["event"] == "task"
    assert told["id"] in told["data"]
    assert task in told["data"]
    assert "secret" not in told["data"]
