"""Everything of a tenant as JSON lines, out and in again; and its erasure."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from memory import check
from memory.board import look_at, optional
from memory.errors import Conflict, InvalidRequest, NotFound, StoreRefused
from memory.identify import keyed_uuid, node_of, place
from memory.items import Items
from memory.nouns import Agent, Clock, HumanRequest, HumanStatus, ItemForm, Principal, Task, TaskStatus
from memory.seal import text_digest
from memory.store.board import enter, lock_board, save_agent, save_needs, save_task
from memory.store.export import export_lines
from memory.store.humans import save_request
from memory.store.pool import Pool
from memory.store.portable import erase, has_node, is_there, memory_lines, save_session, set_history
from memory.store.quarantine import audit, load_seals
from memory.store.signals import tell
from memory.store.usage import Spent, save_usage
from memory.written import words

WAIT_SECONDS = 60.0
ERASE_SECONDS = 3600.0
MOST_REFUSED = 1_000
MOST_LINE_BYTES = 64 * 2**20
CONFIRMATION = "erase"

Counts = dict[str, dict[str, int]]  # kind -> imported, present, refused, ignored
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class SessionLine(msgspec.Struct):
    id: str
    model: str = ""
    input_tokens: Whole = 0
    output_tokens: Whole = 0
    cost_usd: float = 0.0
    created_at: datetime | None = None


class ItemLine(msgspec.Struct):
    id: UUID
    session_id: str
    content: str
    content_type: str
    created_at: datetime
    last_accessed: datetime | None = None
    updated_at: datetime | None = None
    access_count: Whole = 0
    priority: int = 0
    pinned: bool = False
    auto_compress: bool = True
    scope: str = "session"
    status: Literal["active", "archived"] = "active"
    form: Literal["full", "summary", "hint", "none"] = "full"
    metadata: dict[str, Any] = {}


class TaskLine(msgspec.Struct):
    id: UUID
    session_id: str
    title: str
    created_at: datetime
    description: str = ""
    status: TaskStatus = TaskStatus.PENDING
    priority: int = 0
    assigned_agent: str | None = None
    progress: float = 0.0
    dependencies: list[UUID] = []
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    metadata: dict[str, Any] = {}


class AgentLine(msgspec.Struct):
    id: UUID
    session_id: str
    agent_name: str
    agent_type: str
    capabilities: list[str]
    created_at: datetime
    assigned_tools: list[str] = []
    is_active: bool = True
    updated_at: datetime | None = None
    metadata: dict[str, Any] = {}


class HumanLine(msgspec.Struct):
    id: UUID
    session_id: str
    question: str
    created_at: datetime
    expires_at: datetime
    response: str | None = None
    status: HumanStatus = HumanStatus.PENDING
    priority: int = 0
    answered_at: datetime | None = None
    metadata: dict[str, Any] = {}


class UsageLine(msgspec.Struct):
    id: UUID
    at: datetime
    session_id: str
    model: str
    input_tokens: Whole = 0
    cached_tokens: Whole = 0
    output_tokens: Whole = 0
    cost_usd: float | None = None
    direct_usd: float | None = None
    own_usd: float = 0.0


class MessageLine(msgspec.Struct):
    id: str
    session: str
    role: str
    time: datetime
    content: Any = None


class Loading:
    """One import: what is counted, and which tasks wait for which once all are there."""

    def __init__(self, tenant: bytes, seals: frozenset[bytes]) -> None:
        self.tenant = tenant
        self.seals = seals
        self.counts: Counts = defaultdict(lambda: dict.fromkeys(("imported", "present", "refused", "ignored"), 0))
        self.needs: dict[UUID, tuple[UUID, ...]] = {}
        self.models: dict[str, str] = {}  # of sessions: their items are counted as that model counts
        self.refused = 0

    def count(self, kind: str, result: str) -> None:
        self.counts[kind][result] += 1
        if result == "refused":
            self.refused += 1
            if self.refused > MOST_REFUSED:
                raise InvalidRequest(f"more than {MOST_REFUSED:,} lines were refused; those before are kept", "lines")


class Portable:
    def __init__(self, pool: Pool, items: Items, clock: Clock) -> None:
        self._pool = pool
        self._items = items
        self._clock = clock
        self._kinds: Mapping[str, tuple[type, Callable[[Loading, Any], Awaitable[bool | None]]]] = {
            "session": (SessionLine, self._session),
            "item": (ItemLine, self._item),
            "task": (TaskLine, self._task),
            "agent": (AgentLine, self._agent),
            "human_request": (HumanLine, self._human),
            "usage": (UsageLine, self._usage),
            "message": (MessageLine, self._message),
        }

    async def export(self, tenant: bytes) -> AsyncIterator[bytes]:
        """All in one state, a JSON object a line (without its end): conversations, then what programs stored."""
        async with self._pool.reader(tenant) as connection:
            async for line in export_lines(connection, tenant):
                yield line
            async for line in memory_lines(connection, tenant):
                yield line

    async def load(self, principal: Principal, lines: AsyncIterator[bytes]) -> Counts:
        """Take in what `export` gave, of this tenant or another; ids stay, so twice changes nothing.

        Messages of conversations that this tenant does not have become items of type "message". What follows from
        other lines (turns, summaries, blocks) is ignored. A line that cannot be taken is counted and passed over.

        Raises:
            InvalidRequest: more than 1,000 lines were refused; what was taken before stays.
        """
        async with self._pool.tenant(principal.tenant, WAIT_SECONDS) as connection:
            loading = Loading(principal.tenant, await load_seals(connection, principal.tenant))
        try:
            async for line in lines:
                if line.strip():
                    await self._line(loading, line)
        finally:
            await self._end(loading, principal)
        return {kind: dict(counts) for kind, counts in loading.counts.items()}

    async def erase(self, principal: Principal, confirm: object) -> dict[str, int]:
        """Everything of the tenant but the audit, in one transaction; rows of each table.

        Raises:
            InvalidRequest: `confirm` is not "erase".
        """
        if confirm != CONFIRMATION:
            raise InvalidRequest(f'confirm must be "{CONFIRMATION}"', "confirm")
        tenant, now = principal.tenant, self._clock()
        async with self._pool.tenant(tenant, ERASE_SECONDS) as connection:
            counts = await erase(connection, tenant)
            await audit(connection, tenant, principal.actor, "erase", "everything", counts, now)
            await connection.execute("select pg_notify('infold_memory', $1)", f"{tenant.hex()} erase -")
        return counts

    async def _line(self, loading: Loading, line: bytes) -> None:
        kind = "unknown"
        try:
            if len(line) > MOST_LINE_BYTES:
                raise InvalidRequest(f"a line must have at most {MOST_LINE_BYTES:,} bytes", "lines")
            kind = msgspec.json.decode(line, type=Kind).kind
            if kind not in self._kinds:
                return loading.count(kind if kind in IGNORED else "unknown", "ignored")
            shape, take = self._kinds[kind]
            taken = await take(loading, msgspec.json.decode(line, type=shape))
        except (msgspec.MsgspecError, InvalidRequest, Conflict, NotFound, StoreRefused, UnicodeError, RecursionError):
            return loading.count(kind, "refused")
        return loading.count(kind, "ignored" if taken is None else "imported" if taken else "present")

    async def _end(self, loading: Loading, principal: Principal) -> None:
        """What tasks wait for, now that all are there; and a line in the audit."""
        for task, needs in loading.needs.items():
            with suppress(InvalidRequest, NotFound):
                async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
                    await lock_board(connection, loading.tenant)
                    await look_at(connection, loading.tenant, task, needs)
                    await save_needs(connection, loading.tenant, task, needs)
        sums = {f"{kind} {name}": n for kind, counts in loading.counts.items() for name, n in counts.items() if n}
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            await audit(connection, loading.tenant, principal.actor, "import", "lines", sums, self._clock())
            await tell(connection, loading.tenant, "job", None, {"job": "import", **sums}, self._clock())

    # One line of each kind: True for a new one, False for one that is here, None for one that is of no use.

    async def _session(self, loading: Loading, line: SessionLine) -> bool:
        where = place(loading.tenant, line.id)
        model = check.text(line.model, "model", check.MOST_NAME_CHARS, empty=True)
        loading.models[where.name] = model
        usage = (line.input_tokens, line.output_tokens, check.number(line.cost_usd, "cost_usd", 0, 1e12))
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            return await save_session(connection, where, model, usage, line.created_at or self._clock())

    async def _item(self, loading: Loading, line: ItemLine) -> bool:
        where = place(loading.tenant, line.session_id)
        if text_digest(line.content) in loading.seals:
            raise InvalidRequest("content must not be in quarantine", "content")
        if await self._is_there(loading, "items", line.id):
            return False
        await self._items.add(
            where, loading.models.get(where.name, ""), line.content, line.content_type, line.priority, line.metadata,
            line.auto_compress, line.scope, id=line.id, at=aware(line.created_at),
        )  # fmt: skip
        history = (
            line.access_count,
            aware(line.last_accessed or line.created_at),
            aware(line.updated_at or line.created_at),
        )
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            form, archived = ItemForm[line.form.upper()], line.status == "archived"
            await set_history(connection, where, line.id, line.pinned, archived, form, history)
        return True

    async def _task(self, loading: Loading, line: TaskLine) -> bool:
        where, stored = place(loading.tenant, line.session_id), check.metadata(line.metadata)
        task = Task(
            id=str(line.id), session_id=where.name, title=check.text(line.title, "title", check.MOST_NAME_CHARS),
            description=check.text(line.description, "description", empty=True), status=line.status,
            priority=check.integer(line.priority, "priority", 0, 10), dependencies=[],
            assigned_agent=optional(line.assigned_agent, "assigned_agent"),
            progress=check.number(line.progress, "progress", 0, 100), created_at=aware(line.created_at),
            updated_at=aware(line.updated_at or line.created_at),
            completed_at=line.completed_at and aware(line.completed_at), metadata=line.metadata,
        )  # fmt: skip
        if await self._is_there(loading, "tasks", line.id):
            return False
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            await enter(connection, where, self._clock())
            await save_task(connection, where, task, stored)
        if line.dependencies:
            loading.needs[line.id] = tuple(dict.fromkeys(line.dependencies))
        return True

    async def _agent(self, loading: Loading, line: AgentLine) -> bool:
        where, stored = place(loading.tenant, line.session_id), check.metadata(line.metadata)
        agent = Agent(
            id=str(line.id), session_id=where.name, agent_name=check.text(line.agent_name, "agent_name", 500),
            agent_type=check.text(line.agent_type, "agent_type", check.MOST_TYPE_CHARS),
            capabilities=list(check.texts(line.capabilities, "capabilities")),
            assigned_tools=list(check.texts(line.assigned_tools, "assigned_tools")), performance_stats={},
            is_active=line.is_active, created_at=aware(line.created_at),
            updated_at=aware(line.updated_at or line.created_at), metadata=line.metadata,
        )  # fmt: skip
        if await self._is_there(loading, "agents", line.id):
            return False
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            await enter(connection, where, self._clock())
            await save_agent(connection, where, agent, stored)
        return True

    async def _human(self, loading: Loading, line: HumanLine) -> bool:
        where, stored = place(loading.tenant, line.session_id), check.metadata(line.metadata)
        asked = HumanRequest(
            id=str(line.id), session_id=where.name, question=check.text(line.question, "question"),
            response=None if line.response is None else check.text(line.response, "response"), status=line.status,
            priority=check.integer(line.priority, "priority", 0, 10), created_at=aware(line.created_at),
            answered_at=line.answered_at and aware(line.answered_at), metadata=line.metadata,
            expires_at=aware(line.expires_at),
        )  # fmt: skip
        if await self._is_there(loading, "human_requests", line.id):
            return False
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            await enter(connection, where, self._clock())
            await save_request(connection, where, asked, stored)
        return True

    async def _usage(self, loading: Loading, line: UsageLine) -> bool:
        spent = Spent(
            attempt=line.id, at=aware(line.at), session=check.text(line.session_id, "session_id", 500, empty=True),
            model=check.text(line.model, "model", 500, empty=True), input_tokens=line.input_tokens,
            cached_tokens=line.cached_tokens, output_tokens=line.output_tokens, cost_usd=line.cost_usd,
            direct_usd=line.direct_usd, own_usd=line.own_usd,
        )  # fmt: skip
        if await self._is_there(loading, "usage", line.id):
            return False
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            await save_usage(connection, loading.tenant, [spent])
        return True

    async def _message(self, loading: Loading, line: MessageLine) -> bool | None:
        """A message of a conversation that is here is present; another one becomes an item."""
        where, node = place(loading.tenant, line.session), named(line.id)
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            if await has_node(connection, loading.tenant, node):
                return False
        text = words(line.content)
        if line.content is None or not text.strip():
            return None
        id = keyed_uuid(loading.tenant, node, b"message")
        item = ItemLine(
            id=id, session_id=where.name, content=text, content_type="message", created_at=aware(line.time),
            metadata={"role": line.role},
        )  # fmt: skip
        return await self._item(loading, item)

    async def _is_there(self, loading: Loading, table: str, id: UUID) -> bool:
        async with self._pool.tenant(loading.tenant, WAIT_SECONDS) as connection:
            return await is_there(connection, loading.tenant, table, id)


class Kind(msgspec.Struct):
    kind: str


IGNORED = ("turn", "summary", "block", "aside", "quarantine")


def aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise InvalidRequest("times must have an offset", "created_at")
    return moment


def named(id: str) -> bytes:
    try:
        return node_of(id)
    except ValueError:
        raise InvalidRequest("id must be that of a message", "id") from None


async def lines_of(chunks: AsyncIterator[bytes], most_bytes: int = MOST_LINE_BYTES) -> AsyncIterator[bytes]:
    """Lines of a body that comes in pieces; of one that is too long, its beginning, which is no JSON."""
    held = bytearray()
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            held += part[: most_bytes + 1 - len(held)]
            yield bytes(held)
            held.clear()
        held += rest[: most_bytes + 1 - len(held)]
    if held:
        yield bytes(held)
