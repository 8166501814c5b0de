"""Training and measuring, from the side of whoever wants it: a child process that is told an order and tells events.

A child that dies takes nothing along: a trainer goes on from its last checkpoint when the same order is given again.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memory import errors
from memory.environment import variables
from memory.errors import Conflict, EngineError, InvalidRequest, LLMMemoryError, ModelError
from memory.slm.engine import CHILD, calm
from memory.slm.gate import Scores, scores_of
from memory.slm.header import BadWeights
from memory.slm.orders import MeasuringOrder, Order, TrainingOrder

MODULES: Mapping[type[Order], str] = {TrainingOrder: "memory.slm.train", MeasuringOrder: "memory.slm.measure"}
NEEDED = ("torch", "transformers", "peft")
LAST_EVENTS = ("done", "stopped", "error")
MOST_LINE_BYTES = 64 * 2**20
LEAVING_SECONDS = 90.0  # for a trainer that is in the middle of a step, to save where it stands


class Died(ModelError):
    """A trainer or measurer ended without a word; the same order goes on where it stood."""


class Child:
    """A trainer or measurer at work: `async with Child(order, environment) as child: async for event in child`."""

    def __init__(self, order: Order, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: of the child; None: ours."""
        self._order = order
        self._environment = variables(None) if environment is None else environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> "Child":
        """
        Raises:
            EngineError: what trains and measures is not installed.
        """
        check_installed(NEEDED)
        path = [str(Path(place).absolute()) for place in sys.path]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            CHILD.format(path=path, module=MODULES[type(self._order)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what libraries print may hold what people said
            env={**self._environment, **calm(self._order.threads)},
            limit=MOST_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C is for us, who stop it
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died; reading says so
            self._process.stdin.write(self._order.line().encode())
            await self._process.stdin.drain()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.stop()
        await asyncio.shield(self._end())

    def stop(self) -> None:
        """Tell it to save where it stands and to end; its last event is `stopped`."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """What it tells, in order; ends after `done` or `stopped`.

        Raises:
            LLMMemoryError: it could not do it, or it died; the message says what to do.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "error":
                raise translated(event["kind"], event["message"])
            yield event
            if event["event"] in LAST_EVENTS:
                return
        raise Died(f"the process that was to do it died {ending(await self._process.wait())}")

    async def _end(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(LEAVING_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def check_installed(names: Sequence[str]) -> None:
    """
    Raises:
        EngineError: one of them is not there.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise EngineError(f"learning needs {', '.join(missing)}: `pip install 'infold[slm]'` brings it")


async def measure(order: MeasuringOrder, environment: Mapping[str, str] | None = None) -> dict[str, Scores]:
    """The scores of the base, where it is asked for, and of each adapter.

    Raises:
        LLMMemoryError: as `Child` does.
    """
    async with Child(order, environment) as child:
        return {event["name"]: scores_of(event["scores"]) async for event in child if event["event"] == "measured"}


KINDS: Mapping[str, type[LLMMemoryError]] = {
    "InvalidRequest": InvalidRequest,
    "Conflict": Conflict,
    "BadWeights": BadWeights,
    "BadAdapter": BadWeights,
}


def translated(kind: str, message: str) -> LLMMemoryError:
    return KINDS.get(kind, errors.ModelError)(message)


def ending(code: int) -> str:
    """
    >>> ending(1), ending(-9)
    ('with the exit code 1', 'by SIGKILL: was memory short? The same order goes on from the last checkpoint')
    """
    if code >= 0:
        return f"with the exit code {code}"
    by = f"by {signal.Signals(-code).name}"
    return f"{by}: was memory short? The same order goes on from the last checkpoint" if code == -9 else by
