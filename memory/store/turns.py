"""Lines, turns and what was frozen for them: the writes and reads of a request."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg
import msgspec

from memory.identify import new_id
from memory.types import Aside, Block, Frozen

BATCH_BYTES = 256 * 1024
TELLING = ("forwarded", "stretches", "block", "recalls", "error")  # of a record: what may tell messages
EMPTY = msgspec.Raw(b"null")
MOST_MESSAGES = 10_000  # of a path that are read; a cut history cannot make us read for ever


class NodeRow(msgspec.Struct, frozen=True, array_like=True):
    """A message of a line, as it is stored."""

    node: bytes
    parent: bytes | None
    depth: int
    sent: bool  # by the client; False: answered by the provider
    role: str
    digest: bytes
    raw: bytes
    tokens: int


class FoldRow(msgspec.Struct, frozen=True, array_like=True):
    node: bytes
    kind: str  # "frozen", "block", "aside"
    depth: int
    data: bytes


class TurnRecord(msgspec.Struct, frozen=True, array_like=True):
    """All of a turn that is written in one round trip, to the database or to the spool."""

    tenant: bytes
    session: str  # should the line be new
    nodes: tuple[NodeRow, ...]
    turn: bytes
    attempt: bytes  # 16 bytes of a UUID
    status: str  # "open", "answered", "partial", "failed"
    model: str
    answers: tuple[bytes, ...]
    record: bytes
    folds: tuple[FoldRow, ...] = ()
    jobs: tuple[str, ...] = ()
    label: str | None = None
    held: int | None = 0  # what was known of quarantine when folds and record were made; None: they tell no message


class LineState(msgspec.Struct, frozen=True):
    """What the database knows of a line."""

    known: int = 0  # how many of its messages are stored
    session: str | None = None
    continues: bytes | None = None  # the node after which the client cut its history
    age_seconds: float | None = None  # since its newest known message came; None: unknown line
    frozen: tuple[tuple[bytes, Frozen], ...] = ()  # with the node each hangs on, deepest first
    blocks: tuple[Block, ...] = ()
    asides: tuple[tuple[bytes, Aside], ...] = ()  # with the node of the answer that each belongs to


def pack(value: Frozen | Block | Aside | TurnRecord) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack_turn(data: bytes) -> TurnRecord:
    return msgspec.msgpack.decode(data, type=TurnRecord)


KINDS: Mapping[str, type[Frozen] | type[Block] | type[Aside]] = {"frozen": Frozen, "block": Block, "aside": Aside}


def decode_fold(kind: str, data: bytes) -> Frozen | Block | Aside:
    return msgspec.msgpack.decode(data, type=KINDS[kind])


async def find_line(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes], begin: int = 0) -> LineState:
    """What is known of a line; of what hangs on its nodes, from position `begin` on."""
    rows = await connection.fetch(
        "select kind, node, depth, data, session, age from infold.find_line($1, $2)", tenant, nodes[begin:]
    )
    known = next((row for row in rows if row["kind"] == "known"), None)
    cut = next((row["node"] for row in rows if row["kind"] == "continues"), None)
    frozen = [(row["node"], row["data"]) for row in rows if row["kind"] == "frozen"]
    return LineState(
        known=begin + known["depth"] + 1 if known else 0,
        session=known["session"] if known else None,
        continues=cut,
        age_seconds=known["age"] if known else None,
        frozen=tuple((node, msgspec.msgpack.decode(data, type=Frozen)) for node, data in frozen),
        blocks=tuple(msgspec.msgpack.decode(row["data"], type=Block) for row in rows if row["kind"] == "block"),
        asides=tuple((r["node"], msgspec.msgpack.decode(r["data"], type=Aside)) for r in rows if r["kind"] == "aside"),
    )


async def load_path(connection: asyncpg.Connection, tenant: bytes, tip: bytes) -> list[tuple[bytes, bytes]]:
    """The messages from the root to `tip`, across cuts: (node, raw), oldest first."""
    rows = await connection.fetch(
        "with recursive line as ("
        " select node, coalesce(parent, continues) as above, raw, 0 as back from infold.nodes"
        " where tenant = $1 and node = $2"
        " union all select n.node, coalesce(n.parent, n.continues), n.raw, line.back + 1 from infold.nodes n"
        " join line on n.tenant = $1 and n.node = line.above where line.back < $3)"
        " select node, raw from line order by back desc",
        tenant, tip, MOST_MESSAGES,
    )  # fmt: skip
    return [(row["node"], row["raw"]) for row in rows]


async def save_nodes(
    connection: asyncpg.Connection, tenant: bytes, label: str | None, rows: Sequence[NodeRow], session: str
) -> str:
    """Store messages of a line; gives the session they belong to."""
    found: str = await connection.fetchval(
        "select infold.save_nodes($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tenant, storable(label), *node_columns(rows), session,
    )  # fmt: skip
    return found


RECORD_TURN = f"select infold.record_turn({', '.join(f'${n}' for n in range(1, 27))})"


async def record_turns(connection: asyncpg.Connection, turns: Sequence[TurnRecord], relaxed: bool = False) -> list[str]:
    """Write turns, of any tenants, in one commit: all or none; again with the same ids it changes nothing.

    Those of one tenant wait for an isolation of it that is under way; those of several fail at once.

    Args:
        relaxed: commit without waiting for the disk.

    Returns:
        Their sessions.
    """
    waits = len({turn.tenant for turn in turns}) == 1
    rows = await connection.fetchmany(RECORD_TURN, [(*turn_columns(turn, relaxed), waits) for turn in turns])
    return [row[0] for row in rows]


def turn_columns(turn: TurnRecord, relaxed: bool) -> tuple[object, ...]:
    return (
        turn.tenant, storable(turn.label), *node_columns(turn.nodes), turn.session,
        turn.turn, UUID(bytes=turn.attempt), turn.status, storable(turn.model), turn.answers, turn.record,
        [f.node for f in turn.folds], [f.kind for f in turn.folds], [f.depth for f in turn.folds],
        [f.data for f in turn.folds], turn.jobs, relaxed, turn.held,
        None if turn.held is None else redacted(turn.record),
    )  # fmt: skip


def redacted(record: bytes) -> bytes | None:
    """A turn's record without what may tell messages, as errors of providers do; None where it has nothing of that.

    The rest stays byte for byte, also what PostgreSQL's own JSON would refuse.
    """
    try:
        fields = msgspec.json.decode(record, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:  # nobody knows what it tells
        return b'{"redacted":true}'
    if all(bytes(fields.get(name, EMPTY)) in (b"null", b"[]") for name in TELLING):
        return None
    kept = {name: value for name, value in fields.items() if name not in TELLING}
    return msgspec.json.encode({**kept, "redacted": True})


def node_columns(rows: Sequence[NodeRow]) -> tuple[list[object], ...]:
    return (
        [row.node for row in rows],
        [row.parent for row in rows],
        [row.depth for row in rows],
        [row.sent for row in rows],
        [storable(row.role) for row in rows],
        [row.digest for row in rows],
        [row.raw for row in rows],
        [row.tokens for row in rows],
    )


def storable(text: str | None) -> str | None:
    """PostgreSQL's text takes neither NUL nor lone surrogates; what is exact lies in `raw`."""
    return None if text is None else text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def batches(rows: Sequence[NodeRow], size: int = BATCH_BYTES) -> list[Sequence[NodeRow]]:
    """Cut rows into batches of at most `size` bytes; a larger row is a batch of its own."""
    out: list[Sequence[NodeRow]] = []
    begin, gathered = 0, 0
    for n, row in enumerate(rows):
        if n > begin and gathered + len(row.raw) > size:
            out.append(rows[begin:n])
            begin, gathered = n, 0
        gathered += len(row.raw)
    return [*out, rows[begin:]] if rows else []


def attempt_id() -> bytes:
    """A new one's 16 bytes."""
    return new_id().bytes
