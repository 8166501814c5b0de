"""The managed endpoints: the whole way of a request, in order, whatever dialect it speaks."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog

from memory.identify import place
from memory.manager import MemoryManager
from memory.messages import ChatRequest
from memory.nouns import utc_now
from memory.prepared import Caller, Prepared
from memory.recorder import Ended, Kept, Opening, Recorder
from memory.store.pool import Pool
from memory.told import Overflow, overflow_in_error
from memory.types import Mode
from memory.whole import Memory
from proxy.answer import Heard, answer_for, header
from proxy.config import Config
from proxy.errors import ClientGone, ProxyError, UpstreamCut
from proxy.exchange import Exchange, Headers, while_client_stays
from proxy.metrics import Metrics
from proxy.relay import relay
from proxy.tenants import KEY_HEADERS, session_label, tenant_of
from proxy.upstream import Reply, Upstream
from proxy.windows import Windows
from proxy.wire.dialects import Dialect
from proxy.wire.encoding import decoded
from proxy.wire.parser import Parser

log = structlog.get_logger()

T = TypeVar("T")

OFF = frozenset((b"off", b"false", b"no", b"0"))  # privacy does not hang on a spelling
LARGE_BYTES = 256 * 1024  # from here on a body is parsed in a thread, so that it stalls nobody
LOOK_AFTER_SECONDS = 0.05  # a turn was recorded, so that its last bytes are gone before
ERROR_BYTES = 64 * 1024  # of a refusal are read to see whether the prompt was too long


@dataclass(slots=True)
class Parts:
    """What `app.py` wired together."""

    config: Config
    memory: MemoryManager
    upstream: Upstream
    windows: Windows
    metrics: Metrics
    pool: Pool
    recorder: Recorder
    pepper: bytes | None = field(default=None, repr=False)  # None: the database has not been reached yet
    whole: Memory | None = None  # what programs do with the memory; None: the database has not been reached yet
    listeners: set[object] = field(default_factory=set)  # open streams of events
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    parsers: dict[str, Parser] = field(default_factory=dict)  # by dialect
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def parser(self, dialect: Dialect) -> Parser:
        found = self.parsers.get(dialect.shape.dialect)
        if found is None:
            found = self.parsers[dialect.shape.dialect] = Parser(dialect.shape)
        return found

    def later(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run something beside the request; the end of the program waits for it."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task


async def managed(parts: Parts, exchange: Exchange, dialect: Dialect) -> None:
    """One request: read, prepare, forward, relay, record. Errors of ours before the first byte are answered."""
    try:
        exchange.check()
        body = await exchange.body(parts.config.max_body_mib * 1024 * 1024)
        if exchange.method != "POST" or memory_is_off(parts, exchange):
            return await relay(parts.upstream, exchange, body, headers=lent(parts, exchange.headers))
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
    asked = await understood(parts, exchange, body, dialect)
    caller = caller_of(parts, exchange)
    if caller is None:
        return await relay_without_memory(parts, exchange, asked, body, dialect)
    if asked is not None and parts.windows.wants(asked.model):
        parts.later(parts.windows.ask(lent(parts, exchange.headers)))
    prepared = await fail_open(parts, prepare(parts, caller, asked, body, dialect), None)
    parts.metrics.prepare.observe(time.perf_counter() - started)
    if prepared is None:
        return await relay_without_memory(parts, exchange, asked, body, dialect)
    await Conversation(parts, exchange, body, dialect, started).run(prepared)


async def relay_without_memory(
    parts: Parts, exchange: Exchange, asked: ChatRequest | None, body: bytes, dialect: Dialect
) -> None:
    """Nobody's memory, or none at hand: the client's bytes if they fit, else as much of their end as does."""
    parts.metrics.turns.labels("unrecorded").inc()
    shorter = await fail_open(parts, squeeze(parts, asked, dialect), None)
    notes = [(b"x-infold-mode", Mode.DEGRADED.encode())]
    if shorter is None:
        return await relay(parts.upstream, exchange, body, notes, lent(parts, exchange.headers))
    headers = [pair for pair in exchange.headers if pair[0] != b"content-encoding"]
    await relay(parts.upstream, exchange, shorter, notes, lent(parts, headers))


async def squeeze(parts: Parts, asked: ChatRequest | None, dialect: Dialect) -> bytes | None:
    return parts.memory.squeeze(asked, dialect.writing, parts.upstream.base_url) if asked is not None else None


async def fail_open(parts: Parts, work: Awaitable[T], otherwise: T) -> T:
    """What memory gives; `otherwise` when it failed. A bug of ours never becomes the user's failure."""
    try:
        return await work
    except Exception as error:  # the one broad except in the house: we fail open, here only
        parts.metrics.passed_through.labels(type(error).__name__).inc()
        log.exception("going on without memory")
        return otherwise


