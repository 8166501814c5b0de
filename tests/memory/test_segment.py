"""What shrinks together stays together: a call and its results are one item."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.segment import segment
from tests.conversations import assistant, calling, parse, result, user

MESSAGES = {
    "u": user("hello"),
    "a": assistant("hello"),
    "c": calling(("1", "{}"), ("2", "{}")),
    "r": result("1", "found"),
    "s": result("2", "found, too"),
    "f": {"role": "function", "name": "look", "content": "found"},
}


BOTH = {  # results of two messages' calls, the later one's first
    "role": "user",
    "content": [{"type": "tool_result", "tool_use_id": id, "content": "found"} for id in ("2", "1")],
}


def calls(id: str) -> dict[str, object]:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "look", "input": {}}]}


def test_a_message_of_several_results_stays_with_the_first_of_their_calls():
    messages = parse([user("hello"), calls("1"), calls("2"), BOTH]).messages
    assert [(item.start, item.stop) for item in segment(messages, [1] * 4)] == [(0, 1), (1, 4)]


def cut(letters: str) -> list[tuple[int, int, str]]:
    messages = parse([MESSAGES[letter] for letter in letters]).messages
    return [(item.start, item.stop, item.kind) for item in segment(messages, [1] * len(messages))]


@pytest.mark.parametrize(
    ("letters", "items"),
    [
        ("ua", [(0, 1, "user"), (1, 2, "assistant")]),
        ("ucr", [(0, 1, "user"), (1, 3, "exchange")]),
        ("ucrra", [(0, 1, "user"), (1, 4, "exchange"), (4, 5, "assistant")]),
        ("crcr", [(0, 2, "exchange"), (2, 4, "exchange")]),
        ("ucfu", [(0, 1, "user"), (1, 3, "exchange"), (3, 4, "user")]),
        ("c", [(0, 1, "exchange")]),
        ("ur", [(0, 2, "user")]),
        ("r", [(0, 1, "tool")]),
        ("ucsur", [(0, 1, "user"), (1, 5, "exchange")]),
        ("ucrsaur", [(0, 1, "user"), (1, 7, "exchange")]),
        ("crucsr", [(0, 2, "exchange"), (2, 3, "user"), (3, 6, "exchange")]),
    ],
)
def test_a_line_is_cut_between_units(letters, items):
    assert cut(letters) == items


@given(st.text("uacrsf", max_size=20), st.data())
def test_every_message_is_in_one_item_and_no_token_is_lost(letters, data):
    tokens = data.draw(st.lists(st.integers(0, 9_000), min_size=len(letters), max_size=len(letters)))
    messages = parse([MESSAGES[letter] for letter in letters] or [user("x")]).messages[: len(letters)]
    items = segment(messages, tokens)

    assert [i for item in items for i in range(item.start, item.stop)] == list(range(len(letters)))
    assert [item.tokens for item in items] == [sum(tokens[item.start : item.stop]) for item in items]


@given(st.text("uacrsf", min_size=1, max_size=20))
def test_no_item_begins_with_a_result_but_the_first(letters):
    assert all(letters[start] not in "rsf" for start, _, _ in cut(letters)[1:])
