"""Reading a tenant's memory out: one turn with its explanation, or everything as JSON lines."""

import base64
import json
from collections.abc import AsyncIterator, Mapping

import asyncpg
import msgspec
import orjson

from memory.errors import NotFound
from memory.identify import node_of, text_id
from memory.store.calls import calls_of
from memory.store.turns import decode_fold
from memory.written import content_of

PREFETCH = 200
SEALED = "exists (select from infold.seals s where s.tenant = $1 and s.digest = {}.digest) as sealed"
ODD_ROLE = "raw"  # a body that we did not understand
Written = dict[str, msgspec.Raw] | list[msgspec.Raw]  # a message, or the items that are one


async def jobs_pending(connection: asyncpg.Connection) -> tuple[int, int]:
    """Jobs that wait or run, of all tenants, and those among them that embed items: numbers, no content."""
    row = await connection.fetchrow(
        "select count(*), count(*) filter (where entrypoint = 'embed_item') from infold.pgqueuer"
    )
    return row[0], row[1]


async def load_turn(connection: asyncpg.Connection, tenant: bytes, node: bytes) -> dict[str, object]:
    """A turn with all its attempts, each with the plan behind it, and the messages that were asked.

    Raises:
        NotFound: this tenant has no such turn.
    """
    row = await connection.fetchrow(
        "select node, session, model, status, created_at, updated_at from infold.turns where tenant = $1 and node = $2",
        tenant, node,
    )  # fmt: skip
    if row is None:
        raise NotFound(f"there is no turn {text_id(node)!r}")
    attempts = await connection.fetch(
        "select id, status, answers, record, created_at, updated_at from infold.attempts"
        " where tenant = $1 and node = $2 order by created_at, id",
        tenant, node,
    )  # fmt: skip
    line = await connection.fetch(
        "with recursive line as ("
        " select node, parent, role, raw, tokens, depth, digest from infold.nodes where tenant = $1 and node = $2"
        " union all select n.node, n.parent, n.role, n.raw, n.tokens, n.depth, n.digest from infold.nodes n"
        " join line on n.tenant = $1 and n.node = line.parent)"
        f" select node, role, raw, tokens, {SEALED.format('line')} from line order by depth",
        tenant, node,
    )  # fmt: skip
    return {
        "id": text_id(node),
        "session": row["session"],
        "model": row["model"],
        "status": row["status"],
        "created_at": row["created_at"].isoformat(),
        "asked": [{"id": text_id(m["node"]), "role": m["role"], "tokens": m["tokens"], **shown(m)} for m in line],
        "calls": await calls_of(connection, tenant, [node for attempt in attempts for node in attempt["answers"]]),
        "attempts": [
            {**told_attempt(attempt), "system": await systems(connection, tenant, attempt)} for attempt in attempts
        ],
    }


async def systems(connection: asyncpg.Connection, tenant: bytes, attempt: asyncpg.Record) -> list[dict[str, object]]:
    """The client's system messages in an attempt."""
    ids = orjson.loads(attempt["record"]).get("system", ())
    rows = await connection.fetch(
        f"select node, role, raw, {SEALED.format('n')} from infold.nodes n where tenant = $1 and node = any($2)",
        tenant, [node_of(found) for found in ids],
    )  # fmt: skip
    told = {text_id(row["node"]): {"id": text_id(row["node"]), "role": row["role"], **shown(row)} for row in rows}
    return [told[found] for found in ids if found in told]


def told_attempt(row: asyncpg.Record) -> dict[str, object]:
    return {
        "id": str(row["id"]),
        "status": row["status"],
        "answers": [text_id(node) for node in row["answers"]],
        "created_at": row["created_at"].isoformat(),
        **orjson.loads(row["record"]),
    }


def shown(row: asyncpg.Record) -> Mapping[str, object]:
    """A message's content, unless it is in quarantine."""
    return {"quarantined": True} if row["sealed"] else {**sent_as(row["role"], row["raw"]), **spoken(row["raw"])}


def sent_as(role: str, raw: bytes) -> dict[str, object]:
    """The role that the client gave a message, where we tell it by another: a dialect in which the user brings the
    results of tools has none for them."""
    try:
        own = msgspec.json.decode(raw, type=_Sent).role
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {"sent_as": own} if isinstance(own, str) and own != role and role != ODD_ROLE else {}


class _Sent(msgspec.Struct):
    role: object = None