# Who asks, and what.


async def understood(parts: Parts, exchange: Exchange, body: bytes, dialect: Dialect) -> ChatRequest | None:
    """The request as we understand it; None for an odd body, which is forwarded and recorded as it came."""
    encoding = exchange.header(b"content-encoding")

    def parse() -> ChatRequest | None:
        most = parts.config.max_body_mib * 1024 * 1024
        text = decoded(body, encoding.decode("latin-1") if encoding else None, most)
        return parts.parser(dialect).parse(text) if text is not None else None

    if len(body) < LARGE_BYTES and encoding is None:
        return parse()
    async with parts.parsing:  # one at a time, so that threads do not fight over one parser
        return await asyncio.to_thread(parse)


def caller_of(parts: Parts, exchange: Exchange) -> Caller | None:
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
    return Caller(tenant, label, parts.upstream.base_url)


async def prepare(parts: Parts, caller: Caller, asked: ChatRequest | None, body: bytes, dialect: Dialect) -> Prepared:
    """Plan the context; an odd body is forwarded and recorded as it came."""
    if asked is None:
        return parts.memory.odd(caller, body)
    return await parts.memory.prepare(caller, asked, dialect.writing)


class Conversation:
    """One managed request's talk with the upstream. Holds what its steps share; used once."""

    def __init__(self, parts: Parts, exchange: Exchange, body: bytes, dialect: Dialect, started: float) -> None:
        self._parts = parts
        self._exchange = exchange
        self._body = body
        self._dialect = dialect
        self._started = started
        self._first_byte: float | None = None

    async def run(self, prepared: Prepared, may_retry: bool = True) -> None:
        """Forward, relay, record. A prompt that the provider finds too long is sent once more, compacted."""
        opening = await fail_open(self._parts, self._open(prepared), None)
        headers = self._headers(prepared)
        method, path, query = self._exchange.method, self._exchange.path, self._exchange.query
        body = self._body if prepared.is_untouched else prepared.body
        try:
            async with self._parts.upstream.send(method, path, query, headers, body) as reply:
                shorter = await self._shorter(prepared, reply) if may_retry and reply.status >= 400 else None
                if not isinstance(shorter, Prepared):
                    return await self._relay(prepared, opening, reply, refusal=shorter)
        except ProxyError as error:
            if self._first_byte is None and not isinstance(error, ClientGone):
                await self._record(prepared, opening, "failed", partial(Heard, error=str(error)), None)
            raise
        too_long = partial(Heard, error="context_length_exceeded")
        await self._record(prepared, opening, "failed", too_long, 400)
        await self.run(shorter, may_retry=False)

    def _headers(self, prepared: Prepared) -> Headers:
        """The client's; without its content encoding where the body is ours. A local client may borrow our key."""
        headers = self._exchange.headers
        if not prepared.is_untouched:
            headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        return lent(self._parts, headers)

    async def _shorter(self, prepared: Prepared, reply: Reply) -> "Prepared | bytes | None":
        """For a refusal: the request once more and shorter, if it was too long; else the refusal's body, read."""
        refusal = await read_some(reply)
        text = decoded(refusal, header(reply.headers, b"content-encoding"))
        overflow = overflow_in_error(reply.status, text) if text is not None else None
        if overflow is None:
            return refusal
        learn(self._parts, prepared, overflow)
        planning = prepare(self._parts, prepared.caller, prepared.asked, self._body, self._dialect)
        again = await fail_open(self._parts, planning, None)
        fits = again is not None and not again.is_untouched and again.body != prepared.body
        return again if fits and again is not None else refusal

    async def _relay(self, prepared: Prepared, opening: Opening | None, reply: Reply, refusal: bytes | None) -> None:
        """Pass bytes on as they come; the terminal ones wait until the turn is safe."""
        exchange, answer, recorded = self._exchange, answer_for(reply, self._dialect), False
        headers = [*reply.headers, *await fail_open(self._parts, self._notes(prepared), ())]
        self._first_byte = time.perf_counter()
        try:
            if has_no_body(exchange.method, reply):
                recorded = True
                await self._record(prepared, opening, status_of(reply), answer.heard, reply.status)
            await exchange.start(reply.status, headers)
            async for chunk in chunks(reply, refusal):
                if ready := answer.feed(chunk):
                    await exchange.send(ready)
                if answer.is_terminal and not recorded:
                    recorded = True
                    await self._record(prepared, opening, status_of(reply), answer.heard, reply.status)
                    await exchange.send(answer.held)
            if not recorded:
                recorded = True
                await self._record(prepared, opening, status_of(reply), answer.heard, reply.status)
            await exchange.send(b"" if answer.is_terminal else answer.held, more=False)
        except UpstreamCut:
            recorded = True
            await self._record(prepared, opening, "partial", answer.heard, reply.status)
            if answer.held:
                await exchange.send(answer.held)
            raise
        finally:
            if not recorded:  # the client left, and took this task with it
                self._parts.later(self._record(prepared, opening, "partial", answer.heard, reply.status))
            self._report(prepared, reply)

    async def _notes(self, prepared: Prepared) -> Headers:
        """Our own headers on the answer."""
        notes = [
            (b"x-infold-session", self._parts.memory.session(prepared).encode()),
            (b"x-infold-turn", prepared.turn_id.encode()),
            (b"x-infold-mode", prepared.mode.encode()),
        ]
        if prepared.asked_tokens is not None:
            notes.append((b"x-infold-tokens", b"%d/%d" % (prepared.asked_tokens, prepared.forwarded_tokens or 0)))
        if prepared.block_tokens:
            notes.append((b"x-infold-block-tokens", b"%d" % prepared.block_tokens))
        if prepared.saved_usd is not None:
            notes.append((b"x-infold-saved-usd", b"%.6f" % prepared.saved_usd))
        return notes

    async def _open(self, prepared: Prepared) -> Opening:
        return self._parts.memory.open(prepared)

    async def _hear(self, prepared: Prepared, said: Callable[[], Heard], code: int | None) -> Heard:
        """What an answer says. A stream may refuse a prompt: too late to ask again, not to learn from it."""
        heard = said()
        told = heard.error.encode("utf-8", "replace") if heard.error and code is not None and code < 400 else b""
        overflow = overflow_in_error(400, told)
        if overflow is not None:
            learn(self._parts, prepared, overflow)
        return heard

    async def _close(self, prepared: Prepared, opening: Opening | None, ended: Ended) -> None:
        kept = await fail_open(self._parts, self._keep(prepared, opening, ended), Kept.UNRECORDED)
        await fail_open(self._parts, self._spend(prepared, ended), None)
        self._parts.metrics.turns.labels(kept).inc()
        if self._parts.whole is not None and self._parts.whole.lookout.is_on:
            self._parts.later(fail_open(self._parts, self._look(self._parts.whole, prepared, ended), None))

    async def _keep(self, prepared: Prepared, opening: Opening | None, ended: Ended) -> Kept:
        return await self._parts.memory.record(prepared, opening, ended)

    async def _spend(self, prepared: Prepared, ended: Ended) -> None:
        spent = self._parts.memory.spend(prepared, ended, utc_now())
        if spent is not None and ended.usage is not None:
            self._parts.metrics.spent(spent)

    async def _look(self, whole: Memory, prepared: Prepared, ended: Ended) -> None:
        """Look for keys in what was said; the answer's end goes out first."""
        await asyncio.sleep(LOOK_AFTER_SECONDS)
        caller = prepared.caller
        await whole.lookout.look(place(caller.tenant, caller.label), prepared.line, ended.answers)

    async def _record(
        self, prepared: Prepared, opening: Opening | None, status: str, said: Callable[[], Heard], code: int | None
    ) -> None:
        """Make the turn safe. Runs to its end even when the client leaves meanwhile."""
        now = time.perf_counter()
        heard = await fail_open(self._parts, self._hear(prepared, said, code), Heard())
        ended = Ended(
            status=status,
            answers=heard.messages,
            usage=heard.usage,
            record={
                "status_code": code,
                "error": heard.error,
                "usage": heard.usage,
                "finish_reasons": heard.finish_reasons,
                "seconds": round(now - self._started, 6),
                "seconds_to_first_byte": round(self._first_byte - self._started, 6) if self._first_byte else None,
            },
        )
        await asyncio.shield(self._parts.later(self._close(prepared, opening, ended)))
        self._parts.metrics.record.observe(time.perf_counter() - now)

    def _report(self, prepared: Prepared, reply: Reply) -> None:
        """The request's one line, and its counters."""
        metrics = self._parts.metrics
        metrics.requests.labels(prepared.mode, f"{reply.status // 100}xx").inc()
        if prepared.asked_tokens is not None:
            metrics.tokens.labels("asked").inc(prepared.asked_tokens)
            metrics.tokens.labels("forwarded").inc(prepared.forwarded_tokens or 0)
            metrics.block_tokens.inc(prepared.block_tokens)
        if prepared.forwarded_tokens is not None and prepared.model.window:
            share = prepared.forwarded_tokens / prepared.model.window
            metrics.utilization.labels(metrics.model(prepared.asked.model)).observe(share)
        if prepared.rolled:
            metrics.rollovers.inc()
        log.info(
            "turn",
            turn=prepared.turn_id,
            model=prepared.asked.model,
            mode=prepared.mode,
            status=reply.status,
            asked_tokens=prepared.asked_tokens,
            forwarded_tokens=prepared.forwarded_tokens,
            rollover=prepared.rolled,
            reason=prepared.reason,
            ms=round((time.perf_counter() - self._started) * 1000, 1),
        )


def status_of(reply: Reply) -> str:
    return "answered" if reply.status < 400 else "failed"


def has_no_body(method: str, reply: Reply) -> bool:
    return method == "HEAD" or reply.status in (204, 304) or header(reply.headers, b"content-length") == "0"


async def chunks(reply: Reply, read: bytes | None) -> AsyncIterator[bytes]:
    """A reply's body, of which the beginning may have been read."""
    if read:
        yield read
    async for chunk in reply.chunks():
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


def lent(parts: Parts, headers: Headers) -> Headers:
    """The operator's key for a local client that has none of its own."""
    key = parts.config.openai_api_key
    if key is None or not parts.config.is_loopback or any(name in KEY_HEADERS for name, _ in headers):
        return headers
    return [*headers, (b"authorization", b"Bearer " + key.get_secret_value().encode())]


def learn(parts: Parts, prepared: Prepared, overflow: Overflow) -> None:
    """Take the window from a refusal, and how much more than we the provider counts."""
    parts.memory.learn(prepared, overflow.window, overflow.counted)
