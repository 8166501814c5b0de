"""Items: text that programs store, read, search and change. The one door to them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from memory import check
from memory.bounded import Bounded
from memory.detect import Found
from memory.digest.fit import CountTokens
from memory.embed import Embedder
from memory.errors import InvalidRequest, ModelError, NotFound, StoreError
from memory.find import kind_id, space_id
from memory.forms import budget_tokens, fill
from memory.identify import item_tail, new_id
from memory.meter import UNCOUNTED, Meter
from memory.models import ModelTable
from memory.nouns import (
    NIL,
    Clock,
    CompressionStrategy,
    FoundItem,
    HygieneReport,
    ItemForm,
    ItemStatus,
    MemoryItem,
    MemoryStateSnapshot,
    Place,
    WorkingContext,
    utc_now,
)
from memory.presence import Presence
from memory.quarantine import Quarantine
from memory.rows import found_item, item_of, read_cursor, row_of, scope_of, status_of, text_of, write_cursor
from memory.search import Finder, Quote
from memory.segments import Segmented
from memory.settings import Settings
from memory.state import Profile, Profiles, Shares, States
from memory.store.items import (
    Added,
    ItemChanges,
    ItemRow,
    NewItem,
    Text,
    add_item,
    change_item,
    delete_item,
    enqueue,
    list_items,
    load_items,
    retrieve_item,
)
from memory.store.passages import Scope, save_vectors
from memory.store.pool import Pool
from memory.store.signals import nudge
from memory.store.states import has_items, load_names, load_state
from memory.tokens import Counter

Floats = NDArray[np.float32]

READ_SECONDS = 5.0
ADD_SECONDS = 10.0
BULK_BYTES_A_SECOND = 100_000  # an item's rows and their index take so long at worst
EMBED_SECONDS = 1.0  # for a short item, while its program waits
EMBED_AT_ONCE = 4  # passages of an item that is embedded when it is added
MOST_QUERY_CHARS = 100_000
ANSWER_FLOOR, FEW_PASSAGES = 0.1, 100  # score below which a passage answers nothing, among so many or more
PRESENCE_KINDS = ("items", "quarantine", "session_deleted", "erase", "again")  # signals after which one looks again


Detect = Callable[[str], Sequence[Found]]  # what a text holds that is secret
# Text, tokens it may have, the model's name: a shorter text, or None.
Summarize = Callable[[str, int, str], Awaitable[str | None]]


class Items:
    def __init__(
        self,
        pool: Pool,
        counter: Counter,
        models: ModelTable,
        settings: Settings,
        clock: Clock = utc_now,
        embedder: Embedder | None = None,
        summarize: Summarize | None = None,
        detect: Detect = lambda text: (),
        quarantine: Quarantine | None = None,
        shares: Callable[[str], Shares] = lambda model: Shares(),
        meter: Meter = UNCOUNTED,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._embedder = embedder
        self._summarize = summarize
        self._detect = detect
        self._quarantine = quarantine
        self._meter = meter
        self._finder = Finder(pool, embedder, meter=self._meter)
        self._profiles = Profiles(models, counter, settings, shares)
        self._states = States(pool, self._profiles, self._finder, settings, clock, self._meter)
        self._stored: Bounded[UUID, int] = Bounded(4_096)  # tokens of a session as last seen
        self._names: Bounded[UUID, str] = Bounded(65_536)  # of sessions; they never change
        self._presence = Presence()

    # Adding.

    async def add(
        self,
        place: Place,
        model: str,
        content: object,
        content_type: object,
        priority: object = 0,
        metadata: object = None,
        auto_compress: object = True,
        scope: object = "session",
        id: UUID | None = None,
        at: datetime | None = None,
    ) -> MemoryItem:
        """Store a text. Again with the same `id` it gives what is stored.

        Raises:
            InvalidRequest: a value that cannot be stored; names the field.
            Conflict: it holds text that is in quarantine.
        """
        text = check.content(content, self._settings.work.most_item_bytes)
        kind = check.text(content_type, "content_type", check.MOST_TYPE_CHARS)
        rank = check.integer(priority, "priority", 0, 10)
        told, auto = check.metadata(metadata), check.flag(auto_compress, "auto_compress")
        shared, profile = scope_of(scope) == "tenant", self._profiles(model)
        found, hidden = await self._secrets(text)
        passed = auto and await self._near_trigger(place, profile, len(text))
        made = await self._made(place.tenant, text, profile, passed, searched=not hidden)
        vectors = await self._embedded(made)
        job = vectors is None and self._embedder is not None and bool(made.passages)
        new = NewItem(id or new_id(), shared, rank, auto, kind, kind_id(kind), made, told, job)
        now = at or self._clock()
        fresh = item_of(row_of(new, place, now), place.name, True)
        if hidden is not None:
            if await hidden.store_isolated(
                place, text, found, lambda connection: add_item(connection, place, model, new, now), new.id, model
            ):
                self._meter.added(new.form)
            return fresh
        added = await self._stored_new(place, model, new, now)
        item = fresh if added.added else await self._present(place.tenant, new.id)
        if item.full_content != text:
            return item
        if vectors is not None:
            await self._save(place.tenant, new, vectors)
        await self._after(place, profile, new, added)
        await self._propose(place, text, found, new.id)
        return item

    async def _secrets(self, text: str) -> tuple[Sequence[Found], Quarantine | None]:
        """What detectors find in a text, and where it goes if it goes out of sight at once."""
        if self._settings.quarantine == "off":
            return (), None
        found = await asyncio.to_thread(self._detect, text)
        return found, self._quarantine if found and self._settings.quarantine == "auto" else None

    async def _propose(self, place: Place, text: str, found: Sequence[Found], id: UUID) -> None:
        if found and self._quarantine is not None:
            await self._quarantine.propose(place, text, found, id)

    async def _near_trigger(self, place: Place, profile: Profile, chars: int) -> bool:
        """Whether the session's items and a new one of so many characters may be beyond the trigger."""
        stored = self._stored.get(place.id)
        if stored is None:
            async with self._pool.tenant(place.tenant, READ_SECONDS) as connection:
                stored = (await load_state(connection, place)).tokens
            self._stored.put(place.id, stored)
        return stored + chars > profile.sizes.trigger  # a token has a character at least

    async def _made(self, tenant: bytes, text: str, profile: Profile, passed: bool, searched: bool = True) -> Text:
        share = self._settings.strategies.balanced
        return await asyncio.to_thread(text_of, tenant, text, profile.sizes, share, profile.count, passed, searched)

    async def _embedded(self, made: Text) -> Floats | None:
        """Vectors of a short item; None where a job has to make them."""
        if self._embedder is None or not 0 < len(made.passages) <= EMBED_AT_ONCE:
            return None
        try:
            async with asyncio.timeout(EMBED_SECONDS):
                return await self._embedder.embed([made.content[p.start : p.stop] for p in made.passages])
        except (ModelError, TimeoutError):
            return None

    async def _stored_new(self, place: Place, model: str, new: NewItem, now: datetime) -> Added:
        seconds = ADD_SECONDS + len(new.text.content) / BULK_BYTES_A_SECOND
        async with self._pool.connection(seconds) as connection:
            added = await add_item(connection, place, model, new, now)
        if added.added:
            self._meter.added(new.form)
        self._stored.put(place.id, added.tokens)
        self._names.put(place.id, place.name)
        self._finder.grown(place.tenant, len(new.text.passages))
        if added.added and (new.shared or added.tokens <= new.text.tokens):
            await self._announce(place.tenant)
        return added

    async def _announce(self, tenant: bytes) -> None:
        """Where there was nothing to recall there may be something now: all processes look again, at once or soon."""
        self._presence.changed(tenant)
        with suppress(StoreError):
            async with self._pool.connection(ADD_SECONDS) as connection:
                await nudge(connection, tenant, "items")

    async def _save(self, tenant: bytes, new: NewItem, vectors: Floats) -> None:
        assert self._embedder is not None
        space = space_id(self._embedder.name)
        async with self._pool.connection(ADD_SECONDS) as connection:
            made = [Segmented(vector) for vector in vectors]
            await save_vectors(connection, tenant, new.id, space, new.kind, range(len(made)), made)

    async def _after(self, place: Place, profile: Profile, new: NewItem, added: Added) -> None:
        """The trigger rule, and hygiene when it is time."""
        if new.auto_compress and added.tokens > profile.sizes.trigger and added.used > profile.sizes.target:
            await self._states.settle(place, profile)
        every = self._settings.hygiene.every_items
        if every and added.untidied >= every:
            async with self._pool.connection(ADD_SECONDS) as connection:
                await enqueue(connection, "tidy", place.tenant, place.id)

    async def _present(self, tenant: bytes, id: UUID) -> MemoryItem:
        async with self._pool.connection(READ_SECONDS) as connection:
            rows = await load_items(connection, tenant, [id])
        if id not in rows:
            raise NotFound.of("item_id")
        return (await self._told(tenant, [rows[id]]))[0]

    # Reading.

    async def retrieve(self, tenant: bytes, item_id: object, decompress: bool = True) -> MemoryItem | None:
        """An item of the tenant by its id, counted as read; without `decompress` without its content."""
        try:
            id = check.item_id(item_id)
        except NotFound:
            return None
        began = time.perf_counter()
        async with self._pool.connection(READ_SECONDS) as connection:
            row = await retrieve_item(connection, tenant, id, decompress, self._clock())
        self._meter.retrieved(time.perf_counter() - began)
        return None if row is None else (await self._told(tenant, [row], decompress))[0]

    async def search(
        self,
        place: Place,
        query: object,
        limit: object = 5,
        content_types: object = None,
        include_archived: bool = False,
        whole_tenant: bool = False,
        full: bool = True,
        by_meaning: bool = True,
    ) -> tuple[FoundItem, ...]:
        """Items of the session and shared ones, best first. Does not count as reading.

        Args:
            whole_tenant: of all sessions.
            full: with contents, the best first while they fit an answer; without, without the passage found.
            by_meaning: False: by words alone.
        """
        asked = check.text(query, "query", MOST_QUERY_CHARS)
        most = check.integer(limit, "limit", 1, check.MOST_LIMIT)
        types = check.texts(content_types, "content_types", most_chars=check.MOST_TYPE_CHARS)
        kinds = [kind_id(kind) for kind in types] or None
        scope = Scope(place.tenant, None if whole_tenant else place.scope, kinds, include_archived)
        found = await self._finder.find(scope, asked, max(50, 2 * most), by_meaning)
        rows = await self._finder.rows(scope, found.hits(most), asked, full)
        await self._learn_names(place.tenant, [row for _, row in rows])
        return tuple(
            found_item(row, self._name(row), hit, full) for hit, row in rows if not types or row.content_type in types
        )

    async def listed(
        self,
        place: Place | None,
        tenant: bytes,
        cursor: str | None = None,
        limit: object = 100,
        status: str | None = None,
        full: bool = True,
    ) -> tuple[tuple[MemoryItem, ...], str | None]:
        """A page of items, newest first, of a session or of all; and the cursor of the next page.

        A page may end before `limit`, where its contents are large.
        """
        most = check.integer(limit, "limit", 1, check.MOST_LIMIT)
        before, wanted = read_cursor(cursor), status_of(status)
        async with self._pool.tenant(tenant, READ_SECONDS) as connection:
            page, follows = await list_items(
                connection, tenant, place.id if place else None, before, most, wanted, full
            )
        return tuple(await self._told(tenant, page, full)), write_cursor(page[-1]) if follows else None

    async def _told(self, tenant: bytes, rows: Sequence[ItemRow], full: bool = True) -> list[MemoryItem]:
        await self._learn_names(tenant, rows)
        return [item_of(row, self._name(row), full) for row in rows]

    async def _learn_names(self, tenant: bytes, rows: Sequence[ItemRow]) -> None:
        if unknown := [row.session for row in rows if row.session not in self._names]:
            async with self._pool.tenant(tenant, READ_SECONDS) as connection:
                for id, name in (await load_names(connection, tenant, unknown)).items():
                    self._names.put(id, name)

    def _name(self, row: ItemRow) -> str:
        return self._names.get(row.session) or str(row.session)

    async def has_any(self, tenant: bytes, place: Place | None) -> bool:
        """Whether `recall` can find anything. What was seen is remembered until a signal says otherwise."""
        for session in place.scope if place else [NIL]:
            known, now = self._presence.get(tenant, session), self._presence.now()
            if known is None:
                async with self._pool.tenant(tenant, READ_SECONDS) as connection:
                    known = await has_items(connection, tenant, session)
                self._presence.put(tenant, session, known, now)
            if known:
                return True
        return False

    def heard(self, tenant: bytes | None, kind: str, id: str) -> None:
        """A listener of signals: what another process stored may be the first there is."""
        if kind in PRESENCE_KINDS:
            self._presence.changed(tenant)

    async def recall(
        self,
        tenant: bytes,
        place: Place | None,
        text: str,
        room_tokens: int,
        count: CountTokens,
        hints: Sequence[str] = (),
    ) -> tuple[Quote, ...]:
        """What belongs beside a message of a conversation: of its named session and shared, or shared items alone.

        Args:
            hints: ids that the message names; these items come first.
        """
        scope = Scope(tenant, place.scope if place else [NIL])
        return await self._finder.recall(scope, text, room_tokens, count, [item_tail(hint) for hint in hints])

    async def answering(
        self, tenant: bytes, place: Place | None, question: str, room_tokens: int, whole_tokens: int, count: CountTokens
    ) -> tuple[Quote, ...]:
        """The passages that answer a question, best first: of a session and shared items, or of all of the tenant."""
        scope = Scope(tenant, place.scope if place else None)
        return await self._finder.quotes(
            scope, question, room_tokens, whole_tokens, count, ANSWER_FLOOR, few=FEW_PASSAGES
        )

    async def origins(self, tenant: bytes, ids: Sequence[UUID]) -> dict[UUID, tuple[str, bytes]]:
        """The session and the digest of each active item, by its id."""
        async with self._pool.connection(READ_SECONDS) as connection:
            rows = await load_items(connection, tenant, ids, content=False)
        await self._learn_names(tenant, list(rows.values()))
        return {id: (self._name(row), row.digest) for id, row in rows.items() if row.status == ItemStatus.ACTIVE}

    # Changing.

    async def change(
        self,
        tenant: bytes,
        item_id: object,
        *,
        priority: object = UNSET,
        pinned: object = UNSET,
        metadata: object = UNSET,
        content: object = UNSET,
        archived: object = UNSET,
    ) -> MemoryItem:
        """Change an item. A pin or another priority brings it back in full; what fits is settled after.

        Raises:
            NotFound: the tenant has no such item.
            Conflict: the new content or metadata holds text that is in quarantine.
        """
        id = check.item_id(item_id)
        rank = UNSET if priority is UNSET else check.integer(priority, "priority", 0, 10)
        pin = UNSET if pinned is UNSET else check.flag(pinned, "pinned")
        told = UNSET if metadata is UNSET else check.metadata(metadata)
        away = UNSET if archived is UNSET else check.flag(archived, "archived")
        text: str | UnsetType = UNSET
        if content is not UNSET:
            text = check.content(content, self._settings.work.most_item_bytes)
        if {rank, pin, told, away, text} == {UNSET}:
            raise InvalidRequest("one of priority, pinned, metadata, content, archived must be given", "priority")
        async with self._pool.connection(READ_SECONDS) as connection:
            old = (await load_items(connection, tenant, [id], content=False)).get(id)
        if old is None:
            raise NotFound.of("item_id")
        form = UNSET if rank is UNSET and pin is not True else ItemForm.FULL
        changes = ItemChanges(
            priority=rank, pinned=pin, metadata=told, archived=away, form=form, kind=kind_id(old.content_type)
        )
        await self._states.settle(await self._changed(tenant, old, changes, text))
        return await self._present(tenant, id)

    async def restore(self, place: Place, id: UUID, content_type: str, content: str) -> None:
        """Make what a person released searchable, without asking detectors; a new item where none has the id."""
        async with self._pool.connection(READ_SECONDS) as connection:
            old = (await load_items(connection, place.tenant, [id], content=False)).get(id)
        if old is not None:
            changes = ItemChanges(kind=kind_id(old.content_type))
            await self._changed(place.tenant, old, changes, content, trusted=True)
            return
        made = await self._made(place.tenant, content, self._profiles(await self._states.model_of(place)), True)
        job = self._embedder is not None and bool(made.passages)
        new = NewItem(id, False, 0, True, content_type, kind_id(content_type), made, None, job, ItemForm.SUMMARY)
        await self._stored_new(place, "", new, self._clock())

    async def _changed(
        self, tenant: bytes, old: ItemRow, changes: ItemChanges, text: str | UnsetType, trusted: bool = False
    ) -> Place:
        """Gives where the item is."""
        await self._learn_names(tenant, [old])
        place = Place(tenant, self._name(old), old.session)
        found, hidden = await self._secrets(text) if isinstance(text, str) and not trusted else ((), None)
        if isinstance(text, str):
            profile = self._profiles(await self._states.model_of(place))
            made = await self._made(tenant, text, profile, old.summary is not None, searched=not hidden)
            changes = msgspec.structs.replace(changes, text=made)

        async def write(connection: asyncpg.Connection) -> None:
            if await change_item(connection, tenant, old.id, changes, self._clock()) is None:
                raise NotFound.of("item_id")

        if isinstance(text, str) and hidden is not None:
            await hidden.store_isolated(place, text, found, write)
        else:
            async with self._pool.tenant(tenant, ADD_SECONDS) as connection:
                await write(connection)
        self._stored.drop(old.session)
        if changes.archived is False:
            await self._announce(tenant)
        if isinstance(changes.text, Text):
            self._finder.grown(tenant, len(changes.text.passages))
        if isinstance(text, str) and hidden is None:
            await self._propose(place, text, found, old.id)
        return place

    async def delete(self, tenant: bytes, item_id: object) -> None:
        """Remove an item and all that was made of it.

        Raises:
            NotFound: the tenant has no such item.
        """
        id = check.item_id(item_id)
        async with self._pool.tenant(tenant, ADD_SECONDS) as connection:
            gone = await delete_item(connection, tenant, id, self._clock())
        if not gone:
            raise NotFound.of("item_id")
        self._stored.clear()
        self._presence.changed(tenant)

    async def compress(self, content: object, content_type: object, strategy: object, model: str) -> str:
        """A shorter text: a model's where one is set and answers, else the digest."""
        text = check.content(content, self._settings.work.most_item_bytes)
        check.text(content_type, "content_type", check.MOST_TYPE_CHARS)
        share: float = getattr(self._settings.strategies, check.choice(strategy, "strategy", CompressionStrategy))
        count = self._profiles(model).count
        tokens = await asyncio.to_thread(count, text)
        budget = budget_tokens(tokens, share, None)
        if self._summarize is not None and (told := await self._summarize(text, budget, model)):
            return told
        return await asyncio.to_thread(fill, text, budget, count)

    # The session as a whole: see `state.py`.

    async def working_context(
        self, place: Place, model: str, max_tokens: object = None, query: object = None
    ) -> WorkingContext:
        """The items that belong into a prompt of at most `max_tokens`; what answers `query` comes first."""
        return await self._states.working_context(place, model, max_tokens, query)

    async def state(self, place: Place, model: str) -> MemoryStateSnapshot:
        return await self._states.state(place, model)

    async def hygiene(self, place: Place, dry_run: object = False) -> HygieneReport:
        """Compress, archive and delete what time has passed by; a dry run only tells."""
        report = await self._states.hygiene(place, check.flag(dry_run, "dry_run"))
        self._stored.drop(place.id)
        return report

    async def track_usage(
        self, place: Place, model: str, input_tokens: object, output_tokens: object, id: UUID | None = None
    ) -> None:
        """Add tokens that a program had from a provider, and what they cost; again with the same id changes nothing."""
        await self._states.track_usage(place, model, input_tokens, output_tokens, id)