def spoken(raw: bytes) -> Mapping[str, object]:
    """A stored message for JSON: as it is where it is JSON, else its bytes."""
    try:
        return {"message": msgspec.Raw(raw)} if msgspec.json.decode(raw, type=Written) else {}
    except (msgspec.DecodeError, RecursionError):
        return {"bytes": raw.hex()}


async def export_lines(connection: asyncpg.Connection, tenant: bytes) -> AsyncIterator[bytes]:
    """Messages, turns, then what was derived: each a JSON object with its kind."""
    for lines in (messages, turns, folds):
        async for line in lines(connection, tenant):
            yield line


async def messages(connection: asyncpg.Connection, tenant: bytes) -> AsyncIterator[bytes]:
    query = (
        f"select node, parent, session, role, raw, created_at, {SEALED.format('n')} from infold.nodes n"
        " where tenant = $1 order by created_at, depth"
    )
    async for row in connection.cursor(query, tenant, prefetch=PREFETCH):
        known = {
            "kind": "message",
            "id": text_id(row["node"]),
            "parent": text_id(row["parent"]) if row["parent"] else None,
            "session": row["session"],
            "role": row["role"],
            **({} if row["sealed"] else sent_as(row["role"], row["raw"])),
            "time": row["created_at"].isoformat(),
        }
        yield msgspec.json.encode({**known, "quarantined": True}) if row["sealed"] else with_fields(known, row["raw"])


def with_fields(known: Mapping[str, object], raw: bytes) -> bytes:
    """Our fields, the content as it was written or told, and the message whole where it has more than role and content.

    What is no JSON, or no UTF-8, is given as text for reading and as base64 to the byte.
    """
    try:
        raw.decode()
        own = msgspec.json.decode(raw, type=Written) if known["role"] != ODD_ROLE else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        own = None
    if isinstance(own, list) or (own is not None and "content" not in own):
        content = msgspec.Raw(json.dumps(content_of(raw)).encode())  # which writes half a surrogate pair, too
        return msgspec.json.encode({**known, "content": content, "message": msgspec.Raw(raw)})
    if own is not None:
        more = {"message": msgspec.Raw(raw)} if own.keys() - {"role", "content"} else {}
        return msgspec.json.encode({**known, "content": own.get("content"), **more})
    fields = {**known, "content": raw.decode("utf-8", "replace"), "bytes": base64.b64encode(raw).decode()}
    return json.dumps(fields | lone_surrogates(known, raw), ensure_ascii=True).encode()


def lone_surrogates(known: Mapping[str, object], raw: bytes) -> dict[str, object]:
    """The content of a message with half a surrogate pair, which only the standard library reads and writes."""
    if known["role"] == ODD_ROLE:
        return {}
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return {"content": content_of(raw)}


async def turns(connection: asyncpg.Connection, tenant: bytes) -> AsyncIterator[bytes]:
    query = (
        "select t.node, t.session, t.model, t.status, t.created_at,"
        " (select count(*) from infold.attempts a where a.tenant = t.tenant and a.node = t.node) as attempts"
        " from infold.turns t where t.tenant = $1 order by t.created_at"
    )
    async for row in connection.cursor(query, tenant, prefetch=PREFETCH):
        yield orjson.dumps({
            "kind": "turn",
            "id": text_id(row["node"]),
            "session": row["session"],
            "model": row["model"],
            "status": row["status"],
            "attempts": row["attempts"],
            "time": row["created_at"].isoformat(),
        })  # fmt: skip


async def folds(connection: asyncpg.Connection, tenant: bytes) -> AsyncIterator[bytes]:
    """Digests with their hint ids, re-injected blocks, and what the model asked of the memory itself."""
    query = "select node, kind, data, created_at from infold.folds where tenant = $1 order by created_at"
    async for row in connection.cursor(query, tenant, prefetch=PREFETCH):
        told = msgspec.to_builtins(decode_fold(row["kind"], row["data"]), builtin_types=(bytes,))
        kind = "summary" if row["kind"] == "frozen" else row["kind"]
        yield orjson.dumps(
            {"kind": kind, "node": text_id(row["node"]), "time": row["created_at"].isoformat(), **readable(told)}
        )


def readable(value: object) -> dict[str, object]:
    """Bytes of messages of ours as text."""

    def walk(item: object) -> object:
        match item:
            case bytes():
                return item.decode("utf-8", "replace")
            case Mapping():
                return {key: walk(inner) for key, inner in item.items()}
            case list() | tuple():
                return [walk(inner) for inner in item]
            case _:
                return item

    found = walk(value)
    assert isinstance(found, dict)
    return found
