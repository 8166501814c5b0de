"""The managed endpoints: the whole way of a request, in order, whatever dialect it speaks."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from memory.prepared import Caller, Prepared
from memory.recall import UNANSWERED, Recalled
from memory.told import overflow_in_error
from memory.types import Mode
from proxy.answer import Heard, answer_for, header
from proxy.attempt import Attempt
from proxy.errors import ClientGone, ProxyError, Unreachable, UpstreamCut
from proxy.exchange import Exchange, Headers, while_client_stays
from proxy.parts import Parts, fail_open
from proxy.recalling import Recalling, Ways
from proxy.relay import relay
from proxy.tenants import session_label, tenant_of
from proxy.upstream import Reply, Sending
from proxy.upstreams import REFUSING, Question, Way
from proxy.wire.dialects import Dialect
from proxy.wire.encoding import decoded

log = structlog.get_logger()

OFF = frozenset((b"off", b"false", b"no", b"0"))  # privacy does not hang on a spelling
LARGE_BYTES = 256 * 1024  # from here on a body is parsed in a thread, so that it stalls nobody
UNTAKEN = frozenset((400, 422))  # what a provider says to a tool that it does not take
ERROR_BYTES = 64 * 1024  # of a refusal are read to see whether the prompt was too long


async def managed(parts: Parts, exchange: Exchange, dialect: Dialect) -> None:
    """One request: read, prepare, forward, relay, record. Errors of ours before the first byte are answered."""
    try:
        exchange.check()
        body = await exchange.body(parts.config.max_body_mib * 1024 * 1024)
        if exchange.method != "POST":
            return await send_on(parts.upstreams.unmanaged(exchange), exchange, body)
        await while_client_stays(exchange, converse(parts, exchange, body, dialect))
    except ClientGone:
        log.info("client left")
    except UpstreamCut as error:
        log.warning("upstream cut the answer", reason=str(error))
    except ProxyError as error:
        log.warning("refused", reason=str(error))
        await exchange.refuse(error, dialect=dialect.errors)


def memory_is_off(parts: Parts, exchange: Exchange) -> bool:
    given = exchange.header(b"x-infold-memory")
    if given is None or given.strip().lower() not in OFF:
        return False
    parts.metrics.passed_through.labels("off").inc()
    return True


async def converse(parts: Parts, exchange: Exchange, body: bytes, dialect: Dialect) -> None:
    """The way of a request that memory may look at."""
    started = time.perf_counter()
    question = await understood(parts, exchange, body, dialect)
    way = parts.upstreams.managed(exchange, question, dialect)
    if memory_is_off(parts, exchange):
        return await send_on(way, exchange, way.question.body)
    caller = caller_of(parts, exchange, way)
    if caller is None:
        return await relay_without_memory(parts, exchange, way, dialect)
    asked = way.question.asked
    if asked is not None and parts.windows.wants(asked.model, way.upstream):
        parts.later(parts.windows.ask(way.upstream, way.headers))
    prepared = await fail_open(parts, prepare(parts, caller, way, dialect), None)
    parts.metrics.prepare.observe(time.perf_counter() - started)
    if prepared is None:
        return await relay_without_memory(parts, exchange, way, dialect)
    await Conversation(parts, exchange, question, way, dialect, started).run(prepared)


async def send_on(way: Way, exchange: Exchange, body: bytes | None, notes: Headers = ()) -> None:
    await relay(way.upstream, exchange, body, notes, way.headers, way.query)


async def relay_without_memory(parts: Parts, exchange: Exchange, way: Way, dialect: Dialect) -> None:
    """Nobody's memory, or none at hand: the client's bytes if they fit, else as much of their end as does."""
    parts.metrics.turns.labels("unrecorded").inc()
    shorter = await fail_open(parts, squeeze(parts, way, dialect), None)
    notes = [(b"x-infold-mode", Mode.DEGRADED.encode())]
    if shorter is not None:
        way = replace(way, headers=[pair for pair in way.headers if pair[0] != b"content-encoding"])
    await send_on(way, exchange, way.question.body if shorter is None else shorter, notes)


async def squeeze(parts: Parts, way: Way, dialect: Dialect) -> bytes | None:
    asked = way.question.asked
    return parts.memory.squeeze(asked, dialect.writing, way.upstream.base_url) if asked is not None else None


# Who asks, and what.


async def understood(parts: Parts, exchange: Exchange, body: bytes, dialect: Dialect) -> Question:
    """The request as we understand it; an odd body is forwarded and recorded as it came."""
    encoding = exchange.header(b"content-encoding")

    def parse() -> Question:
        most = parts.config.max_body_mib * 1024 * 1024
        text = decoded(body, encoding.decode("latin-1") if encoding else None, most)
        return Question(body, text, parts.parser(dialect).parse(text) if text is not None else None)

    if len(body) < LARGE_BYTES and encoding is None:
        return parse()
    async with parts.parsing:  # one at a time, so that threads do not fight over one parser
        return await asyncio.to_thread(parse)


def caller_of(parts: Parts, exchange: Exchange, way: Way) -> Caller | None:
    """Whose memory this is; None where that is not certain."""
    if parts.pepper is None:
        return None
    tenant = tenant_of(exchange.headers, parts.pepper, parts.config.is_loopback)
    if tenant is None:
        return None
    given = exchange.header(b"x-session-id")
    label = session_label(given)
    if given is not None and label is None:
        parts.metrics.ignored_sessions.inc()
    return Caller(tenant, label, way.upstream.base_url)


async def prepare(parts: Parts, caller: Caller, way: Way, dialect: Dialect) -> Prepared:
    """Plan the context; an odd body is forwarded and recorded as it came."""
    if way.question.asked is None:
        return parts.memory.odd(caller, way.question.body)
    return await parts.memory.prepare(caller, way.question.asked, dialect.writing)


class Again(NamedTuple):
    """What goes out in place of a request that was refused, and why that was."""

    prepared: Prepared
    way: Way
    reason: str
    status: int | None
    may_retry: bool


class Conversation:
    """One managed request's talk with the upstream. Holds what its steps share; used once."""

    def __init__(
        self, parts: Parts, exchange: Exchange, question: Question, way: Way, dialect: Dialect, started: float
    ) -> None:
        self._parts = parts
        self._exchange = exchange
        self._question = question  # as the client asked it
        self._way = way
        self._dialect = dialect
        self._started = started
        self._bare: Prepared | None = None  # what goes out without our tool, in place of a refused request

    async def run(self, prepared: Prepared, may_retry: bool = True) -> None:
        """Forward, relay, record. What is refused may be sent once more: compacted if it was too long, elsewhere if
        the upstream has a fallback."""
        attempt = Attempt(self._parts, prepared, self._way, self._started)
        await attempt.open()
        try:
            async with self._send(prepared) as reply:
                attempt.answered(prepared, reply.status)
                again = await self._again(attempt, reply, may_retry) if reply.status >= 400 else None
                if not isinstance(again, Again):
                    answer = await self._heard(attempt, reply)
                    return await self._relay(attempt, answer, refusal=again)
        except ProxyError as error:
            if attempt.first_byte is not None or isinstance(error, ClientGone):
                raise
            unsent = isinstance(error, Unreachable) and error.should_retry
            elsewhere = await self._elsewhere(prepared, str(error), None) if unsent else None
            if elsewhere is None:
                await attempt.end("failed", partial(Heard, error=str(error)), None)
                raise
            again = elsewhere
        await attempt.end("failed", partial(Heard, error=again.reason), again.status)
        self._way = again.way
        await self.run(again.prepared, again.may_retry)

    def _send(self, prepared: Prepared) -> Sending:
        """The client's headers; without its content encoding where the body is ours, and asking for an answer that we
        can read where the model may ask the memory."""
        way, headers = self._way, self._way.headers
        body = way.question.body if prepared.is_untouched else prepared.body
        if not prepared.is_untouched:
            headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        if prepared.offer is not None:
            headers = [(name, b"identity" if name == b"accept-encoding" else value) for name, value in headers]
        return way.upstream.send(self._exchange.method, self._exchange.path, way.query, headers, body)

    async def _heard(self, attempt: Attempt, reply: Reply) -> Reply | Recalling:
        """The answer as the client will see it."""
        prepared, tool = attempt.prepared, self._parts.memory.recall_tool
        if prepared is self._bare and reply.status < 400:
            tool.withhold(prepared)
            log.warning("this model gets no recall tool any more", model=prepared.asked.model, upstream=self._way.name)
        if prepared.offer is None or reply.status >= 400:
            return reply
        ways = Ways(self._recall, self._send, attempt.answered)
        attempt.recalling = Recalling(tool, prepared, self._dialect, reply, ways)
        try:
            await attempt.recalling.settle()
        except asyncio.CancelledError:  # the client left
            self._parts.later(attempt.end("partial", Heard, reply.status))
            raise
        return attempt.recalling

    async def _recall(self, prepared: Prepared, arguments: str, room: int) -> Recalled:
        answering = self._parts.memory.recall_tool.answer(prepared, arguments, room)
        recalled = await fail_open(self._parts, answering, UNANSWERED)
        self._parts.metrics.recalls.labels("yes" if recalled.found else "no").inc()
        return recalled

    async def _again(self, attempt: Attempt, reply: Reply, may_retry: bool) -> "Again | bytes | None":
        """For a refusal: what goes out in its place; else its body, as far as it was read."""
        prepared = attempt.prepared
        if reply.status in REFUSING:
            elsewhere = await self._elsewhere(prepared, f"the upstream answered {reply.status}", reply.status)
            if elsewhere is not None:
                return elsewhere
        shorter = await self._shorter(attempt, reply) if may_retry else None
        if isinstance(shorter, Again) or prepared.offer is None or reply.status not in UNTAKEN:
            return shorter
        self._bare = self._parts.memory.recall_tool.without(prepared, self._dialect.writing)
        return Again(self._bare, self._way, "refused, perhaps for our tool", reply.status, may_retry=False)

    async def _elsewhere(self, prepared: Prepared, reason: str, status: int | None) -> Again | None:
        """The request for the fallback of its upstream, planned anew: another model has another window."""
        way = self._parts.upstreams.instead(self._way, self._exchange, self._question, self._dialect)
        if way is None:
            return None
        caller = replace(prepared.caller, upstream=way.upstream.base_url)
        planned = await fail_open(self._parts, prepare(self._parts, caller, way, self._dialect), None)
        if planned is None:
            return None
        log.warning("falling back", upstream=self._way.name, to=way.instead, reason=reason)
        self._parts.metrics.fallbacks.labels(self._way.name, way.name).inc()
        return Again(planned, way, reason, status, may_retry=True)

    async def _shorter(self, attempt: Attempt, reply: Reply) -> Again | bytes:
        """For a refusal: the request once more and shorter, if it was too long; else the refusal's body, read."""
        refusal = await read_some(reply)
        text = decoded(refusal, header(reply.headers, b"content-encoding"))
        overflow = overflow_in_error(reply.status, text) if text is not None else None
        if overflow is None:
            return refusal
        attempt.learn(overflow)
        planning = prepare(self._parts, attempt.prepared.caller, self._way, self._dialect)
        again = await fail_open(self._parts, planning, None)
        if again is None or again.is_untouched or again.body == attempt.prepared.body:
            return refusal
        return Again(again, self._way, "context_length_exceeded", 400, may_retry=False)

    async def _relay(self, attempt: Attempt, reply: Reply | Recalling, refusal: bytes | None) -> None:
        """Pass bytes on as they come; the terminal ones wait until the turn is safe."""
        exchange, answer, recorded = self._exchange, answer_for(reply.headers, self._dialect), False
        headers = [*reply.headers, *await attempt.notes()]
        attempt.first_byte = time.perf_counter()
        try:
            if has_no_body(exchange.method, reply):
                recorded = True
                await attempt.end(status_of(reply), answer.heard, reply.status)
            await exchange.start(reply.status, headers)
            async with aclosing(chunks(reply, refusal)) as body:
                async for chunk in body:
                    if ready := answer.feed(chunk):
                        await exchange.send(ready)
                    if answer.is_terminal and not recorded:
                        recorded = True
                        await attempt.end(status_of(reply), answer.heard, reply.status)
                        attempt.report(reply.status)
                        await exchange.send(answer.held)
            if not recorded:
                recorded = True
                await attempt.end(status_of(reply), answer.heard, reply.status)
            attempt.report(reply.status)
            await exchange.send(b"" if answer.is_terminal else answer.held, more=False)
        except UpstreamCut:
            recorded = True
            await attempt.end("partial", answer.heard, reply.status)
            if answer.held:
                await exchange.send(answer.held)
            raise
        finally:
            if not recorded:  # the client left, and took this task with it
                self._parts.later(attempt.end("partial", answer.heard, reply.status))
            attempt.report(reply.status)


def status_of(reply: Reply | Recalling) -> str:
    is_broken = isinstance(reply, Recalling) and reply.is_broken
    return "answered" if reply.status < 400 and not is_broken else "failed"


def has_no_body(method: str, reply: Reply | Recalling) -> bool:
    return method == "HEAD" or reply.status in (204, 304) or header(reply.headers, b"content-length") == "0"


async def chunks(reply: Reply | Recalling, read: bytes | None) -> AsyncGenerator[bytes, None]:
    """A reply's body, of which the beginning may have been read."""
    if read:
        yield read
    async with aclosing(reply.chunks()) as rest:
        async for chunk in rest:
            yield chunk


async def read_some(reply: Reply) -> bytes:
    """A refusal's body, up to ERROR_BYTES and whatever its framing; the rest can still be read from the reply."""
    parts, size = [], 0
    async for chunk in reply.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size > ERROR_BYTES:
            break
    return b"".join(parts)
