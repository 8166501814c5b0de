"""A session's memory as a whole: what it holds, its working context, what hygiene makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import structlog

from memory import check
from memory.digest.fit import CountTokens
from memory.errors import StoreError
from memory.forms import Sizes, prefix_summary, settle, sizes
from memory.hygiene import Action, Case, Tending, tend_all
from memory.identify import new_id
from memory.meter import Meter
from memory.models import ModelTable
from memory.nouns import (
    ActiveEntry,
    Clock,
    CompressedEntry,
    FullEntry,
    HygieneReport,
    ItemForm,
    MemoryStateSnapshot,
    Performance,
    Place,
    Tended,
    TokenUsage,
    WorkingContext,
    utc_now,
)
from memory.search import Finder, Quote
from memory.settings import Settings
from memory.store.items import ItemChanges, be_patient, change_item, delete_item, load_items
from memory.store.passages import Scope
from memory.store.pool import Pool
from memory.store.states import (
    be_alone,
    load_cases,
    load_held,
    load_listed,
    load_standing,
    load_state,
    recount,
    set_forms,
    track_usage,
)
from memory.store.usage import Spent
from memory.tokens import Counter
from memory.working import QUERY_SHARE, WHOLE_SHARE, Held, Shown, choose, hint_line

log = structlog.get_logger()

READ_SECONDS = 5.0
WRITE_SECONDS = 60.0
THOROUGH_ROWS = 50_000  # vectors up to which each is compared for a working context: some tenths of a second
UNKNOWN_WINDOW = 8_192  # tokens, of a model that nobody knows
MOST_LISTED = 1_000
MOST_TENDED = 10_000  # items of a session in one run of hygiene
TENDED_AT_ONCE = 500
MOST_TRACKED = 10**9
RETRIEVAL_HINT = "Use retrieve_memory_item('{}') to get full content"


class Shares(msgspec.Struct, frozen=True):
    """Of a model's window."""

    trigger: float = 0.75  # items beyond are compressed
    safe: float = 0.60  # of it a working context takes, unless it is told


@dataclass(frozen=True, slots=True)
class Profile:
    """What the memory goes by for a model."""

    name: str
    sizes: Sizes
    safe_tokens: int
    count: CountTokens
    input_usd: float  # a token
    output_usd: float


class Profiles:
    """Profiles by the names of models."""

    def __init__(
        self,
        models: ModelTable,
        counter: Counter,
        settings: Settings,
        shares: Callable[[str], Shares] = lambda model: Shares(),
    ) -> None:
        self._models = models
        self._counter = counter
        self._settings = settings
        self._shares = shares

    def __call__(self, name: str) -> Profile:
        model, shares = self._models.find(name), self._shares(name)
        window = model.window or UNKNOWN_WINDOW
        return Profile(
            name=name,
            sizes=sizes(window, shares.trigger, self._settings.strategies),
            safe_tokens=int(window * shares.safe),
            count=partial(self._counter.text, encoding=model.encoding),
            input_usd=model.prices.input if model.prices else 0.0,
            output_usd=model.prices.output if model.prices else 0.0,
        )


