"""Passages that fit a room: the best first, and nothing twice."""

from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from memory.find import Candidate
from memory.search import ALONE, NEAREST, REACH, pack, reach
from memory.store.passages import Around

TEXT = "".join(chr(ord("a") + n % 26) for n in range(400))
ITEMS = UUID(int=1), UUID(int=2)


def part(start: int, stop: int, item: UUID = ITEMS[0]) -> Around:
    return Around(item, "code", datetime(2026, 1, 1, tzinfo=UTC), 400, start, stop, TEXT[start:stop], False, 0)


def packed(parts: list[Around], room: int = 1_000) -> list[tuple[int, int]]:
    scores = [1 - n / 1_000 for n in range(len(parts))]
    return [(quote.start, quote.stop) for quote in pack(parts, scores, room, len)]


def test_parts_that_overlap_become_one_at_the_place_of_the_better_one():
    assert packed([part(0, 30), part(100, 150), part(20, 50), part(50, 60)]) == [(0, 60), (100, 150)]


def test_a_part_that_joins_two_others_makes_one_of_three():
    assert packed([part(0, 30), part(60, 90), part(25, 65)]) == [(0, 90)]


def test_what_joins_two_has_the_score_of_the_best():
    (first, second) = pack([part(0, 30), part(100, 110), part(60, 90), part(25, 65)], [0.9, 0.8, 0.7, 0.6], 1_000, len)
    assert (first.start, first.stop, first.score) == (0, 90, 0.9)
    assert (second.start, second.score) == (100, 0.8)


def test_parts_of_other_items_stay_apart():
    assert packed([part(0, 30), part(20, 50, ITEMS[1])]) == [(0, 30), (20, 50)]


def test_far_passages_come_with_less_of_themselves():
    passage = Candidate(ITEMS[0], 0, 0, 10, 3, 0.4, (7, 8), (2, 5))
    assert reach(NEAREST - 1, passage, frozenset()) == REACH
    assert reach(NEAREST, passage, frozenset({8})) == 0
    assert reach(NEAREST, passage, frozenset({9})) == ALONE < 0


def test_what_does_not_fit_makes_way_for_what_does():
    assert packed([part(0, 30), part(100, 150), part(200, 210)], room=45) == [(0, 30), (200, 210)]


spans = st.lists(st.tuples(st.integers(0, 380), st.integers(1, 20)).map(lambda s: part(s[0], s[0] + s[1])), max_size=30)


@given(parts=spans, room=st.integers(0, 400))
def test_quotes_are_the_text_itself_within_the_room_and_apart(parts: list[Around], room: int):
    quotes = pack(parts, [1 - n / 100 for n in range(len(parts))], room, len)

    assert sum(quote.tokens for quote in quotes) <= room
    assert [quote.score for quote in quotes] == sorted((quote.score for quote in quotes), reverse=True)
    assert all(quote.text == TEXT[quote.start : quote.stop] and quote.tokens == len(quote.text) for quote in quotes)
    by_place = sorted(quotes, key=lambda quote: quote.start)
    assert all(one.stop < other.start for one, other in pairwise(by_place))
