"""An answer in which the model may ask the memory: its calls are answered in further requests that no client sees.

A stream is relayed as it comes, without our calls; a plain answer is read whole first. Calls of ours beside those of
the client's own tools wait for the client's results: then all of them go upstream together.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from memory.manager import MemoryManager
from memory.messages import Message, ToolCall
from memory.prepared import Prepared
from memory.prompts import LAST_RECALL, NO_MORE_RECALLS, RECALL
from memory.recall import Recalled
from memory.types import Aside
from proxy.answer import header, is_stream
from proxy.errors import Unreachable, UpstreamCut, error_body
from proxy.exchange import Headers
from proxy.upstream import Reply, Sending
from proxy.wire.dialects import Dialect
from proxy.wire.encoding import Decoder, decoded
from proxy.wire.splice import Splice

MOST_ROUNDS = 3  # hidden requests for one answer; who asks once more gets another one, in which nothing can be called
FRAMING = frozenset((b"content-length", b"content-encoding"))


class Ways(NamedTuple):
    """How the memory and the upstream are asked."""

    recall: Callable[[Prepared, str, int], Awaitable[Recalled]]  # arguments, tokens
    send: Callable[[Prepared], Sending]


class Recall(msgspec.Struct, frozen=True):
    """A call as the turn's record tells it."""

    call: str
    asked: str
    found: bool
    seconds: float


class Recalling:
    """The upstream's answers to one question as one. Looks like a Reply; used once."""

    def __init__(self, memory: MemoryManager, prepared: Prepared, dialect: Dialect, reply: Reply, ways: Ways) -> None:
        self.status = reply.status
        self.headers: Headers = reply.headers
        self.recalls: list[Recall] = []
        self._memory = memory
        self._prepared = prepared
        self._dialect = dialect
        self._reply = reply
        self._ways = ways
        self._hidden: list[bytes] = []
        self._whole = False
        self._bodies: list[bytes] = []
        self._body: bytes | None = None  # of a plain answer
        self._cut: UpstreamCut | None = None

    async def settle(self) -> None:
        """Read a plain answer, and those that follow it; a stream is read while it is relayed.

        Raises:
            ProxyError: a request after the first one was not answered.
        """
        if is_stream(self.headers):
            self.headers = without(self.headers, FRAMING)
        else:
            await self._plain(self._reply, self._prepared)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body that the client sees.

        Raises:
            UpstreamCut: an answer broke off; what came of it was given out before.
        """
        if self._body is None:
            async for text in self._stream(self._reply, self._prepared, self._dialect.splice(RECALL), 0):
                yield text
            return
        yield self._body
        if self._cut is not None:
            raise self._cut

    @property
    def aside(self) -> Aside | None:
        """What was said before the answer; to be asked for at its end."""
        if not self._hidden:
            return None
        return self._memory.aside(self._prepared, self._hidden, self._whole, self._dialect.writing)

    async def _stream(self, reply: Reply, prepared: Prepared, splice: Splice, number: int) -> AsyncIterator[bytes]:
        listening, decoder = self._dialect.accumulator(), Decoder(header(reply.headers, b"content-encoding"))
        showed = splice.showed
        async for chunk in reply.chunks():
            text = decoder.feed(chunk)
            listening.feed(text)
            if ready := splice.feed(text):
                yield ready
            if listening.is_complete:
                break
        said = listening.finish()
        ended = said.terminal or any(said.finish_reasons)
        following = await self._following(said.messages if ended else (), prepared, number)
        if following is None:
            self._settle_on(said.messages, showed)
            yield splice.end()
            return
        splice.again()
        try:
            async with self._ways.send(following) as reply:
                if reply.status >= 400:
                    yield splice.failed((await whole(reply))[0])
                    return
                async for ready in self._stream(reply, following, splice, number + 1):
                    yield ready
        except Unreachable as error:
            yield splice.failed(error_body(error, self._dialect.errors)[1])

    async def _plain(self, reply: Reply, prepared: Prepared) -> None:
        number = len(self._bodies)
        self.status, self.headers = reply.status, reply.headers
        raw, self._cut = await whole(reply)
        is_answer = reply.status < 400 and self._cut is None
        text = decoded(raw, header(reply.headers, b"content-encoding")) if is_answer else None
        if text is None:  # what is none is the client's to see
            self._hidden.clear()
            self._body = raw
            return
        self._bodies.append(text)
        following = await self._following(self._dialect.completion_in(text).messages, prepared, number)
        if following is not None:
            async with self._ways.send(following) as reply:
                return await self._plain(reply, following)
        self._body = self._dialect.spliced(self._bodies, RECALL)
        if self._body is text:
            self._body = raw
        else:
            length = (b"content-length", b"%d" % len(self._body))
            self.headers = [*without(reply.headers, FRAMING), length]

    async def _following(self, answers: Sequence[Message], prepared: Prepared, number: int) -> Prepared | None:
        """The request that follows an answer, because all that it calls is our tool; None: it was the last."""
        said = answers[0] if answers else None
        calls = [call for call in said.calls if call.name == RECALL] if said else []
        if said is None or not calls:
            return None
        if len(calls) < len(said.calls):
            self._hidden += await self._answered(said, calls, prepared, 0)
            self._whole = True
            return None
        if number > MOST_ROUNDS:
            return None
        more = await self._answered(said, calls, prepared, number)
        following = self._memory.go_on(prepared, more, self._dialect.writing, may_call=number < MOST_ROUNDS)
        if following is not None:
            self._hidden += more
        return following

    async def _answered(
        self, said: Message, calls: Sequence[ToolCall], prepared: Prepared, number: int
    ) -> tuple[bytes, ...]:
        """An answer, and the results of its calls of ours."""
        writing = self._dialect.writing
        if number == MOST_ROUNDS:
            return (said.raw, *writing.results_json([(call.id, NO_MORE_RECALLS) for call in calls]))
        room = self._memory.room_to_recall(prepared, said.raw, len(calls), writing)
        found = await asyncio.gather(*(self._recalled(call, prepared, room) for call in calls))
        self.recalls += [told for told, _ in found]
        note = LAST_RECALL if number + 1 == MOST_ROUNDS else ""
        results = [(told.call, text + note) for told, text in found]
        return (said.raw, *writing.results_json(results))

    async def _recalled(self, call: ToolCall, prepared: Prepared, room: int) -> tuple[Recall, str]:
        began = time.perf_counter()
        found = await self._ways.recall(prepared, call.arguments, room)
        return Recall(call.id, found.asked, found.found, round(time.perf_counter() - began, 6)), found.text

    def _settle_on(self, answers: Sequence[Message], showed: bool) -> None:
        """The stream's last answer: where the client saw words before it, all is sent again as the model said it."""
        said = answers[0] if answers else None
        if not self._hidden or self._whole or not showed or said is None:
            return
        if all(call.name != RECALL for call in said.calls):  # a call that was not answered cannot be sent again
            self._hidden.append(said.raw)
            self._whole = True


async def whole(reply: Reply) -> tuple[bytes, UpstreamCut | None]:
    """All of a body, and how it broke off, if it did."""
    came = bytearray()
    try:
        async for chunk in reply.chunks():
            came += chunk
    except UpstreamCut as error:
        return bytes(came), error
    return bytes(came), None


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in names]