class States:
    def __init__(
        self, pool: Pool, profiles: Profiles, finder: Finder, settings: Settings, clock: Clock, meter: Meter
    ) -> None:
        self._pool = pool
        self._profiles = profiles
        self._finder = finder
        self._settings = settings
        self._clock = clock
        self._meter = meter

    async def model_of(self, place: Place) -> str:
        """The model that a session began with."""
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            return (await load_state(connection, place)).model

    async def settle(self, place: Place, profile: Profile | None = None) -> int:
        """Apply the trigger rule, for the session's own model if no other is given; how many items became smaller."""
        async with self._pool.tenant(place.tenant, WRITE_SECONDS) as connection:
            await be_alone(connection, place)
            state = await load_state(connection, place)
            items = await load_standing(connection, place)
            profile = profile or self._profiles(state.model)
            changes = settle(items, state.tokens, profile.sizes, state.used)
            return await set_forms(connection, place, changes, self._clock())

    async def working_context(
        self, place: Place, model: str, max_tokens: object = None, query: object = None
    ) -> WorkingContext:
        """The items that belong into a prompt of at most `max_tokens`; what answers `query` comes first."""
        profile = self._profiles(model)
        room = profile.safe_tokens if max_tokens is None else check.integer(max_tokens, "max_tokens", 1, 10**8)
        quotes: tuple[Quote, ...] = ()
        if query is not None:
            asked = check.text(query, "query")
            scope = Scope(place.tenant, place.scope)
            whole = int(room * WHOLE_SHARE)
            half = int(room * QUERY_SHARE)
            quotes = await self._finder.quotes(scope, asked, half, whole, profile.count, exact=THOROUGH_ROWS)
        left = room - sum(quote.tokens for quote in quotes)
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            held = await load_held(connection, place)
        quoted = {quote.item for quote in quotes}
        shown = choose([item for item in held if item.id not in quoted], left, profile.count)
        return await self._written(place, quotes, shown, {item.id: item for item in held}, room)

    async def _written(
        self, place: Place, quotes: Sequence[Quote], shown: Sequence[Shown], held: dict[UUID, Held], room: int
    ) -> WorkingContext:
        whole = [one.id for one in shown if one.form is ItemForm.FULL]
        summaries = [one.id for one in shown if one.form is ItemForm.SUMMARY]
        async with self._pool.connection(READ_SECONDS) as connection:
            contents = await load_items(connection, place.tenant, whole) if whole else {}
            heads = await load_items(connection, place.tenant, summaries, content=False) if summaries else {}
        full = [quoted_entry(quote) for quote in quotes]
        compressed: list[CompressedEntry] = []
        for one in shown:
            item, id = held[one.id], str(one.id)
            row = contents.get(one.id) or heads.get(one.id)
            if one.form is ItemForm.FULL and row is not None and row.whole:
                full.append(FullEntry(id, item.content_type, row.content, one.tokens))
            elif row is not None:  # a summary, or what no longer fits an answer
                text, hint = row.summary or prefix_summary(row.content), RETRIEVAL_HINT.format(id)
                compressed.append(CompressedEntry(id, item.content_type, text, item.summary_tokens, hint))
            elif one.form is ItemForm.HINT:
                hint = RETRIEVAL_HINT.format(id)
                compressed.append(CompressedEntry(id, item.content_type, hint_line(item), one.tokens, hint))
        total = sum(entry.tokens for entry in full) + sum(entry.tokens for entry in compressed)
        return WorkingContext(full, compressed, total, room - total)

    async def state(self, place: Place, model: str) -> MemoryStateSnapshot:
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            row = await load_state(connection, place)
            held = await load_listed(connection, place, MOST_LISTED)
        held = sorted(held, key=lambda item: item.rank, reverse=True)
        window, now = self._profiles(model).sizes.window, self._clock()
        return MemoryStateSnapshot(
            id=str(place.id),
            session_id=place.name,
            model_name=model,
            total_context_length=window,
            used_context_length=row.used,
            available_context_length=max(0, window - row.used),
            context_utilization_percentage=round(100 * row.used / window, 2),
            active_items=[entry(item) for item in held if item.form is ItemForm.FULL][:MOST_LISTED],
            compressed_items=[entry(item) for item in held if item.form is not ItemForm.FULL][:MOST_LISTED],
            token_usage_stats=TokenUsage(row.input_tokens, row.output_tokens, row.cost_usd),
            performance_metrics=Performance(row.compressions, row.decompressions, row.cache_hits),
            created_at=row.created_at or now,
            updated_at=row.updated_at or now,
        )

    async def track_usage(
        self, place: Place, model: str, input_tokens: object, output_tokens: object, id: UUID | None = None
    ) -> None:
        """Add tokens that a program had from a provider, and what they cost; again with the same id changes nothing."""
        profile = self._profiles(model)
        sent = check.integer(input_tokens, "input_tokens", 0, MOST_TRACKED)
        got = check.integer(output_tokens, "output_tokens", 0, MOST_TRACKED)
        cost = sent * profile.input_usd + got * profile.output_usd
        spent = Spent(
            attempt=id or new_id(), at=self._clock(), session=place.name, model=model, input_tokens=sent,
            output_tokens=got, cost_usd=cost, direct_usd=cost,
        )  # fmt: skip
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            first = await track_usage(connection, place, spent)
        if first:
            self._meter.spent(spent)

    async def hygiene(self, place: Place, dry_run: bool = False) -> HygieneReport:
        """Compress, archive and delete what time has passed by; a dry run only tells."""
        rules, now = self._settings.hygiene, self._clock()
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            cases = await load_cases(connection, place, MOST_TENDED, archived=rules.delete_after_days is not None)
        tended = tend_all(cases, rules, now)
        if not dry_run:
            await self._tend(place, tended)
        counts = {action: sum(tending.action is action for _, tending in tended) for action in Action}
        report = HygieneReport(
            compressed=counts[Action.COMPRESS],
            archived=counts[Action.ARCHIVE],
            deleted=counts[Action.DELETE],
            kept=counts[Action.KEEP],
            dry_run=dry_run,
            items=[Tended(str(case.id), tending.action.value, tending.why) for case, tending in tended[:MOST_LISTED]],
        )
        if not dry_run:
            self._meter.tidied(report)
        return report

    async def _tend(self, place: Place, tended: Sequence[tuple[Case, Tending]]) -> None:
        await self._not_in_the_future(place, tended)
        work = [(case.id, tending) for case, tending in tended if tending.action is not Action.KEEP]
        for start in range(0, len(work), TENDED_AT_ONCE):
            async with self._pool.tenant(place.tenant, WRITE_SECONDS) as connection:
                await be_alone(connection, place)
                part = sorted(work[start : start + TENDED_AT_ONCE])
                now = self._clock()
                smaller = {id: tending.form for id, tending in part if tending.action is Action.COMPRESS}
                await set_forms(connection, place, smaller, now)
                for id, tending in part:
                    if tending.action is Action.ARCHIVE:
                        await change_item(connection, place.tenant, id, ItemChanges(archived=True), now)
                    elif tending.action is Action.DELETE:
                        await delete_item(connection, place.tenant, id, now)
        async with self._pool.tenant(place.tenant, WRITE_SECONDS) as connection:
            await be_patient(connection)
            await recount(connection, place, self._clock())

    async def _not_in_the_future(self, place: Place, tended: Sequence[tuple[Case, Tending]]) -> None:
        """A machine whose clock runs ahead deletes nothing."""
        if self._clock is not utc_now or not any(tending.action is Action.DELETE for _, tending in tended):
            return
        async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
            ahead = await connection.fetchval("select $1 > now() + interval '1 day'", self._clock())
        if ahead:
            raise StoreError("this machine's clock is more than a day ahead of the database's: nothing is deleted")


def entry(item: Held) -> ActiveEntry:
    return ActiveEntry(str(item.id), item.content_type, item.tokens, item.summary_tokens, item.priority)


def quoted_entry(quote: Quote) -> FullEntry:
    where: dict[str, Any] = {} if quote.whole else {"start": quote.start, "stop": quote.stop}
    return FullEntry(str(quote.item), quote.content_type, quote.text, quote.tokens, **where)
