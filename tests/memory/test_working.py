"""A working context never has more tokens than it may, and the most important items come first."""

from datetime import timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from memory.nouns import ItemForm
from memory.working import Held, choose, hint_line
from tests.clock import NOON
from tests.conversations import COUNTER, ENCODING


def count(text: str) -> int:
    return COUNTER.text(text, ENCODING)


def held(number: int, tokens: int = 100, summary: int = 10, form: ItemForm = ItemForm.FULL, **more) -> Held:
    return Held(
        UUID(int=number), more.get("content_type", "code"), tokens, summary, form, more.get("priority", 0),
        more.get("pinned", False), NOON + timedelta(minutes=more.get("minute", number)), NOON, more.get("head", "some words"),
    )  # fmt: skip


@st.composite
def many(draw: st.DrawFn) -> list[Held]:
    return [
        held(
            number, draw(st.integers(1, 5_000)), draw(st.integers(1, 500)), draw(st.sampled_from(ItemForm)),
            priority=draw(st.integers(0, 10)), pinned=draw(st.booleans()), head=draw(st.sampled_from(["", "some words", "def f():\n    pass", "\u6c34" * 90])),
        )
        for number in range(draw(st.integers(0, 30)))
    ]  # fmt: skip


@settings(deadline=None)  # the first count loads the vocabulary
@given(many(), st.integers(0, 6_000))
def test_it_never_has_more_than_it_may(items, room):
    shown = choose(items, room, count)
    assert sum(one.tokens for one in shown) <= room
    assert len({one.id for one in shown}) == len(shown)
    forms = {item.id: item.form for item in items}
    assert all(one.form >= forms[one.id] and one.form is not ItemForm.NONE for one in shown)


def test_pins_come_first_then_priority_then_what_was_read_last():
    items = [
        held(1, priority=5),
        held(2, priority=9),
        held(3, priority=5),
        held(4, pinned=True),
        held(5, content_type="log"),
    ]
    assert [one.id.int for one in choose(items, 1_000, count)] == [4, 2, 3, 1, 5]


def test_what_does_not_fit_whole_comes_smaller_and_the_next_may_fit():
    items = [held(1, 900, 50, priority=9), held(2, 500, 480, priority=8), held(3, 40, priority=7)]
    shown = choose(items, 110, count)
    assert [(one.id.int, one.form) for one in shown][:2] == [(1, ItemForm.SUMMARY), (2, ItemForm.HINT)]
    assert shown[2].form is ItemForm.FULL or shown[2].tokens <= 20


def test_an_item_out_of_the_prompt_stays_out():
    assert choose([held(1, form=ItemForm.NONE)], 1_000, count) == ()


def test_a_hint_is_one_line():
    assert hint_line(held(1, 1_234, head="def main():\n    pass")) == "code, 1,234 tokens: def main(): pass"
    assert len(hint_line(held(1, head="word " * 50, content_type="x\n" * 60))) < 150
