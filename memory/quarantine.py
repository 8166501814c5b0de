"""Quarantine: content that nothing may tell, quote or search; read by its thread alone, released by a person alone."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import asyncpg

from memory import check
from memory.detect import Found
from memory.errors import Conflict, NotAllowed, NotFound
from memory.identify import new_id
from memory.meter import UNCOUNTED, Meter
from memory.nouns import Clock, Place, Principal, QuarantinedContext, QuarantineState
from memory.seal import SHORT_CHARS, text_digest
from memory.settings import Settings
from memory.store.board import enter
from memory.store.pool import Pool
from memory.store.quarantine import (
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

Restore = Callable[[Place, UUID, str, str], Awaitable[None]]
"""Make an item (place, id, content type, content) searchable again, or anew where there is none of this id."""


class Spoken(NamedTuple):
    """A message of a conversation in which something was found."""

    turn: str  # in which it came
    digest: bytes


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
            await enter(connection, place, now)
            if already := await load_context(connection, place.tenant, UUID(context.id)):
                return already.thread_id
            rows, found, telling = await self._alone(connection, place.tenant, words, digests)
            if already := await load_context(connection, place.tenant, UUID(context.id)):  # by another process
                return already.thread_id
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
        return context.thread_id

    async def _alone(
        self, connection: asyncpg.Connection, tenant: bytes, words: str, digests: Sequence[bytes]
    ) -> tuple[list[asyncpg.Record], Said, set[bytes]]:
        """Items and messages that hold a text, and nodes where it is told; nobody adds one until the transaction ends.

        What is there is read while others write, so that they wait only for the reading of what they wrote meanwhile.
        """
        whole, since = len(words) < SHORT_CHARS, await oldest_writer(connection)
        items = await holding(connection, tenant, words, whole)
        found = await saying(connection, tenant, words, digests)
        telling = await told(connection, tenant, words, items)
        await shut_the_door(connection, tenant)
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
            context_type="item" if item else "message", reason_for_isolation=f"looks like: {', '.join(kinds)}",
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

    async def found(self, place: Place, content: str, found: Sequence[Found], item: UUID, sealed: bool) -> None:
        """What follows when a detector found something in an item; `sealed`: it is out of sight already."""
        if sealed or self._mode == "auto":
            reason = f"looks like: {', '.join(sorted({one.kind for one in found}))}"
            await self.isolate(place, content, "item", reason, principal=Principal(place.tenant, DETECTOR))
        elif self._mode == "suggest":
            await self.propose(place, content, found, item)

    async def found_said(self, place: Place, content: str, found: Sequence[Found], spoken: Spoken) -> None:
        """What follows when a detector found something in a message of a conversation.

        What a person has released is not isolated again.
        """
        if self._mode == "suggest":
            await self.propose(place, content, found, spoken=spoken)
        elif self._mode == "auto":
            reason = f"looks like: {', '.join(sorted({one.kind for one in found}))}"
            await self.isolate(
                place, storable(content), "message", reason, {"turn": spoken.turn}, Principal(place.tenant, "detector"),
                id=_id_of(place.tenant, content, b"found"), digests=[spoken.digest],
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
        """Give content back: its items are active again, in shortened form; what was in no item becomes one.

        Raises:
            NotAllowed: not a person.
            NotFound: no such thread.
            Conflict: it is released already, or only proposed.
        """
        thread = check.thread_id(thread_id)
        if not principal.is_person:
            raise NotAllowed
        tenant, now = principal.tenant, self._clock()
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await connection.execute("select set_config('lock_timeout', '5s', true)")
            row = await lock_thread(connection, tenant, thread)
            if row is None:
                raise NotFound
            if row["state"] != QuarantineState.ISOLATED:
                raise Conflict(f"the context is {row['state']}")
            ids = await give_back(connection, tenant, row["id"], row["items"], now)
            contents = await contents_of(connection, tenant, row["items"])
            await delete_seals(connection, tenant, thread)
            await audit(
                connection, tenant, principal.actor, "quarantine.release", str(row["id"]), {"items": len(ids)}, now
            )
        place = Place(tenant, row["session_name"], row["session"])
        back = [(id, "", content) for id, content in contents.items()]
        for given in back if row["items"] else [(row["id"], row["context_type"], row["content"])]:
            with suppress(Conflict):  # another thread holds it still
                await self._restore(place, *given)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await set_released(connection, tenant, row["id"], now)
            await tell(connection, tenant, "quarantine", place.name, {"id": str(row["id"]), "released": True}, now)


def actor_kind(actor: str) -> str:
    """One of few words, for a counter."""
    return actor if actor == DETECTOR else "program"


def proposal_id(tenant: bytes, content: str) -> UUID:
    """One for the same content, so that nothing is proposed twice."""
    return _id_of(tenant, content, b"proposal")


def _id_of(tenant: bytes, content: str, use: bytes) -> UUID:
    return UUID(bytes=blake2b(text_digest(content), digest_size=16, key=tenant, person=use).digest())
