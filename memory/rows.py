"""Items between the texts that programs give, their rows, and what programs see of them."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from memory import check
from memory.digest.fit import CountTokens
from memory.embed import chunks
from memory.errors import InvalidRequest
from memory.find import Hit, term_ids
from memory.forms import Sizes, budget_tokens, digest, prefix_summary
from memory.lexical import terms
from memory.nouns import FoundItem, ItemForm, ItemStatus, MemoryItem, Passage, Place
from memory.seal import text_digest
from memory.store.items import ItemRow, NewItem, Text
from memory.store.passages import NewPassage

PIECES, FINE_PIECES = 200, 128  # word pieces of a passage
FINE_FROM, FINE_TO = 8_000, 2_000_000  # characters of a text that has small passages, with a vector a segment

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STATUSES = {"active": ItemStatus.ACTIVE, "archived": ItemStatus.ARCHIVED}
SCOPES: tuple[Literal["session", "tenant"], ...] = ("session", "tenant")


def text_of(
    tenant: bytes, content: str, sizes: Sizes, share: float, count: CountTokens, passed: bool, searched: bool
) -> Text:
    """A content with its tokens, its summary and its passages. Takes a second a megabyte.

    Args:
        share: of the content's tokens that a digest may have.
        passed: whether a text shorter than `sizes.long` gets a digest, too.
        searched: False: no passages, so that search never finds it.
    """
    tokens = count(content)
    summary = None
    if tokens > sizes.long or passed:
        summary = digest(content, budget_tokens(tokens, share, sizes.most), count)
    return Text(
        content=content,
        digest=text_digest(content),
        summary=summary,
        tokens=tokens,
        summary_tokens=count(summary or prefix_summary(content)),
        passages=passages_of(tenant, content) if searched else (),
    )


def passages_of(tenant: bytes, content: str) -> tuple[NewPassage, ...]:
    """The pieces of a text that are searched; a text has one at least.

    Those of a long text are small: a sentence among code weighs too little in the vector of all. Of a short one the
    question is only whether it is the right one.
    """
    made = []
    for start, stop in chunks(content, FINE_PIECES if is_fine(content) else PIECES) or [(0, len(content))]:
        found = terms(content[start:stop])
        made.append(NewPassage(start, stop, found.length, tuple(term_ids(tenant, found.counts.keys()))))
    return tuple(made)


def is_fine(content: str) -> bool:
    """Is a text long enough that its passages are small, and that each has vectors of what it speaks of?"""
    return FINE_FROM < len(content) <= FINE_TO


def row_of(new: NewItem, place: Place, now: datetime) -> ItemRow:
    """The row of an item that was just added."""
    text = new.text
    return ItemRow(
        new.id, place.id, new.shared, ItemStatus.ACTIVE, new.form, new.priority, False, new.auto_compress,
        new.content_type, text.digest, text.content, text.summary, text.tokens, text.summary_tokens, 0, now, now, now,
        new.metadata,
    )  # fmt: skip


def item_of(row: ItemRow, session_name: str, full: bool) -> MemoryItem:
    """`full`: with its content, where the row has it."""
    return MemoryItem(**fields(row, session_name, full))


def found_item(row: ItemRow, session_name: str, hit: Hit, full: bool) -> FoundItem:
    best = hit.best
    passage = Passage(best.start, best.stop, row.content[best.start : best.stop]) if full and row.whole else None
    score, distance = round(hit.score, 6), hit.distance
    return FoundItem(**fields(row, session_name, full), score=score, distance=distance, passage=passage)


def fields(row: ItemRow, session_name: str, full: bool) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "session_id": session_name,
        "content_type": row.content_type,
        "full_content": row.content if full and row.whole else None,
        "compressed_summary": row.summary or prefix_summary(row.content),
        "token_count": row.tokens,
        "compressed_token_count": row.summary_tokens,
        "compression_ratio": min(1.0, row.summary_tokens / max(1, row.tokens)),
        "is_active": row.status == ItemStatus.ACTIVE,
        "priority": row.priority,
        "access_count": row.access_count,
        "last_accessed": row.last_accessed,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "metadata": msgspec.json.decode(row.metadata) if row.metadata else {},
        "is_pinned": row.pinned,
        "scope": SCOPES[row.shared],
        "form": ItemForm(row.form).name.lower(),
    }


def scope_of(value: object) -> Literal["session", "tenant"]:
    for scope in SCOPES:
        if value == scope:
            return scope
    got = check.shown(value) if isinstance(value, str) else check.kind(value)
    raise InvalidRequest(f"scope must be one of {', '.join(SCOPES)}, got {got}", "scope")


def status_of(value: object) -> ItemStatus | None:
    """None: both."""
    if value is None:
        return None
    if isinstance(value, str) and value in STATUSES:
        return STATUSES[value]
    got = check.shown(value) if isinstance(value, str) else check.kind(value)
    raise InvalidRequest(f"status must be one of {', '.join(STATUSES)}, got {got}", "status")


def write_cursor(row: ItemRow) -> str:
    """Where a page ended. It names a place in time, no tenant: whose items follow is never its affair."""
    microseconds = (row.created_at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{microseconds}|{row.id}".encode()).decode().rstrip("=")


def read_cursor(cursor: object) -> tuple[datetime, UUID] | None:
    """InvalidRequest for what `write_cursor` did not write."""
    if cursor is None:
        return None
    try:
        if not isinstance(cursor, str) or not cursor.isascii():
            raise ValueError
        microseconds, id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split("|")
        return EPOCH + timedelta(microseconds=int(microseconds)), UUID(id)
    except (ValueError, OverflowError, binascii.Error):
        raise InvalidRequest("cursor must be one that an answer of ours held", "cursor") from None
