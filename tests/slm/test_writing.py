"""Tokens to text, as it is certain."""

import pytest

from memory.slm.writing import Text

WORDS = ["The", " end", " of", " the", " day", "?!"]


def said(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = Text(lambda numbers: "".join(WORDS[number] for number in numbers), stop)
    pieces = []
    for token in tokens:
        pieces.append(text.add(token))
        if text.is_over:
            return pieces, True
    return [*pieces, text.rest()], False


def test_each_token_is_told_at_once() -> None:
    assert said([0, 1, 2]) == (["The", " end", " of", ""], False)


def test_what_may_begin_a_stop_is_held_back_until_it_is_certain() -> None:
    assert said([0, 1, 2], ("of days",)) == (["The", " end", " ", "of"], False)


@pytest.mark.parametrize("stop", ["end", " end of", "d o", "The end of"])
def test_an_answer_ends_before_a_stop_wherever_tokens_begin(stop: str) -> None:
    pieces, is_over = said([0, 1, 2, 3, 4], (stop,))
    assert is_over
    assert "".join(pieces) == "The end of the day".partition(stop)[0]


def test_of_several_stops_the_first_ends_it() -> None:
    assert said([0, 1, 2, 3], ("of", "nd"))[0] == ["The", " e"]


def test_half_a_character_waits_for_its_other_half() -> None:
    data = "a🙂b".encode()
    text = Text(lambda numbers: bytes(data[number] for number in numbers).decode(errors="replace"), ())
    assert [text.add(number) for number in range(len(data))] == ["a", "", "", "", "🙂", "b"]


def test_half_a_character_at_the_end_is_told_as_it_is() -> None:
    data = "🙂".encode()[:2]
    text = Text(lambda numbers: bytes(data[number] for number in numbers).decode(errors="replace"), ())
    assert [text.add(0), text.add(1), text.rest()] == ["", "", "\ufffd"]
