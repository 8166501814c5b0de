"""The part of a long text that says most."""

from hypothesis import given
from hypothesis import strategies as st

from memory.excerpt import excerpt
from memory.lexical import terms

WEIGHTS = dict.fromkeys(terms("reservation HAT178").counts, 1.0)


def words(text: str) -> int:
    return len(text.split())


def part(text: str, budget_words: int) -> str:
    found = excerpt(text, WEIGHTS, budget_words, words)
    return text[found.start : found.stop]


def test_the_lines_around_the_hits_are_taken_whole():
    lines = [f"{n} some other line\n" for n in range(200)]
    lines[120] = "120 reservation HAT178 is here\n"

    found = part("".join(lines), 40)

    assert "120 reservation HAT178 is here\n" in found
    assert set(found.splitlines(keepends=True)) <= set(lines)
    assert words(found) <= 40


def test_where_nothing_is_found_the_beginning_stands_for_the_whole():
    assert part("one two\nthree four\nfive six\n", 4) == "one two\nthree four\n"


def test_a_text_in_one_line_is_cut_between_words():
    text = "filler " * 2_000 + "reservation HAT178 " + "filler " * 2_000

    found = part(text, 100)

    assert "HAT178" in found
    assert set(found.split()) == {"filler", "reservation", "HAT178"}


def test_a_text_too_long_to_read_is_read_around_its_rarest_term():
    text = "filler line\n" * 200_000 + "reservation HAT178\n" + "filler line\n" * 200_000

    assert "HAT178" in part(text, 100)


def test_nothing_fits_nothing_is_taken():
    assert part("one two three four five", 2) == ""
    assert part("", 10) == ""


@given(st.text(alphabet="ab HAT178\n", max_size=2_000), st.integers(0, 50))
def test_a_part_never_costs_more_than_the_budget(text, budget):
    assert words(part(text, budget)) <= budget
