"""What becomes of items with time: compressed when nobody reads them, archived when they are old, and why. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from memory.forms import effective_priority
from memory.nouns import ItemForm, ItemStatus
from memory.settings import Hygiene

LOW_PRIORITY = 5  # items below it go first


class Action(StrEnum):
    KEEP = "keep"
    COMPRESS = "compress"
    ARCHIVE = "archive"
    DELETE = "delete"


class Tending(NamedTuple):
    action: Action
    why: str
    form: ItemForm = ItemForm.SUMMARY  # what COMPRESS makes of it


@dataclass(frozen=True, slots=True)
class Case:
    """An item, as hygiene sees it."""

    id: UUID
    status: ItemStatus
    form: ItemForm
    priority: int
    content_type: str
    pinned: bool
    last_accessed: datetime
    created_at: datetime

    @property
    def order(self) -> tuple[bool, datetime, UUID]:
        """Lower is tended first."""
        return effective_priority(self.priority, self.content_type) >= LOW_PRIORITY, self.last_accessed, self.id


def tend(case: Case, rules: Hygiene, now: datetime) -> Tending:
    """What becomes of one item at a time. What was read lately is not archived, however old it is."""
    unread, age = now - case.last_accessed, now - case.created_at
    if case.pinned:
        return Tending(Action.KEEP, "pinned")
    if rules.delete_after_days is not None and age > timedelta(days=rules.delete_after_days):
        return Tending(Action.DELETE, f"stored {told(age)} ago")
    if case.status is not ItemStatus.ACTIVE:
        return Tending(Action.KEEP, "archived")
    is_unread = unread > timedelta(days=rules.compress_after_days)
    if is_unread and age > timedelta(days=rules.archive_after_days):
        return Tending(Action.ARCHIVE, f"stored {told(age)} ago, not read for {told(unread)}")
    if is_unread and case.form is ItemForm.FULL:
        return Tending(Action.COMPRESS, f"not read for {told(unread)}")
    return Tending(Action.KEEP, f"read {told(unread)} ago")


def tend_all(cases: Sequence[Case], rules: Hygiene, now: datetime) -> list[tuple[Case, Tending]]:
    """What becomes of a session's items, those first that are worth least.

    Of the items that then stand in prompts in a short form, those beyond `max_compressed_items` leave prompts; search
    still finds them. Age alone archives.
    """
    tended = [(case, tend(case, rules, now)) for case in sorted(cases, key=lambda case: case.order)]
    short = [number for number, (case, tending) in enumerate(tended) if is_short(case, tending)]
    for number in short[: max(0, len(short) - rules.max_compressed_items)]:
        why = f"more than {rules.max_compressed_items:,} compressed items"
        tended[number] = tended[number][0], Tending(Action.COMPRESS, why, ItemForm.NONE)
    return tended


def is_short(case: Case, tending: Tending) -> bool:
    """Whether an item that may leave prompts stands there in a short form after its tending."""
    if case.pinned or case.status is not ItemStatus.ACTIVE:
        return False
    kept_short = tending.action is Action.KEEP and case.form in (ItemForm.SUMMARY, ItemForm.HINT)
    return tending.action is Action.COMPRESS or kept_short


def told(time: timedelta) -> str:
    days = time / timedelta(days=1)
    return f"{days:.1f} days" if days < 10 else f"{days:.0f} days"
