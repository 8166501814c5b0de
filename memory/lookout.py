"""What was said in conversations, looked at once for keys and the like, after it was recorded."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import structlog

from memory.bounded import Bounded
from memory.detect import Found
from memory.errors import InvalidRequest, StoreError
from memory.identify import Line, child, text_id
from memory.messages import Message
from memory.nouns import Place
from memory.quarantine import Quarantine, Spoken

log = structlog.get_logger()

LOOKED = 200_000  # messages that this process remembers to have looked at
THREAD_CHARS = 16 * 1024  # more than this in a turn is looked at in a thread
WINDOW_CHARS, OVERLAP_CHARS = 64 * 1024, 8 * 1024  # a detector holds the interpreter for one window, some milliseconds
MOST_WAITING = 1_000  # turns, while the database is away

Detect = Callable[[str], Sequence[Found]]


class Finding(NamedTuple):
    text: str
    found: Sequence[Found]
    message: Message


class Said(NamedTuple):
    """A turn's messages that nobody has looked at."""

    place: Place
    turn: str
    messages: tuple[Message, ...]


class Lookout:
    """Belongs to one event loop."""

    def __init__(self, quarantine: Quarantine, mode: str, detect: Detect) -> None:
        """`mode`: "off" never looks, "suggest" proposes, "auto" isolates the message."""
        self._quarantine = quarantine
        self._detect = detect
        self.is_on = mode != "off"
        self._looked: Bounded[bytes, bool] = Bounded(LOOKED)
        self._waiting: deque[Said] = deque(maxlen=MOST_WAITING)  # for the database
        self._one = asyncio.Lock()  # at a time: nobody waits for this

    async def look(self, place: Place, line: Line, answers: Sequence[Message]) -> None:
        """Look at the messages of a turn that this process has not looked at: new ones, or all of a line new to it."""
        messages = tuple(self._fresh(place.tenant, line, answers))
        if messages:
            await self._inspect(Said(place, text_id(line.tip), messages))

    async def look_again(self) -> None:
        """At what was found while the database was away."""
        for _ in range(len(self._waiting)):
            if self._waiting:
                await self._inspect(self._waiting.popleft())

    def _fresh(self, tenant: bytes, line: Line, answers: Sequence[Message]) -> Iterator[Message]:
        """Marks what it gives. One that was looked at vouches for all before it."""
        for answer in answers:
            if self._mark(child(tenant, line.tip, answer)):
                yield answer
        for node, message in zip(reversed(line.nodes), reversed(line.messages), strict=True):
            if not self._mark(node):
                return
            yield message

    def _mark(self, node: bytes) -> bool:
        if node in self._looked:
            return False
        self._looked.put(node, True)
        return True

    async def _inspect(self, said: Said) -> None:
        async with self._one:
            if sum(len(text) for message in said.messages for text in texts_of(message)) > THREAD_CHARS:
                findings = await asyncio.to_thread(self._findings, said.messages)
            else:
                findings = self._findings(said.messages)
            for number, finding in enumerate(findings):
                spoken = Spoken(said.turn, finding.message.digest)
                try:
                    await self._quarantine.found_said(said.place, finding.text, finding.found, spoken)
                except InvalidRequest as error:
                    log.warning("a finding cannot be kept", turn=said.turn, reason=str(error))
                except StoreError as error:
                    log.info("a finding waits for the database", turn=said.turn, reason=str(error))
                    rest = dict.fromkeys(finding.message for finding in findings[number:])
                    self._waiting.append(said._replace(messages=tuple(rest)))
                    return

    def _findings(self, messages: Sequence[Message]) -> list[Finding]:
        every = (Finding(text, self._in_windows(text), message) for message in messages for text in texts_of(message))
        return [finding for finding in every if finding.found]

    def _in_windows(self, text: str) -> Sequence[Found]:
        found: list[Found] = []
        for start in range(0, max(len(text) - OVERLAP_CHARS, 1), WINDOW_CHARS - OVERLAP_CHARS):
            found += self._detect(text[start : start + WINDOW_CHARS])
        return found


def texts_of(message: Message) -> Iterator[str]:
    """What a message says, and what it calls with."""
    if message.text:
        yield message.text
    yield from (call.arguments for call in message.calls)
