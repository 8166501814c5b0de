"""Unread items are compressed after a week, old ones archived after a month, pinned ones kept."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.hygiene import Action, Case, tend, tend_all
from memory.nouns import ItemForm, ItemStatus
from memory.settings import Hygiene
from tests.clock import NOON

RULES = Hygiene()


def case(number: int = 1, stored: float = 0, read: float = 0, **more) -> Case:
    """An item that was stored and read so many days ago."""
    return Case(
        UUID(int=number), more.get("status", ItemStatus.ACTIVE), more.get("form", ItemForm.FULL),
        more.get("priority", 0), "code", more.get("pinned", False), NOON - timedelta(days=read),
        NOON - timedelta(days=stored),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "read", "action"),
    [
        (6.9, 6.9, Action.KEEP),
        (7, 7, Action.KEEP),
        (7.1, 7.1, Action.COMPRESS),
        (30, 30, Action.COMPRESS),
        (30.1, 30.1, Action.ARCHIVE),
        (400, 6.9, Action.KEEP),
    ],
)
def test_what_becomes_of_an_item_goes_by_its_age_and_its_last_reader(stored, read, action):
    assert tend(case(stored=stored, read=read), RULES, NOON).action is action
    assert tend(case(stored=stored, read=read, pinned=True), RULES, NOON)[:2] == (Action.KEEP, "pinned")


def test_a_reason_is_told_in_words():
    assert tend(case(stored=31, read=8), RULES, NOON).why == "stored 31 days ago, not read for 8.0 days"


def test_deletion_is_off_until_somebody_sets_it():
    old = case(stored=4_000, read=4_000, status=ItemStatus.ARCHIVED)
    assert tend(old, RULES, NOON).action is Action.KEEP
    assert tend(old, Hygiene(delete_after_days=365), NOON).action is Action.DELETE
    assert tend(replace(old, pinned=True), Hygiene(delete_after_days=365), NOON).action is Action.KEEP


def test_low_priorities_are_tended_first_then_what_was_read_longest_ago():
    cases = [case(1, 8, 8, priority=9), case(2, 8, 8, priority=4), case(3, 9, 9, priority=4), case(4, 9, 9, priority=5)]
    assert [c.id.int for c, _ in tend_all(cases, RULES, NOON)] == [3, 2, 4, 1]


def test_compressed_items_beyond_the_bound_leave_prompts_and_are_not_archived():
    cases = [case(n, 1, n / 100, form=ItemForm.SUMMARY) for n in range(1, 6)] + [
        case(7, 1, 1, form=ItemForm.NONE),
        case(9, form=ItemForm.SUMMARY, pinned=True),
    ]
    tended = tend_all(cases, Hygiene(max_compressed_items=2), NOON)
    assert [(c.id.int, t.form) for c, t in tended if t.action is Action.COMPRESS] == [
        (number, ItemForm.NONE) for number in (5, 4, 3)
    ]
    assert Action.ARCHIVE not in {t.action for _, t in tended}


@st.composite
def cases(draw: st.DrawFn) -> list[Case]:
    return [
        case(
            number, draw(st.integers(0, 60)), draw(st.integers(0, 60)), form=draw(st.sampled_from(ItemForm)),
            priority=draw(st.integers(0, 10)), pinned=draw(st.booleans()), status=draw(st.sampled_from([0, 1]).map(ItemStatus)),
        )
        for number in range(draw(st.integers(0, 30)))
    ]  # fmt: skip


@given(cases(), st.integers(0, 10))
def test_twice_is_once(found, most):
    rules = Hygiene(max_compressed_items=most)
    done = []
    for item, tending in tend_all(found, rules, NOON):
        if tending.action is Action.COMPRESS:
            item = replace(item, form=tending.form)
        elif tending.action is Action.ARCHIVE:
            item = replace(item, status=ItemStatus.ARCHIVED)
        done.append(item)
    assert {tending.action for _, tending in tend_all(done, rules, NOON)} <= {Action.KEEP}
