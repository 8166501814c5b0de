"""Once the trigger is passed, items have at most the target in the prompt, however many there are and whatever their size."""

from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.forms import (
    Sizes,
    Standing,
    beginning,
    budget_tokens,
    digest,
    effective_priority,
    form_tokens,
    prefix_summary,
    settle,
    sizes,
)
from memory.nouns import ItemForm
from memory.settings import Strategies
from tests.clock import NOON
from tests.conversations import COUNTER, ENCODING

GPT_4O = sizes(128_000, 0.75, Strategies())


def count(text: str) -> int:
    return COUNTER.text(text, ENCODING)


def standing(number: int, tokens: int, summary: int = 100, priority: int = 0, **more) -> Standing:
    return Standing(
        id=UUID(int=number), tokens=tokens, summary_tokens=summary, priority=priority,
        content_type=more.get("content_type", "code"), last_accessed=NOON + timedelta(minutes=more.get("minute", number)),
        form=more.get("form", ItemForm.FULL), pinned=more.get("pinned", False), yields=more.get("yields", True),
    )  # fmt: skip


@st.composite
def held(draw: st.DrawFn) -> list[Standing]:
    return [
        standing(
            number, draw(st.integers(1, 60_000)), draw(st.integers(1, 800)), draw(st.integers(0, 10)),
            minute=draw(st.integers(0, 5)), pinned=draw(st.integers(0, 9)) == 0, yields=draw(st.integers(0, 9)) > 0,
            content_type=draw(st.sampled_from(["code", "note", "log"])), form=draw(st.sampled_from(ItemForm)),
        )
        for number in range(draw(st.integers(0, 60)))
    ]  # fmt: skip


def tokens_of(items, changes=None) -> int:
    return sum(form_tokens(i.tokens, i.summary_tokens, (changes or {}).get(i.id, i.form)) for i in items)


def after(items, changes):
    return [standing_with(item, changes.get(item.id, item.form)) for item in items]


def standing_with(item: Standing, form: ItemForm) -> Standing:
    return Standing(**{name: getattr(item, name) for name in Standing.__slots__} | {"form": form})


def test_sizes_are_shares_of_the_window():
    assert Sizes(128_000, 96_000, 25_600, 2_000, 800) == GPT_4O
    assert sizes(8_192, 0.75, Strategies()).most == 64


@given(held())
def test_past_the_trigger_items_fit_the_target_or_only_those_are_left_that_stay(items):
    stored, used = sum(item.tokens for item in items), tokens_of(items)
    changes = settle(items, stored, GPT_4O, used)
    if stored <= GPT_4O.trigger:
        assert not changes
    elif tokens_of(items, changes) > GPT_4O.target:
        left = [i for i in after(items, changes) if form_tokens(i.tokens, i.summary_tokens, i.form)]
        assert all(item.pinned or not item.yields for item in left)


@given(held())
def test_settling_twice_changes_nothing_more_and_no_form_grows(items):
    stored, used = sum(item.tokens for item in items), tokens_of(items)
    changes = settle(items, stored, GPT_4O, used)
    settled = after(items, changes)
    assert not settle(settled, stored, GPT_4O, tokens_of(settled))
    assert all(new.form >= old.form for new, old in zip(settled, items, strict=True))
    assert not [item for item in items if item.id in changes and (item.pinned or not item.yields)]


@given(held(), st.randoms())
def test_the_order_of_the_items_does_not_matter(items, rng):
    stored, used = sum(item.tokens for item in items), tokens_of(items)
    mixed = rng.sample(items, len(items))
    assert settle(mixed, stored, GPT_4O, used) == settle(items, stored, GPT_4O, used)


@pytest.mark.parametrize(("chunks", "bound"), [(12, 71_792), (32, 26_122)])
def test_ten_windows_have_less_in_the_prompt_than_the_issue_allows(chunks, bound):
    each = 640_000 * (2 if chunks == 32 else 1) // chunks
    items: list[Standing] = []
    for number in range(chunks):
        items.append(standing(number, each, 800))
        changes = settle(items, sum(i.tokens for i in items), GPT_4O, tokens_of(items))
        items = after(items, changes)
    assert tokens_of(items) <= min(bound, GPT_4O.target)


def test_the_least_important_and_longest_unread_go_first():
    items = [
        standing(1, 60_000, 800, 9),
        standing(2, 20_000, 800, 2),
        standing(3, 20_000, 800, 1),
        standing(4, 1, 1, 5),
    ]
    changes = settle(items, 100_001, GPT_4O, 100_001)
    assert list(changes) == [UUID(int=3), UUID(int=2), UUID(int=1)]
    assert set(changes.values()) == {ItemForm.SUMMARY}


def test_a_summary_that_is_not_shorter_is_no_gain():
    short = [standing(number, 50, 50) for number in range(1_000)]
    changes = settle(short, 200_000, GPT_4O, 50_000)
    assert set(changes.values()) == {ItemForm.HINT, ItemForm.NONE}


def test_a_priority_that_is_not_set_goes_by_the_type():
    assert [effective_priority(0, kind) for kind in ("Conversation", "tool_output", "code")] == [4, 2, 3]
    assert effective_priority(1, "user") == 1


def test_a_digest_is_never_empty_and_never_longer_than_it_may_be():
    for text in ("x" * 40_000, "word " * 9_000, "\u6c34" * 5_000, "  a\n\n" + "{}[]" * 3_000):
        told = digest(text, 64, count)
        assert told.strip()
        assert count(told) <= 64
    assert beginning("  one two", 50, count) == "one two"


def test_budgets_have_a_floor_and_a_ceiling():
    assert [budget_tokens(n, 0.25, most) for n, most in ((40_000, 800), (1_001, 800), (8, None))] == [800, 251, 16]


def test_a_prefix_shows_words_whatever_stands_before_them():
    assert prefix_summary("word " * 200) == ("word " * 100)
    assert prefix_summary(" " * 600 + "here") == "here"
