"""One attempt at an answer: what the client is told of it, what is written of it, counted and logged."""

import asyncio
import time
from collections.abc import Callable

import structlog

from memory.identify import place
from memory.nouns import utc_now
from memory.prepared import Prepared, going_on_cost
from memory.recorder import Ended, Kept, Opening
from memory.told import Overflow, overflow_in_error
from memory.types import Aside, as_one, in_all
from memory.whole import Memory
from proxy.answer import Heard
from proxy.exchange import Headers
from proxy.parts import Parts, fail_open
from proxy.recalling import Recalling
from proxy.upstreams import Way

log = structlog.get_logger()

LOOK_AFTER_SECONDS = 0.05  # a turn was recorded, so that its last bytes are gone before


class Attempt:
    """Begins with the opening of its turn; ends once. Hidden requests are a part of it."""

    def __init__(self, parts: Parts, prepared: Prepared, way: Way, started: float) -> None:
        """`started`: when the client's request came, in seconds of `time.perf_counter`."""
        self.prepared = prepared
        self.recalling: Recalling | None = None  # where the model may ask the memory
        self.first_byte: float | None = None  # when it went to the client, in the same seconds
        self._latest = prepared  # the request that was answered last
        self._answered_tokens = 0  # of all requests that were answered
        self._saved_usd = prepared.saved_usd
        self._parts = parts
        self._way = way
        self._started = started
        self._opening: Opening | None = None
        self._is_reported = False

    async def open(self) -> None:
        """Begin to write the opening of its turn, beside the upstream call."""
        self._opening = await fail_open(self._parts, self._open(), None)

    async def _open(self) -> Opening:
        return self._parts.memory.open(self.prepared)

    def answered(self, prepared: Prepared, status: int) -> None:
        """Count an answer of the upstream: to its request, or to a hidden one that goes on from there."""
        metrics, tokens, window = self._parts.metrics, prepared.forwarded_tokens, prepared.model.window
        metrics.upstreams.labels(self._way.name, f"{status // 100}xx").inc()
        if tokens is not None:
            metrics.tokens.labels("forwarded").inc(tokens)
            self._answered_tokens += tokens
        if tokens is not None and window:
            metrics.utilization.labels(metrics.model(prepared.asked.model)).observe(tokens / window)
        if self._saved_usd is not None and prepared is not self.prepared and status < 400:
            self._saved_usd -= going_on_cost(self._latest, prepared)
        self._latest = prepared

    @property
    def forwarded_tokens(self) -> int | None:
        """By our count: of all requests that were answered, else of the one that was to be."""
        return self._answered_tokens or self.prepared.forwarded_tokens

    def learn(self, overflow: Overflow) -> None:
        """Take the window from a refusal, and how much more than we the provider counts."""
        self._parts.memory.learn(self._latest, overflow.window, overflow.counted)

    async def notes(self) -> Headers:
        """Our own headers on the answer. Those of a stream go out before any hidden request."""
        return await fail_open(self._parts, self._notes(), ())

    async def _notes(self) -> Headers:
        prepared = self.prepared
        notes = [
            (b"x-infold-session", self._parts.memory.session(prepared).encode()),
            (b"x-infold-turn", prepared.turn_id.encode()),
            (b"x-infold-mode", prepared.mode.encode()),
        ]
        if prepared.asked_tokens is not None:
            notes.append((b"x-infold-tokens", b"%d/%d" % (prepared.asked_tokens, self.forwarded_tokens or 0)))
        if prepared.block_tokens:
            notes.append((b"x-infold-block-tokens", b"%d" % prepared.block_tokens))
        if self._saved_usd is not None:
            notes.append((b"x-infold-saved-usd", b"%.6f" % self._saved_usd))
        if self._way.instead is not None:
            notes.append((b"x-infold-fallback", self._way.instead.encode("ascii", "replace")))
        return notes

    # Its end.

    async def end(self, status: str, said: Callable[[], Heard], code: int | None) -> None:
        """Make the turn safe. Runs to its end even when the client leaves meanwhile."""
        now = time.perf_counter()
        heard = await fail_open(self._parts, self._hear(said, code), Heard())
        aside = await fail_open(self._parts, self._aside(), None) if status == "answered" else None
        told = self.recalling.usages if self.recalling is not None else ()
        usage = heard.usage or in_all(told)
        ended = Ended(
            status=status,
            aside=aside,
            answers=heard.messages,
            usage=usage,
            direct=as_one(told),
            record={
                "status_code": code,
                "upstream": self._way.name,
                "model": self.prepared.asked.model,
                "fallback": self._way.instead,
                "error": heard.error,
                "usage": usage,
                "finish_reasons": heard.finish_reasons,
                "recalls": self.recalling.recalls if self.recalling is not None else None,
                "forwarded_tokens": self.forwarded_tokens,
                "truncated": heard.truncated,
                "seconds": round(now - self._started, 6),
                "seconds_to_first_byte": round(self.first_byte - self._started, 6) if self.first_byte else None,
            },
        )
        await asyncio.shield(self._parts.later(self._close(ended)))
        self._parts.metrics.record.observe(time.perf_counter() - now)

    async def _hear(self, said: Callable[[], Heard], code: int | None) -> Heard:
        """What an answer says. A stream may refuse a prompt: too late to ask again, not to learn from it."""
        heard = said()
        told = heard.error.encode("utf-8", "replace") if heard.error and code is not None and code < 400 else b""
        overflow = overflow_in_error(400, told)
        if overflow is not None:
            self.learn(overflow)
        return heard

    async def _aside(self) -> Aside | None:
        return self.recalling.aside if self.recalling is not None else None

    async def _close(self, ended: Ended) -> None:
        kept = await fail_open(self._parts, self._keep(ended), Kept.UNRECORDED)
        await fail_open(self._parts, self._spend(ended), None)
        self._parts.metrics.turns.labels(kept).inc()
        if self._parts.whole is not None and self._parts.whole.lookout.is_on:
            self._parts.later(fail_open(self._parts, self._look(self._parts.whole, ended), None))

    async def _keep(self, ended: Ended) -> Kept:
        return await self._parts.memory.record(self.prepared, self._opening, ended)

    async def _spend(self, ended: Ended) -> None:
        spent = self._parts.memory.spend(self.prepared, ended, utc_now())
        if spent is not None and ended.usage is not None:
            self._parts.metrics.spent(spent)

    async def _look(self, whole: Memory, ended: Ended) -> None:
        """Look for keys in what was said; the answer's end goes out first."""
        await asyncio.sleep(LOOK_AFTER_SECONDS)
        caller = self.prepared.caller
        await whole.lookout.look(place(caller.tenant, caller.label), self.prepared.line, ended.answers)

    def report(self, status: int) -> None:
        """The request's one line, and its counters: once, and before the client can see the answer's end."""
        if self._is_reported:
            return
        self._is_reported = True
        prepared, metrics = self.prepared, self._parts.metrics
        metrics.requests.labels(prepared.mode, f"{status // 100}xx").inc()
        if prepared.asked_tokens is not None:
            metrics.tokens.labels("asked").inc(prepared.asked_tokens)
            metrics.block_tokens.inc(prepared.block_tokens)
        if prepared.rolled:
            metrics.rollovers.inc()
        log.info(
            "turn",
            turn=prepared.turn_id,
            model=prepared.asked.model,
            mode=prepared.mode,
            upstream=self._way.name,
            status=status,
            asked_tokens=prepared.asked_tokens,
            forwarded_tokens=self.forwarded_tokens,
            rollover=prepared.rolled,
            reason=prepared.reason,
            ms=round((time.perf_counter() - self._started) * 1000, 1),
        )
