"""Recorder: a turn's opening, its end, and what is written where when the database is away.

The end of an answer is relayed after its turn is committed; else after an fsynced append to the spool; else it is
counted as unrecorded.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
import structlog

from memory.bounded import Bounded
from memory.errors import InvalidRequest, SpoolError, StoreError, StoreRefused
from memory.identify import Line, child, session_id, text_id
from memory.messages import ChatRequest, Message
from memory.spool import Spool
from memory.store.pool import Pool
from memory.store.turns import (
    FoldRow,
    NodeRow,
    TurnRecord,
    batches,
    find_line,
    pack,
    save_nodes,
    unpack_turn,
)
from memory.store.writer import TurnWriter
from memory.types import Aside, Usage

log = structlog.get_logger()

STORED_NODES = 200_000  # that this process knows to be stored
FEW_MESSAGES = 8  # so many are written again rather than asked about
SMALL = 32 * 1024
REPLAY_SECONDS = 10.0  # for a turn that waited on disk: nobody waits for it, and all behind it do
OPENING_SECONDS = 0.05  # an answer that is there before needs no opening of its own
OUTSIDE = -1  # the depth of a system message, which stands on no line


class Kept(StrEnum):
    """Where a turn is safe."""

    COMMITTED = "committed"
    SPOOLED = "spooled"
    UNRECORDED = "unrecorded"


class Asked(msgspec.Struct, frozen=True):
    """What the opening of a turn writes: the line's messages, and how they were forwarded."""

    tenant: bytes
    label: str | None
    model: str
    request: ChatRequest
    line: Line
    tokens: Sequence[int]  # of the line's messages; () where they were not counted
    attempt: bytes
    record: Mapping[str, object]
    folds: tuple[FoldRow, ...] = ()
    jobs: tuple[str, ...] = ()
    held: int | None = None  # what was known of quarantine when messages were told in it; None: none was


class Ended(msgspec.Struct, frozen=True):
    """How a turn ended."""

    status: str  # "answered", "partial", "failed"
    answers: tuple[Message, ...]
    record: Mapping[str, object]
    usage: Usage | None = None  # of all its requests
    direct: Usage | None = None  # of the one request that the client would have made, where we made more
    aside: Aside | None = None  # what was said before the answer that the client did not see


