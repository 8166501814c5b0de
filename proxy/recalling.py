"""An answer in which the model may ask the memory: its calls are answered in further requests that no client sees.

A stream is relayed as it comes, without our calls; a plain answer is read whole first. Calls of ours beside those of
the client's own tools wait for the client's results: then all of them go upstream together.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

import msgspec

from memory.messages import Message, ToolCall
from memory.prepared import Prepared
from memory.prompts import LAST_RECALL, NO_MORE_RECALLS, RECALL, TOO_MANY_RECALLS
from memory.recall import Recalled
from memory.recall_tool import RecallTool
from memory.types import Aside, Usage
from proxy.answer import PLAIN_BYTES, header, is_stream
from proxy.errors import Unreachable, UpstreamCut, error_body
from proxy.exchange import Headers
from proxy.upstream import Reply, Sending
from proxy.wire.dialects import Dialect
from proxy.wire.encoding import Decoder, decoded
from proxy.wire.splice import Splice

MOST_ROUNDS = 3  # hidden requests for one answer; who asks once more gets another one, in which nothing can be called
MOST_CALLS = 8  # in one answer
LINGER_SECONDS = 0.5  # for the rest of a stream that has told its end
FRAMING = frozenset((b"content-length", b"content-encoding"))
CUT_SHORT = frozenset(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"))
NOT_TAKEN = frozenset((400, 404, 413, 422))  # a hidden request may be refused where the one before it was not


class Ways(NamedTuple):
    """How the memory and the upstream are asked."""

    recall: Callable[[Prepared, str, int], Awaitable[Recalled]]  # arguments, tokens
    send: Callable[[Prepared], Sending]
    answered: Callable[[Prepared, int], None]  # is told of each answer, with its status


class Recall(msgspec.Struct, frozen=True):
    """A call as the turn's record tells it."""

    call: str
    asked: str
    found: bool
    seconds: float
    tokens: int  # brought back
    ids: tuple[str, ...]  # of the messages and notes among them
    reason: str | None  # why nothing was found


class Said(NamedTuple):
    """One of the upstream's answers."""

    message: Message | None
    finish_reasons: Sequence[str | None] = ()

    @property
    def asks(self) -> Sequence[ToolCall]:
        """Calls of our tool; none where they may have broken off."""
        if self.message is None or not CUT_SHORT.isdisjoint(self.finish_reasons):
            return ()
        return [call for call in self.message.calls if call.name == RECALL]


class Next(NamedTuple):
    """The request that follows an answer."""

    prepared: Prepared
    number: int


