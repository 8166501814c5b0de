"""Quarantine: content that nothing may tell, quote or search; read by its thread alone, released by a person alone."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import asyncpg

from memory import check
from memory.detect import Found
from memory.errors import Conflict, NotAllowed, NotFound
from memory.identify import keyed_uuid, new_id
from memory.meter import UNCOUNTED, Meter
from memory.nouns import Clock, Place, Principal, QuarantinedContext, QuarantineState
from memory.seal import SHORT_CHARS, text_digest
from memory.settings import Settings
from memory.store.board import enter
from memory.store.items import refuse_held
from memory.store.pool import Pool
from memory.store.quarantine import (
    are_gone,
    audit,
    close_proposal,
    contents_of,
    context_of,
    count_isolation,
    delete_seals,
    give_back,
    holders,
    holding,
    list_contexts,
    load_context,
    load_seals,
    lock_thread,
    oldest_writer,
    save_context,
    save_seals,
    set_released,
    shut_the_door,
    take_away,
)
from memory.store.sealed import Said, saying, told, withdraw
from memory.store.signals import tell
from memory.store.turns import storable
from memory.tokens import Counter

WAIT_SECONDS = 60.0
MOST_REASON_CHARS = 10_000
DETECTOR = "detector"  # who isolates what was found by its shape
ENCODING = "o200k_base"  # tokens are told as gpt-4o counts them

Store = Callable[[asyncpg.Connection], Awaitable[object]]
"""Write what holds a text, in the transaction that isolates it."""

Restore = Callable[[Place, UUID, str, str], Awaitable[None]]
"""Make an item (place, id, content type, content) searchable again, or anew where there is none of this id."""


class Spoken(NamedTuple):
    """A message of a conversation in which something was found."""

    turn: str  # in which it came
    digest: bytes


class Isolated(NamedTuple):
    thread: str
    is_new: bool  # False: it was isolated before, and nothing was changed


async def nothing(connection: asyncpg.Connection) -> None:
    """Where nothing new holds the text."""


async def keep(place: Place, id: UUID, content_type: str, content: str) -> None:
    """Where nobody searches items."""


class Quarantine:
    def __init__(
        self,
        pool: Pool,
        counter: Counter,
        clock: Clock,
        settings: Settings,
        restore: Restore = keep,
        meter: Meter = UNCOUNTED,
    ) -> None:
        self._pool = pool
        self._counter = counter
        self._clock = clock
        self._mode = settings.quarantine
        self._most_bytes = settings.work.most_item_bytes
        self._restore = restore
        self._meter = meter

    def restore_with(self, restore: Restore) -> None:
        """Who makes released items searchable; items know the quarantine, so this comes second."""
        self._restore = restore

    async def isolate(
        self,
        place: Place,
        content: object,
        context_type: object,
        reason: object,
        metadata: object = None,
        principal: Principal | None = None,
        *,
        id: UUID | None = None,
        digests: Sequence[bytes] = (),
    ) -> str:
        """Take content away, with every item and message of the tenant that holds it, and what was made of those.

        Gives the thread by which it can be read.
        Again with the same id it changes nothing.

        Args:
            digests: of messages that hold it, however they write it.
        """
        isolated = await self._isolate(
            place, content, context_type, reason, metadata, principal, id=id, digests=digests
        )
        return isolated.thread

    async def _isolate(
        self,
        place: Place,
        content: object,
        context_type: object,
        reason: object,
        metadata: object = None,
        principal: Principal | None = None,
        *,
        id: UUID | None = None,
        digests: Sequence[bytes] = (),
        store: Store = nothing,
        model: str = "",
    ) -> Isolated:
        said = check.content(content, self._most_bytes)
        stored, now = check.metadata(metadata), self._clock()
        context = QuarantinedContext(
            id=str(id or new_id()), session_id=place.name, thread_id=f"thread_{secrets.token_hex(16)}",
            context_type=check.text(context_type, "context_type", check.MOST_TYPE_CHARS),
            reason_for_isolation=check.text(reason, "reason", MOST_REASON_CHARS),
            token_count=await asyncio.to_thread(self._counter.text, said, ENCODING), is_active=True, created_at=now,
            updated_at=now, metadata=check.metadata_of(stored), state=QuarantineState.ISOLATED,
        )  # fmt: skip
        words, actor = said.strip(), principal.actor if principal else "program"
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            await enter(connection, place, now, model)
            if already := await load_context(connection, place.tenant, UUID(context.id)):
                return Isolated(already.thread_id, False)
            rows, found, telling = await self._alone(connection, place.tenant, words, digests, store)
            if already := await load_context(connection, place.tenant, UUID(context.id)):  # by another process
                return Isolated(already.thread_id, False)
            await take_away(connection, place.tenant, rows, now)
            await close_proposal(connection, place.tenant, proposal_id(place.tenant, said), now)
            await save_context(connection, place, context, said, [row["id"] for row in rows], stored)
            await withdraw(connection, place.tenant, found, telling)
            messages = {*found.values(), *digests}
            await save_seals(connection, place.tenant, context.thread_id, [text_digest(said), *messages])
            numbers = {"items": len(rows), "messages": len(messages), "tokens": context.token_count}
            await audit(connection, place.tenant, actor, "quarantine.isolate", context.id, numbers, now)
            await tell(connection, place.tenant, "quarantine", place.name, {"id": context.id, **numbers}, now)
        self._meter.quarantined("person" if principal and principal.is_person else actor_kind(actor))
        return Isolated(context.thread_id, True)

    async def _alone(
        self, connection: asyncpg.Connection, tenant: bytes, words: str, digests: Sequence[bytes], store: Store
    ) -> tuple[list[asyncpg.Record], Said, set[bytes]]:
        """Items and messages that hold a text, and nodes where it is told; nobody adds one until the transaction ends.

        What is there is read while others write, so that they wait only for the reading of what they wrote meanwhile.
        """
        whole, since = len(words) < SHORT_CHARS, await oldest_writer(connection)
        items = await holding(connection, tenant, words, whole)
        found = await saying(connection, tenant, words, digests)
        telling = await told(connection, tenant, words, items)
        await shut_the_door(connection, tenant)
        await store(connection)
        rows = await holders(connection, tenant, words, whole, items, since)
        found |= await saying(connection, tenant, words, digests, since)
        telling |= await told(connection, tenant, words, [row["id"] for row in rows], since)
        await count_isolation(connection, tenant)
        return rows, found, telling

    async def propose(
        self,
        place: Place,
        content: str,
        found: Sequence[Found],
        item: UUID | None = None,
        spoken: Spoken | None = None,
    ) -> str | None:
        """Ask a person whether content belongs here; it stays usable, and is not copied.

        Gives the proposal's id; None where the same content was proposed or isolated before.
        """
        id, now = proposal_id(place.tenant, content), self._clock()
        kinds = sorted({one.kind for one in found})
        about: dict[str, object] = {"turn": spoken.turn} if spoken else {"item_id": str(item) if item else None}
        stored = check.metadata({**about, "kinds": kinds})
        context = QuarantinedContext(
            id=str(id), session_id=place.name, thread_id=f"thread_{secrets.token_hex(16)}",
            context_type="item" if item else "message", reason_for_isolation=reason_of(found),
            token_count=0, is_active=False, created_at=now, updated_at=now, metadata=check.metadata_of(stored),
            state=QuarantineState.PROPOSED,
        )  # fmt: skip
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            await enter(connection, place, now)
            seals = await load_seals(connection, place.tenant)
            if text_digest(content) in seals or (spoken and spoken.digest in seals):
                return None
            if not await save_context(connection, place, context, "", [item] if item else [], stored):
                return None
            data = {"id": context.id, **about, "found": len(found)}
            await tell(connection, place.tenant, "quarantine_proposed", place.name, data, now)
        return context.id

    async def store_isolated(
        self,
        place: Place,
        content: str,
        found: Sequence[Found],
        store: Store,
        item: UUID | None = None,
        model: str = "",
    ) -> bool:
        """Store an item in which a detector found something: in one transaction it is there and taken away.

        Args:
            item: a new one's id; again with the same it changes nothing, and the answer is False.
            model: of the session, should it begin with this.
        """
        id = keyed_uuid(place.tenant, item.bytes, b"item") if item else None
        principal = Principal(place.tenant, DETECTOR)
        isolated = await self._isolate(
            place, content, "item", reason_of(found), None, principal, id=id, store=store, model=model
        )
        return isolated.is_new

    async def found_said(self, place: Place, content: str, found: Sequence[Found], spoken: Spoken) -> None:
        """What follows when a detector found something in a message of a conversation.

        What a person has released is not isolated again.
        """
        if self._mode == "suggest":
            await self.propose(place, content, found, spoken=spoken)
        elif self._mode == "auto":
            await self.isolate(
                place, storable(content), "message", reason_of(found), {"turn": spoken.turn},
                Principal(place.tenant, DETECTOR), id=keyed_uuid(place.tenant, text_digest(content), b"found"),
                digests=[spoken.digest],
            )  # fmt: skip

    async def listed(self, place: Place) -> tuple[QuarantinedContext, ...]:
        """Isolated and proposed ones of a session, newest first, without content."""
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            return await list_contexts(connection, place)

    async def read(self, principal: Principal, thread_id: object) -> QuarantinedContext | None:
        """An isolated context with its content; who read it is written down with the reading. None: no such thread."""
        try:
            thread = check.thread_id(thread_id)
        except NotFound:
            return None
        tenant = principal.tenant
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            row = await lock_thread(connection, tenant, thread)
            if row is None or row["state"] != QuarantineState.ISOLATED:
                return None
            await audit(connection, tenant, principal.actor, "quarantine.read", str(row["id"]), {}, self._clock())
            return context_of(row, row["content"])

    async def release(self, principal: Principal, thread_id: object) -> None:
        """Give content back: its items are active again, in shortened form; what is in no item becomes one.

        Raises:
            NotAllowed: not a person.
            NotFound: no such thread.
            Conflict: it is released already, or only proposed; or it is in no item, and another thread holds a part of
                it: that comes first.
        """
        thread = check.thread_id(thread_id)
        if not principal.is_person:
            raise NotAllowed
        tenant, now = principal.tenant, self._clock()
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await connection.execute("select set_config('lock_timeout', '5s', true)")
            row = await lock_thread(connection, tenant, thread)
            if row is None:
                raise NotFound.of("thread_id")
            if row["state"] != QuarantineState.ISOLATED:
                raise Conflict(f"the context is {row['state']}")
            alone: list[tuple[UUID, str, str]] = []
            ids = await give_back(connection, tenant, row["id"], row["items"], now)
            contents = await contents_of(connection, tenant, row["items"])
            await delete_seals(connection, tenant, thread)
            if await are_gone(connection, tenant, row["items"]) and await is_last(connection, tenant, row["content"]):
                alone = [(row["id"], row["context_type"], row["content"])]
            await audit(
                connection, tenant, principal.actor, "quarantine.release", str(row["id"]), {"items": len(ids)}, now
            )
        place = Place(tenant, row["session_name"], row["session"])
        for id, content in contents.items():
            with suppress(Conflict):  # another thread holds it still
                await self._restore(place, id, "", content)
        for given in alone:  # whatever refuses it now, the content stays here until the next try
            await self._restore(place, *given)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await set_released(connection, tenant, row["id"], now)
            await tell(connection, tenant, "quarantine", place.name, {"id": str(row["id"]), "released": True}, now)


async def is_last(connection: asyncpg.Connection, tenant: bytes, content: str) -> bool:
    """Whether no other thread holds the same text; until the transaction ends no other is isolated or released.

    Raises:
        Conflict: another thread holds a part of it.
    """
    await shut_the_door(connection, tenant)
    if text_digest(content) in await load_seals(connection, tenant):
        return False
    await refuse_held(connection, tenant, content)
    return True


def reason_of(found: Sequence[Found]) -> str:
    return f"looks like: {', '.join(sorted({one.kind for one in found}))}"


def actor_kind(actor: str) -> str:
    """One of few words, for a counter."""
    return actor if actor == DETECTOR else "program"


def proposal_id(tenant: bytes, content: str) -> UUID:
    """One for the same content, so that nothing is proposed twice."""
    return keyed_uuid(tenant, text_digest(content), b"proposal")
