"""What a working context holds: of each item the form that fits, the most important first. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from memory.digest.fit import CountTokens
from memory.forms import effective_priority
from memory.nouns import ItemForm

LEAST_ROOM = 8  # tokens: not even a hint line has fewer
HEAD_CHARS = 80  # of an item's beginning, in its hint line
TYPE_CHARS = 40

QUERY_SHARE = 0.5  # of a working context, for what answers a query
WHOLE_SHARE = 1 / 16  # an item up to this share of it comes whole


@dataclass(frozen=True, slots=True)
class Held:
    """An active item without its content."""

    id: UUID
    content_type: str
    tokens: int
    summary_tokens: int
    form: ItemForm
    priority: int
    pinned: bool
    last_accessed: datetime
    created_at: datetime
    head: str  # the first characters of its content

    @property
    def rank(self) -> tuple[bool, int, datetime, datetime, UUID]:
        """Higher comes first."""
        priority = effective_priority(self.priority, self.content_type)
        return self.pinned, priority, self.last_accessed, self.created_at, self.id


@dataclass(frozen=True, slots=True)
class Shown:
    """An item in the form it gets; `tokens` are of the text that stands there."""

    id: UUID
    form: ItemForm
    tokens: int


def choose(items: Sequence[Held], room_tokens: int, count: CountTokens) -> tuple[Shown, ...]:
    """The items of a working context, best first; never more than `room_tokens`.

    An item comes as it stands in the prompt, else in the next smaller form that fits.
    """
    shown: list[Shown] = []
    for item in sorted(items, key=lambda item: item.rank, reverse=True):
        if room_tokens < LEAST_ROOM:
            break
        if fitting := fit(item, room_tokens, count):
            shown.append(fitting)
            room_tokens -= fitting.tokens
    return tuple(shown)


def fit(item: Held, room_tokens: int, count: CountTokens) -> Shown | None:
    if item.form is ItemForm.FULL and item.tokens <= room_tokens:
        return Shown(item.id, ItemForm.FULL, item.tokens)
    if item.form <= ItemForm.SUMMARY and item.summary_tokens <= room_tokens:
        return Shown(item.id, ItemForm.SUMMARY, item.summary_tokens)
    if item.form is ItemForm.NONE:
        return None
    tokens = count(hint_line(item))
    return Shown(item.id, ItemForm.HINT, tokens) if tokens <= room_tokens else None


def hint_line(item: Held) -> str:
    """An item in one line."""
    return f"{one_line(item.content_type, TYPE_CHARS)}, {item.tokens:,} tokens: {one_line(item.head, HEAD_CHARS)}"


def one_line(text: str, chars: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 3] + "..."