class Opening:
    """The opening of a turn, written beside the upstream call unless the answer is faster."""

    def __init__(self, write: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._write = write
        self._task: asyncio.Task[bool] | None = None
        self._timer = asyncio.get_running_loop().call_later(OPENING_SECONDS, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._write())

    async def settled(self) -> bool:
        """Is it written? An opening that has not begun is left to the turn's end, which writes all at once."""
        if self._task is None:
            self._timer.cancel()
            return False
        return await self._task


class Recorder:
    def __init__(self, pool: Pool, spool: Spool) -> None:
        self._pool = pool
        self._writer = TurnWriter(pool)
        self._openings = TurnWriter(pool, relaxed=True)
        self._replaying = TurnWriter(pool, wait_seconds=REPLAY_SECONDS)
        self._spool = spool
        self._stored: Bounded[bytes, float] = Bounded(STORED_NODES)  # node -> when, in seconds of time.monotonic
        self._sessions: Bounded[bytes, str] = Bounded(STORED_NODES // 10)
        self._followers: Bounded[bytes, bytes] = Bounded(STORED_NODES // 10)  # node -> the first one sent after it
        self._draining = asyncio.Lock()

    def session(self, line: Line) -> str:
        """The session a line belongs to, as far as this process knows: its ancestors' or, where it forks, a new one."""
        for position in range(len(line) - 1, -1, -1):
            known = self._sessions.get(line.nodes[position])
            if known is None:
                continue
            if position + 1 == len(line):
                return known
            follower, following = self._followers.get(line.nodes[position]), line.nodes[position + 1]
            return known if follower in (None, following) else session_id(following)
        return session_id(line.nodes[0])

    def age(self, line: Line) -> float | None:
        """Seconds since this process stored the newest answer on a line; None if another one did, or nobody.

        Whoever stored the answer before the new messages has seen all that happened on the line up to there.
        """
        answer = line.fresh - 1
        stored = self._stored.get(line.nodes[answer]) if answer >= 0 else None
        return time.monotonic() - stored if stored is not None else None

    async def store_line(self, asked: Asked, known: int) -> None:
        """Make a line's messages durable before any of them leaves the prompt.

        Raises:
            StoreError: they are not.
        """
        await self._store(asked, batches(self._new_rows(asked, known)))

    async def _store(self, asked: Asked, rows: Sequence[Sequence[NodeRow]]) -> None:
        """Store batches of messages, each durably."""
        for batch in rows:
            async with self._pool.connection() as connection:
                session = await save_nodes(connection, asked.tenant, asked.label, batch, self._named(asked, batch))
            self._mark(batch, session)

    def open(self, asked: Asked) -> Opening:
        """Begin to write a turn's opening, beside the upstream call."""
        return Opening(lambda: self._open(asked))

    async def _open(self, asked: Asked) -> bool:
        try:
            *first, last = batches(await self._unknown_rows(asked)) or [()]
            await self._store(asked, first)
            session = await self._openings.write(self._turn(asked, last, None))
        except StoreError as error:
            log.debug("opening not written", reason=str(error))
            return False
        self._name(last, session)  # stored, but not durably: the end's commit vouches for it
        self._follow(asked.line)
        return True

    async def close(self, asked: Asked, opening: Opening | None, ended: Ended) -> Kept:
        """Write a turn's end, durably.

        A database that was killed after the opening may have lost it; then the end is refused, and all is written
        again.
        """
        opened = opening is not None and await opening.settled()
        not_durable = self._new_rows(asked, 0)
        answers = answer_rows(asked, ended)
        try:
            rows = () if opened else await self._unknown_rows(asked)
            try:
                session = await self._write(self._turn(asked, (*rows, *answers), ended))
            except StoreRefused:  # of what we think is stored something is gone
                self.forget()
                not_durable = self._new_rows(asked, 0)
                session = await self._write(self._turn(asked, (*not_durable, *answers), ended))
        except StoreError:
            return await self._spool_turn(self._turn(asked, (*not_durable, *answers), ended))
        self._mark((*not_durable, *answers), session)
        self._follow(asked.line)
        return Kept.COMMITTED

    def forget(self) -> None:
        """Take nothing for stored any more: a tenant was erased, or this process has not heard all there was."""
        self._stored.clear()
        self._sessions.clear()
        self._followers.clear()

    def spooled(self) -> int:
        """Turns that wait on disk for the database."""
        return self._spool.depth()

    async def drain(self) -> int:
        """Write what the spool holds to the database; stops where that fails. Gives how many turns it wrote."""

        async def write(record: bytes) -> None:  # perhaps another process's: it tells nothing of what this one has seen
            try:
                await self._write(unpack_turn(record), replays=True)
            except (StoreRefused, msgspec.DecodeError) as error:  # set aside, so that it does not block what follows
                raise InvalidRequest(str(error)) from error

        async with self._draining:
            try:
                written = await self._spool.drain(write)
            except StoreError as error:
                log.info("spool waits", reason=str(error), turns=self._spool.depth())
                return 0
        if written:
            log.info("spool replayed", turns=written)
        return written

    async def _write(self, turn: TurnRecord, replays: bool = False) -> str:
        writer, wait_seconds = (self._replaying, REPLAY_SECONDS) if replays else (self._writer, self._pool.wait_seconds)
        *first, last = batches(turn.nodes) or [()]
        for batch in first:
            async with self._pool.connection(wait_seconds) as connection:
                await save_nodes(connection, turn.tenant, turn.label, batch, turn.session)
        return await writer.write(msgspec.structs.replace(turn, nodes=tuple(last)) if first else turn)

    async def _spool_turn(self, turn: TurnRecord) -> Kept:
        try:
            await self._spool.append_async(pack(turn))
        except SpoolError as error:
            log.error("turn unrecorded", reason=str(error))
            return Kept.UNRECORDED
        return Kept.SPOOLED

    async def _unknown_rows(self, asked: Asked) -> Sequence[NodeRow]:
        """The messages that are not stored yet; asks the database only where this process cannot tell."""
        rows = self._new_rows(asked, 0)
        if len(rows) <= FEW_MESSAGES and sum(len(row.raw) for row in rows) <= SMALL:
            return rows
        async with self._pool.connection() as connection:
            state = await find_line(connection, asked.tenant, asked.line.nodes)
        return self._new_rows(asked, state.known)

    def _new_rows(self, asked: Asked, known: int) -> tuple[NodeRow, ...]:
        """Rows for the messages behind the `known` first ones that this process has not seen stored.

        A node is only ever stored after its ancestors, so one known node vouches for all before it.
        """
        nodes = asked.line.nodes
        begin = next((i + 1 for i in range(len(nodes) - 1, known - 1, -1) if nodes[i] in self._stored), known)
        spoken = tuple(node_row(asked, i) for i in range(begin, len(nodes)))
        return spoken + tuple(row for row in system_rows(asked) if row.node not in self._stored)

    def _turn(self, asked: Asked, rows: Sequence[NodeRow], ended: Ended | None) -> TurnRecord:
        return TurnRecord(
            tenant=asked.tenant,
            session=self._named(asked, rows),
            nodes=tuple(rows),
            turn=asked.line.tip,
            attempt=asked.attempt,
            status=ended.status if ended else "open",
            model=asked.model,
            answers=tuple(child(asked.tenant, asked.line.tip, message) for message in ended.answers) if ended else (),
            record=msgspec.json.encode(
                {**asked.record, "system": system_ids(asked), **(ended.record if ended else {})}
            ),
            folds=asked.folds,
            jobs=asked.jobs if ended and ended.status == "answered" else (),
            label=asked.label,
            held=asked.held,
        )

    def _named(self, asked: Asked, rows: Sequence[NodeRow]) -> str:
        """What the session is called if these rows begin one: a line is named by the node where it began."""
        first = next((row.node for row in rows if row.depth >= 0 and row.sent), None)
        return session_id(first) if first else self.session(asked.line)

    def _follow(self, line: Line) -> None:
        """Remember what the client sent after what: another message there is a fork."""
        for position in range(max(1, len(line) - FEW_MESSAGES), len(line)):
            if line.nodes[position - 1] not in self._followers:
                self._followers.put(line.nodes[position - 1], line.nodes[position])

    def _mark(self, rows: Sequence[NodeRow], session: str) -> None:
        """Remember what is durable, so that it is neither asked about nor written again."""
        now = time.monotonic()
        for row in rows:
            self._stored.put(row.node, now)
        self._name(rows, session)

    def _name(self, rows: Sequence[NodeRow], session: str) -> None:
        for row in rows:
            if row.depth >= 0:
                self._sessions.put(row.node, session)


def node_row(asked: Asked, position: int) -> NodeRow:
    message = asked.line.messages[position]
    return NodeRow(
        node=asked.line.nodes[position],
        parent=asked.line.parent(position),
        depth=position,
        sent=True,
        role=message.role,
        digest=message.digest,
        raw=message.raw,
        tokens=asked.tokens[position] if asked.tokens else 0,
    )


def system_rows(asked: Asked) -> tuple[NodeRow, ...]:
    """System messages stand outside the tree, each stored once by its content."""
    if asked.line.messages[0].is_system:  # nobody has spoken, so they are the line
        return ()
    systems = dict.fromkeys(message for message in asked.request.messages if message.is_system)
    return tuple(NodeRow(child(asked.tenant, b"", m), None, OUTSIDE, True, m.role, m.digest, m.raw, 0) for m in systems)


def system_ids(asked: Asked) -> list[str]:
    """The client's system messages, by the ids they are stored under."""
    return [text_id(row.node) for row in system_rows(asked)]


def answer_rows(asked: Asked, ended: Ended) -> tuple[NodeRow, ...]:
    tip, depth = asked.line.tip, len(asked.line)
    answers = dict.fromkeys(ended.answers)  # choices that are equal are one message
    return tuple(NodeRow(child(asked.tenant, tip, m), tip, depth, False, m.role, m.digest, m.raw, 0) for m in answers)