class Recalling:
    """The upstream's answers to one question as one. Looks like a Reply; used once."""

    def __init__(self, tool: RecallTool, prepared: Prepared, dialect: Dialect, reply: Reply, ways: Ways) -> None:
        self.status = reply.status
        self.headers: Headers = reply.headers
        self.recalls: list[Recall] = []
        self.usages: list[Usage] = []  # of the answers that told one
        self.is_broken = False  # a stream ended with a refusal
        self._tool = tool
        self._prepared = prepared
        self._dialect = dialect
        self._reply = reply
        self._ways = ways
        self._hidden: list[bytes] = []
        self._whole = False
        self._bodies: list[bytes] = []
        self._body: bytes | None = None  # of a plain answer
        self._is_open = False  # it was too large to be read whole: more of it comes
        self._cut: UpstreamCut | None = None

    async def settle(self) -> None:
        """Read a plain answer, and those that follow it; a stream is read while it is relayed.

        Raises:
            ProxyError: a request after the first one was not answered.
        """
        if is_stream(self.headers):
            self.headers = without(self.headers, FRAMING)
        else:
            await self._plain(self._reply, Next(self._prepared, 0))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body that the client sees.

        Raises:
            UpstreamCut: an answer broke off; what came of it was given out before.
        """
        if self._body is not None:
            yield self._body
        if self._cut is not None:
            raise self._cut
        if self._body is not None and not self._is_open:
            return
        splice = self._dialect.splice(RECALL)
        rest = self._reply.chunks() if self._is_open else self._stream(self._reply, Next(self._prepared, 0), splice)
        async with aclosing(rest) as told:
            async for text in told:
                yield text

    @property
    def aside(self) -> Aside | None:
        """What was said before the answer; to be asked for at its end."""
        if not self._hidden:
            return None
        return self._tool.aside(self._prepared, self._hidden, self._whole, self._dialect.writing)

    async def _stream(self, reply: Reply, now: Next, splice: Splice) -> AsyncGenerator[bytes, None]:
        listening, decoder = self._dialect.accumulator(), Decoder(header(reply.headers, b"content-encoding"))
        showed = splice.showed
        try:
            async with aclosing(to_the_end(reply, lambda: listening.is_complete)) as body:
                async for chunk in body:
                    text = decoder.feed(chunk)
                    if decoder.opaque:
                        raise UpstreamCut("The upstream's answer cannot be decoded.")
                    listening.feed(text)
                    if ready := splice.feed(text):
                        yield ready
        except UpstreamCut:
            if not listening.is_complete:
                if held := splice.cut():
                    yield held
                raise
        told = listening.finish()
        self._count(told.usage)
        ended = told.terminal or any(told.finish_reasons)
        said = Said(next(iter(told.messages), None), told.finish_reasons)
        following = await self._following(said, now) if ended else None
        if following is None:
            self._settle_on(said, showed)
            yield splice.end()
            return
        splice.again()
        try:
            async with self._answer_to(following, now) as (reply, now):
                if reply.status >= 400:
                    self.is_broken = True
                    yield splice.failed((await whole(reply)).body)
                    return
                async with aclosing(self._stream(reply, now, splice)) as rest:
                    async for ready in rest:
                        yield ready
        except Unreachable as error:
            self.is_broken = True
            yield splice.failed(error_body(error, self._dialect.errors)[1])

    async def _plain(self, reply: Reply, now: Next) -> None:
        self.status, self.headers = reply.status, reply.headers
        read = await whole(reply, PLAIN_BYTES if reply is self._reply else None)
        raw, self._cut, self._is_open = read
        is_answer = reply.status < 400 and self._cut is None and not self._is_open
        text = decoded(raw, header(reply.headers, b"content-encoding")) if is_answer else None
        if text is None:  # what is none is the client's to see
            self._hidden.clear()
            self._body = raw
            return
        self._bodies.append(text)
        told = self._dialect.completion_in(text)
        self._count(told.usage)
        following = await self._following(Said(next(iter(told.messages), None), told.finish_reasons), now)
        if following is not None:
            async with self._answer_to(following, now) as (reply, now):
                return await self._plain(reply, now)
        self._body = self._dialect.spliced(self._bodies, RECALL)
        if self._body is text:
            self._body = raw
        else:
            length = (b"content-length", b"%d" % len(self._body))
            self.headers = [*without(reply.headers, FRAMING), length]

    async def _following(self, said: Said, now: Next) -> Next | None:
        """The request that follows an answer, because all that it calls is our tool; None: it was the last."""
        calls, message = said.asks, said.message
        if message is None or not calls or now.prepared.offer is None:
            return None
        if len(calls) < len(message.calls):
            self._hidden += await self._answered(message, calls, Next(now.prepared, 0))
            self._whole = True
            return None
        if now.number > MOST_ROUNDS:  # it was to answer in words: not every server heeds that
            self._hidden.clear()
            return Next(self._tool.without(self._prepared, self._dialect.writing), now.number + 1)
        more, writing = await self._answered(message, calls, now), self._dialect.writing
        following = self._tool.go_on(now.prepared, more, writing, may_call=now.number < MOST_ROUNDS)
        if following is None:
            return self._in_words(now)
        self._hidden += more
        return Next(following, now.number + 1)

    def _in_words(self, now: Next) -> Next:
        """The same request once more, to be answered without a call; it fits, for it did."""
        again = self._tool.go_on(now.prepared, (), self._dialect.writing, may_call=False)
        return Next(again or now.prepared, MOST_ROUNDS + 1)

    @asynccontextmanager
    async def _answer_to(self, following: Next, before: Next) -> AsyncIterator[tuple[Reply, Next]]:
        """The answer to a hidden request; where the provider does not take that, to the one before it, in words."""
        known = self._hidden_in(before)
        async with self._ways.send(following.prepared) as reply:
            self._ways.answered(following.prepared, reply.status)
            if reply.status not in NOT_TAKEN or self._hidden_in(following) <= known:
                yield reply, following
                return
        del self._hidden[known:]
        words = self._in_words(before)
        async with self._ways.send(words.prepared) as reply:
            self._ways.answered(words.prepared, reply.status)
            yield reply, words

    def _hidden_in(self, now: Next) -> int:
        """How many messages a request has more than the first one."""
        first, offer = self._prepared.offer, now.prepared.offer
        return len(offer.messages) - len(first.messages) if first is not None and offer is not None else 0

    async def _answered(self, said: Message, calls: Sequence[ToolCall], now: Next) -> tuple[bytes, ...]:
        """An answer, and the results of its calls of ours."""
        writing = self._dialect.writing
        if now.number == MOST_ROUNDS:
            return (said.raw, *writing.results_json([(call.id, NO_MORE_RECALLS) for call in calls]))
        room = self._tool.room(now.prepared, said.raw, len(calls[:MOST_CALLS]), writing)
        found = await asyncio.gather(*(self._recalled(call, now.prepared, room) for call in calls[:MOST_CALLS]))
        self.recalls += [told for told, _ in found]
        note = LAST_RECALL if now.number + 1 == MOST_ROUNDS else ""
        results = [(told.call, text + note) for told, text in found]
        results += [(call.id, TOO_MANY_RECALLS) for call in calls[MOST_CALLS:]]
        return (said.raw, *writing.results_json(results))

    async def _recalled(self, call: ToolCall, prepared: Prepared, room: int) -> tuple[Recall, str]:
        began = time.perf_counter()
        found = await self._ways.recall(prepared, call.arguments, room)
        seconds = round(time.perf_counter() - began, 6)
        return Recall(call.id, found.asked, found.found, seconds, found.tokens, found.ids, found.lack), found.text

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self.usages.append(usage)

    def _settle_on(self, said: Said, showed: bool) -> None:
        """The stream's last answer: where the client saw words before it, all is sent again as the model said it."""
        if not self._hidden or self._whole or not showed or said.message is None:
            return
        if all(call.name != RECALL for call in said.message.calls):  # one without its result cannot be sent again
            self._hidden.append(said.message.raw)
            self._whole = True


class Read(NamedTuple):
    """What came of a body."""

    body: bytes
    cut: UpstreamCut | None = None  # how it broke off
    is_open: bool = False  # more comes


async def whole(reply: Reply, most: int | None = None) -> Read:
    """All of a body, or as much of it as is over `most` bytes; the rest can still be read from the reply."""
    came = bytearray()
    try:
        async for chunk in reply.chunks():
            came += chunk
            if most is not None and len(came) > most:
                return Read(bytes(came), is_open=True)
    except UpstreamCut as error:
        return Read(bytes(came), error)
    return Read(bytes(came))


async def to_the_end(reply: Reply, is_told: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """A stream's chunks; what follows its last event is not waited for long."""
    async with aclosing(reply.chunks()) as chunks:
        while True:
            try:
                async with asyncio.timeout(LINGER_SECONDS if is_told() else None):
                    chunk = await anext(chunks)
            except (StopAsyncIteration, TimeoutError):
                return
            yield chunk


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in names]
