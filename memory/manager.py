"""MemoryManager: prepares a request so that it fits, and records what became of it.

The pure steps (`identify`, `fold`, `plan`, `reinject`, `assemble`) decide; this file gathers what they need and
writes down what they decided. No model is called here, but for the embedding of the newest message.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial
from hashlib import blake2b
from uuid import UUID

import structlog
from msgspec.structs import replace

from memory.assemble import Counted, assemble, at_positions, kept_asides, with_asides
from memory.bounded import Bounded
from memory.bring import Bring
from memory.budget import budget as budget_for
from memory.embed import Embedder
from memory.errors import CannotFit, InvalidRequest, StoreError
from memory.explain import explain
from memory.fold import (
    Standing,
    block_room,
    cut_to_fit,
    saved_input,
    seen_from,
    spent_on_blocks,
    standing_blocks,
    usable,
    without_store,
    written_anew,
)
from memory.held import Held
from memory.identify import Line, beginning, child, continued, line
from memory.known_lines import KnownLines
from memory.lexical import Terms, terms
from memory.messages import DIGEST_BYTES, ChatRequest, Message, spoken
from memory.models import ModelTable
from memory.plan import Rollover, Writer, roll
from memory.prepared import Caller, Dialect, Prepared, Seen, bill
from memory.prices import weighed_with
from memory.prompts import digest_text, session_nonce, shortened_text
from memory.recall import Recall
from memory.recall_tool import RecallTool, may_stand
from memory.recorder import Ended, Kept, Opening, Recorder
from memory.reinject import Search, reinject
from memory.seal import without_sealed
from memory.settings import Settings
from memory.similar import Similar
from memory.spending import Spending
from memory.store.pool import Pool
from memory.store.turns import attempt_id, load_path, storable
from memory.store.usage import Spent
from memory.tokens import Counter, is_measured
from memory.types import Block, Budget, Mode, Model, Usage

log = structlog.get_logger()

THREAD_BYTES = 64 * 1024  # more than this of new messages is counted in a thread
LINES_BYTES = 16 * 1024 * 1024  # of conversations whose nodes and tokens this process remembers
COUNT_MARGIN = 1.02  # texts differ in how much more a provider counts
MOST_FACTOR = 2.0  # no vocabulary of today needs more tokens than that
STAY_FROM = 0.5  # of the trigger: a line that was folded and is shorter than that is a wire again
EMBED_FROM = 0.5  # of the trigger: shorter sessions are never embedded

Whose = tuple[bytes, bytes]  # a tenant, and a key of its own


class MemoryManager:
    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        recorder: Recorder,
        models: ModelTable,
        counter: Counter,
        embedder: Embedder | None = None,
        bring: Bring | None = None,
        is_hearing: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_hearing`: whether `heard` is called as soon as another process isolates something."""
        self._settings = settings
        self._pool = pool
        self._recorder = recorder
        self._counter = counter
        self._similar = Similar(pool, embedder)
        self._bring = bring
        self.models = models
        self.spending = Spending(pool)
        self._lines: Bounded[bytes, Seen] = Bounded(LINES_BYTES, lambda seen: seen.size)  # by their first node
        # provider's tokens by ours, of model and upstream
        self._factors: Bounded[tuple[str, str], float] = Bounded(1_000)
        self._held = Held(pool, self.forget, is_hearing)
        self.recall_tool = RecallTool(settings, counter, self._held, Recall(self._similar, bring))
        self._known = KnownLines(pool, recorder, self._held)
        self._terms: Bounded[Whose, Terms] = Bounded(600_000, lambda found: len(found.counts) + 8)  # by digest

    # Prepare: from what the client asked to what goes upstream.

    async def prepare(self, caller: Caller, asked: ChatRequest, dialect: Dialect) -> Prepared:
        """Plan the context of a request. What fits never waits for the database."""
        if not asked.messages:
            raise InvalidRequest("a request has at least one message", "messages")
        model = self._calibrated(self.models.find(asked.model, caller.upstream), caller.upstream)
        seen = self._lines.get(beginning(caller.tenant, asked.messages))
        path = line(caller.tenant, asked.messages, seen.line if seen else None)
        mode = Mode.WIRE if self._pool.available else Mode.DEGRADED
        wire = Prepared(caller, asked, path, asked.body, mode, attempt_id(), model)
        counted = await self._count(asked, path, model, seen)
        self._lines.put(path.nodes[0], Seen(path, counted.tokens, model.encoding, len(asked.body)))
        wire = replace(wire, asked_tokens=counted.total, forwarded_tokens=counted.total, tokens=counted.tokens)
        if model.window is None:
            return wire
        budget = budget_for(model, asked.max_output_tokens, counted.front, self._settings.compression.target)
        wire = replace(wire, embed=counted.total > EMBED_FROM * budget.trigger)
        if counted.total <= budget.trigger and not self._stays_folded(caller.tenant, counted, budget):
            return wire
        try:
            return await self._fold(wire, counted, budget, dialect)
        except CannotFit as error:
            return replace(wire, reason=str(error))
        except StoreError as error:
            return self._without_store(wire, counted, budget, dialect, str(error))

    def _stays_folded(self, tenant: bytes, counted: Counted, budget: Budget) -> bool:
        """Was the line folded when a request left more room for the answer, or more tools stood in it?

        Going back to the client's own prompt for one request makes the provider read all of it anew. A window so large
        that the line fills less than half of its trigger is another model's: it gets everything.
        """
        if counted.total <= STAY_FROM * budget.trigger:
            return False
        held = [frozen for _, frozen in self._known.frozen(tenant, counted.line)]
        return usable(counted.line, held, counted.asked.dialect) is not None

    def learn(self, prepared: Prepared, window: int | None, counted: int | None) -> None:
        """Take from a refusal what the provider says of its window and of its own count.

        Where it counts more tokens than we do, the window counts for as much less: our vocabulary is not its.
        """
        name, upstream = prepared.asked.model, prepared.caller.upstream
        if window is not None:
            self.models.learn(name, upstream, window)
        ours = prepared.forwarded_tokens
        media = (one for message in prepared.asked.messages for one in message.media)
        guessed = not all(is_measured(one) for one in media)  # what was estimated says nothing of a vocabulary
        if counted and ours and counted > ours and not guessed:
            known = self._factors.get((name, upstream)) or 1.0
            self._factors.put((name, upstream), max(known, min(counted / ours * COUNT_MARGIN, MOST_FACTOR)))

    def _calibrated(self, model: Model, upstream: str) -> Model:
        factor = self._factors.get((model.name, upstream)) or 1.0
        return replace(model, window=int(model.window / factor)) if model.window and factor > 1 else model

    def odd(self, caller: Caller, body: bytes) -> Prepared:
        """A request whose body we do not understand: a wire, recorded as one raw message."""
        message = Message("raw", blake2b(body, digest_size=DIGEST_BYTES).hexdigest(), body)
        asked = ChatRequest("", (message,), body)
        path = line(caller.tenant, (message,))
        return Prepared(caller, asked, path, body, Mode.WIRE, attempt_id(), self.models.find(""))

    def squeeze(self, asked: ChatRequest, dialect: Dialect, upstream: str) -> bytes | None:
        """The store-less plan for somebody who has no memory; None where the client's own bytes go."""
        model = self.models.find(asked.model, upstream)
        path = line(bytes(16), asked.messages)
        if model.window is None or not path.nodes:
            return None
        counted = self._counted(asked, path, model)
        budget = budget_for(model, asked.max_output_tokens, counted.front)
        if counted.total <= budget.limit:
            return None
        try:
            pieces = without_store(counted, budget, dialect.message_json)
        except CannotFit:
            return None
        return dialect.render(asked, [piece.raw for piece in pieces])

    async def _count(self, asked: ChatRequest, path: Line, model: Model, seen: "Seen | None") -> Counted:
        known = seen.known(path, model.encoding) if seen else ()
        if sum(len(message.raw) for message in path.messages[len(known) :]) > THREAD_BYTES:
            return await asyncio.to_thread(self._counted, asked, path, model, known)
        return self._counted(asked, path, model, known)

    def _counted(self, asked: ChatRequest, path: Line, model: Model, known: tuple[int, ...] = ()) -> Counted:
        tokens = (*known, *self._counter.messages(path.messages[len(known) :], model.encoding))
        systems = [] if path.messages[0].is_system else [i for i, m in enumerate(asked.messages) if m.is_system]
        counts = self._counter.messages([asked.messages[i] for i in systems], model.encoding)
        fixed = self._counter.schemas(asked.schemas, model.encoding) + self._counter.reply(model.encoding)
        return Counted(asked, path, tokens, dict(zip(systems, counts, strict=True)), fixed)

    async def _fold(self, wire: Prepared, counted: Counted, budget: Budget, dialect: Dialect) -> Prepared:
        """Over the trigger: go on with the frozen prompt, or roll over."""
        asked = counted
        held = await self._held.of(wire.caller.tenant)
        state, away = await self._known.of(wire.caller.tenant, counted.line, asked.asked.dialect, held)
        if not state.known and not away:  # a line we meet for the first time: is it the end of one we know?
            await self._recorder.store_line(wire.to_record(), 0)
            stored, away = await self._known.of(wire.caller.tenant, counted.line, asked.asked.dialect, held)
            state = replace(state, known=stored.known, continues=stored.continues)
        if state.continues is not None:
            counted = await self._with_cut_history(wire, counted, state.continues, dialect)
        if held.number and not away:  # what holds a text in quarantine is sealed when it is stored
            await self._recorder.store_line(wire.to_record(), state.known)
            known, held = held, await self._held.of(wire.caller.tenant, anew=True)
            if held.number != known.number:  # what was gathered may tell what was isolated since
                return await self._fold(wire, asked, budget, dialect)
        wire, offered = replace(wire, held=held), self.recall_tool.tokens(wire, dialect)
        counted = replace(counted, line=without_sealed(counted.line, held.seals), tool_tokens=offered)
        before = usable(counted.line, [frozen for _, frozen in state.frozen], asked.asked.dialect)
        counted = with_asides(counted, at_positions(counted.line, state.asides), before)
        prices = weighed_with(wire.model.prices)
        cold = state.age_seconds is None or state.age_seconds > prices.cache_seconds
        visible = seen_from(state.blocks, wire.caller.label)
        blocks = standing_blocks(counted, before, visible, budget, prices)
        standing = Standing(counted, budget, prices, before, blocks, cold)
        why = standing.why()
        if why and away and standing.tokens <= budget.limit:
            why = None  # what leaves the prompt must be stored first: wait for the database
        if why is None and before is None:
            return replace(wire, reason=away)
        spent, now = spent_on_blocks(before, state.blocks), standing
        if why is not None:
            await self._recorder.store_line(wire.to_record(), state.known)
            frozen = await asyncio.to_thread(roll, self._rollover(wire, counted, budget, dialect), before)
            frozen = replace(kept_asides(counted, frozen), spent=spent, dialect=counted.asked.dialect)
            counted = with_asides(counted, {}, frozen)
            now = replace(standing, counted=counted, frozen=frozen, blocks={})
        folded, block = await self._assemble(wire, standing, now, spent, why, dialect)
        mode = Mode.DEGRADED if away else Mode.FOLDED
        made = now.frozen if why else None
        folds = self._known.remember(wire.caller.tenant, counted.line, state, made, block, held)
        return replace(folded, mode=mode, reason=away, folds=folds)

    def forget(self, tenant: bytes | None) -> None:
        """Drop what was made of a tenant's messages, None: of all; what may still be told is in the database."""
        self._known.forget(tenant)
        if tenant is None:
            self._terms.clear()
        else:
            self._terms.drop_where(lambda key: key[0] == tenant)

    def heard(self, tenant: bytes | None, kind: str, id: str) -> None:
        """A listener of signals: what another process put into quarantine, or erased, is forgotten here at once."""
        if kind in ("quarantine", "erase", "again"):
            self._held.clear(tenant)
        if kind in ("erase", "again"):
            self._recorder.forget()

    async def _with_cut_history(self, wire: Prepared, counted: Counted, tip: bytes, dialect: Dialect) -> Counted:
        """The request on the line that its client cut: what was cut off can be searched and named again."""
        async with self._pool.tenant(wire.caller.tenant, self._pool.wait_seconds) as connection:
            rows = await load_path(connection, wire.caller.tenant, tip)
        earlier = [(node, dialect.message_of(raw)) for node, raw in rows]
        tokens = self._counter.messages([message for _, message in earlier], wire.model.encoding)
        return replace(counted, line=continued(earlier, counted.line), tokens=(*tokens, *counted.tokens))

    def _rollover(self, wire: Prepared, counted: Counted, budget: Budget, dialect: Dialect) -> Rollover:
        can_recall = counted.tool_tokens > 0 and may_stand(wire.body, dialect)
        return Rollover(
            line=counted.line,
            tokens=counted.weights,
            front=counted.fixed + counted.tool_tokens + sum(counted.system_tokens.values()),
            budget=budget,
            digest_share=self._settings.compression.digest_share,
            count=self._counting(wire.model),
            weigh=partial(self._counter.message, encoding=wire.model.encoding),
            writer=writer(dialect, can_recall),
        )

    def _counting(self, model: Model) -> Callable[[str], int]:
        return lambda text: self._counter.text(text, model.encoding)

    async def _assemble(
        self,
        wire: Prepared,
        before: Standing,
        now: Standing,
        spent: int,
        why: str | None,
        dialect: Dialect,
    ) -> tuple[Prepared, Block | None]:
        """The messages to forward, and the block of the newest user message, if it was made or cut for them.

        Args:
            before: how the prompt stood before a rollover.
            spent: tokens of the blocks that the session has had.
        """
        counted, frozen, blocks = now.counted, now.frozen, now.blocks
        assert frozen is not None
        search = self._search_for(wire, now, dialect)
        stood = blocks.get(search.position)
        if stood is None:
            made = await self._reinject(wire.caller, search, now, now.allowance(spent), rolled=why is not None)
            blocks = {**blocks, search.position: made}
        blocks = cut_to_fit(replace(now, blocks=blocks))
        block = blocks[search.position]
        if stood is not None and block is not stood:
            block = replace(block, asked=len(counted.line), paid_tokens=0)
        pieces = assemble(counted, frozen, blocks)
        body, forwarded, offer = self.recall_tool.written(now, search, pieces, dialect)
        direct, ours = saved_input(before, forwarded, why is not None, written_anew(now, stood, block))
        folded = replace(
            wire,
            body=body,
            forwarded_tokens=forwarded,
            block_tokens=sum(b.tokens for b in blocks.values()),
            rolled=why,
            saved_usd=in_dollars(direct - ours, wire.model, before),
            record=explain(before, why, pieces, frozen, block),
            offer=offer,
        )
        return folded, block if block is not stood else None

    def _search_for(self, wire: Prepared, standing: Standing, dialect: Dialect) -> Search:
        assert standing.frozen is not None
        path = standing.counted.line
        return Search(
            counted=standing.counted,
            frozen=standing.frozen,
            quoted=frozenset(quote.position for block in standing.blocks.values() for quote in block.quotes),
            similar={},
            terms=partial(self._terms_of, wire.caller.tenant),
            count=self._counting(wire.model),
            writer=writer(dialect),
            nonce=session_nonce(wire.caller.tenant, path.nodes[0]),
            floor=self._settings.recall.floor,
        )

    async def _reinject(
        self, caller: Caller, search: Search, standing: Standing, allowance: int, rolled: bool
    ) -> Block:
        """Search for what belongs before the newest user message."""
        max_share = self._settings.recall.max_share
        room = block_room(standing, search.in_loop, max_share, allowance, rolled)
        newest = search.line.messages[search.position].text
        search = replace(search, similar=await self._similar.to(newest, caller.tenant, search))
        thrifty = room.scarce and not standing.cold
        block = await asyncio.to_thread(reinject, search, room.stays, room.once, thrifty, standing.cold)
        if self._bring is not None:
            block = await self._bring.into(block, caller, search, tuple(standing.blocks.values()), room)
        paid = block.kept_tokens if standing.cold else max(block.kept_tokens, block.filled_tokens)
        return replace(block, paid_tokens=paid)

    def _terms_of(self, tenant: bytes, message: Message) -> Terms:
        found = self._terms.get((tenant, message.digest))
        if found is None:
            found = terms(spoken(message))
            self._terms.put((tenant, message.digest), found)
        return found

    def _without_store(
        self, wire: Prepared, counted: Counted, budget: Budget, dialect: Dialect, reason: str
    ) -> Prepared:
        """The database is away and the frozen prompt does not do: the client's bytes if they fit, else a tail."""
        degraded = replace(wire, mode=Mode.DEGRADED, reason=reason)
        if counted.total <= budget.limit:
            return degraded
        try:
            pieces = without_store(counted, budget, dialect.message_json)
        except CannotFit:
            return degraded
        return replace(
            degraded,
            body=dialect.render(counted.asked, [piece.raw for piece in pieces]),
            forwarded_tokens=counted.fixed + sum(piece.placement.tokens for piece in pieces),
        )

    # Record: the turn, durably.

    def session(self, prepared: Prepared) -> str:
        return self._recorder.session(prepared.line)

    def open(self, prepared: Prepared) -> Opening:
        """Begin to write the opening of a turn, beside the upstream call."""
        return self._recorder.open(prepared.to_record())

    async def record(self, prepared: Prepared, opening: Opening | None, ended: Ended) -> Kept:
        """Write the end of a turn; returns when it is safe, or counted as unrecorded."""
        ended = replace(ended, record={**ended.record, **bill(prepared, ended)})
        return await self._recorder.close(self._with_aside(prepared, ended).to_record(), opening, ended)

    def _with_aside(self, prepared: Prepared, ended: Ended) -> Prepared:
        """With what was said before the answer, to be written with it."""
        if ended.aside is None or not ended.answers:
            return prepared
        node = child(prepared.caller.tenant, prepared.line.tip, ended.answers[0])
        row = self._known.remember_aside(prepared.caller.tenant, prepared.line, node, ended.aside, prepared.held)
        return replace(prepared, folds=(*prepared.folds, row))

    def spend(self, prepared: Prepared, ended: Ended, now: datetime) -> Spent | None:
        """Note what a turn took, and whether it rolled over; gives what was noted, if there was anything."""
        if ended.usage is None and not prepared.rolled:
            return None
        usage, billed = ended.usage or Usage(), bill(prepared, ended)
        session = storable(prepared.caller.label) or self.session(prepared)
        spent = Spent(
            attempt=UUID(bytes=prepared.attempt), at=now, session=session, model=storable(prepared.asked.model) or "",
            input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens,
            cost_usd=billed.get("cost_usd"), direct_usd=billed.get("direct_usd"),
        )  # fmt: skip
        rolled = prepared.turn_id if prepared.rolled else None
        self.spending.note(prepared.caller.tenant, spent, rolled)
        return spent


def writer(dialect: Dialect, can_recall: bool = False) -> Writer:
    return Writer(
        digest=partial(digest_text, can_recall=can_recall),
        message=dialect.message_json,
        results=dialect.results,
        words=dialect.words,
        with_content=dialect.with_content,
        read=dialect.message_of,
        shortened=shortened_text,
    )


def in_dollars(saved: float, model: Model, standing: Standing) -> float | None:
    """None: nobody knows what the model costs."""
    if model.prices is None:
        return None
    return saved if standing.prices == model.prices else 0.0  # it costs nothing, and other prices decided
