"""Which earlier messages come back."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.lexical import terms
from memory.rank import Frame, Passage, query, rank, select

WORDS = "river stone cloud amber maple signal harbor violet copper meadow lantern orbit thicket velvet".split()
FLOOR = 0.08


def line_of(*texts: str, speaker: str | None = None) -> list[Passage]:
    return [Passage(i, "user", speaker, text, len(text.split()), terms(text)) for i, text in enumerate(texts)]


def chatter(count: int, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 30))) for _ in range(count)]


def words(text: str) -> int:
    return len(text.split())


def block(question: str, passages: list[Passage], budget: int, floor: float = FLOOR) -> list[int]:
    found = rank(query(question), passages)
    return [choice.position for choice in select(found, passages, budget, floor)]


def test_the_message_that_holds_the_answer_comes_first():
    texts = chatter(200)
    texts[17] = "the deposit for the venue in Lyon is 480 euros"

    ranked = rank(query("How large was the deposit for the venue?"), line_of(*texts))

    assert ranked.found[0].position == 17
    assert 0 < ranked.found[0].score <= 1


def test_neighbours_of_the_hit_come_back_before_strangers():
    texts = chatter(200)
    texts[60] = "which hotel did you book in Lyon?"

    ranked = rank(query("the hotel in Lyon"), line_of(*texts))

    assert {found.position for found in ranked.found[:5]} == {58, 59, 60, 61, 62}


def test_what_stands_in_another_conversation_is_no_neighbour():
    texts = chatter(200)
    texts[60] = "which hotel did you book in Lyon?"
    passages = [replace(passage, line=passage.position // 61) for passage in line_of(*texts)]

    ranked = rank(query("the hotel in Lyon"), passages)

    assert {found.position for found in ranked.found[:4]} == {57, 58, 59, 60}
    assert all(found.score < ranked.found[3].score / 3 for found in ranked.found if found.position > 60)


def test_the_speaker_who_is_named_goes_first_from_the_field_or_from_the_text():
    said = "the tide was very low this morning"
    plain = [*chatter(40), f"Caroline: {said}", *chatter(40, 4), f"Melanie: {said}"]
    field = line_of(*[text.replace("Caroline: ", "").replace("Melanie: ", "") for text in plain])
    field[40] = Passage(40, "user", "Caroline", said, words(said), terms(said))
    field[81] = Passage(81, "user", "Melanie", said, words(said), terms(said))

    for name, position in (("Caroline", 40), ("Melanie", 81)):
        for passages in (line_of(*plain), field):
            assert rank(query(f"What did {name} say of the tide?"), passages).found[0].position == position


def test_a_date_finds_the_message_however_it_is_written():
    texts = [f"[2023-0{1 + n % 9}-{10 + n // 9}] {text}" for n, text in enumerate(chatter(150))]

    ranked = rank(query("What happened on May 14th, 2023?"), line_of(*texts))

    assert texts[ranked.found[0].position].startswith("[2023-05-14]")


@pytest.mark.parametrize(
    "nothing", ["ok, thanks!", "yes please", "hello", "", "!?", "zymurgy of quokkas in Ulaanbaatar"]
)
def test_a_message_that_asks_for_nothing_said_brings_nothing(nothing):
    assert block(nothing, line_of(*chatter(100)), 10_000) == []


def test_a_message_that_says_too_little_is_read_with_what_stood_before_it():
    texts = chatter(100)
    texts[30] = "reservation HAT178 leaves at nine"
    passages = line_of(*texts)

    wanted = query("yes, do that", ["Shall I cancel reservation HAT178?"])

    assert rank(wanted, passages).found[0].position == 30
    longer = query("cancel the other reservation of mine today", ["HAT178"])
    assert longer.weights["hat178"] < wanted.weights["hat178"]


def test_calls_of_a_loop_join_the_query_and_count_less():
    texts = chatter(100)
    texts[30], texts[70] = "the ledger of umbrellas", "file tests/test_parser.py fails"
    wanted = query("what of the umbrellas?", context=["open tests/test_parser.py"])

    assert [found.position for found in rank(wanted, line_of(*texts)).found if found.position in (30, 70)] == [30, 70]


def test_meaning_helps_where_no_word_is_shared():
    texts = chatter(100)

    texts[44] = "we bought a kitten"

    def block_with(similar):
        passages = line_of(*texts)
        chosen = select(rank(query("Do I own any pets?"), passages, similar), passages, 60, FLOOR)
        return [choice.position for choice in chosen]

    assert block_with({}) == []
    assert 44 in block_with({44: 0.9})
    assert block_with(dict.fromkeys(range(100), 0.2)) == []  # as close as any two English texts


def test_short_messages_go_before_long_ones_of_the_same_relevance():
    texts = chatter(60)
    texts[10] = "the umbrella is amber"
    texts[40] = "the umbrella is amber " + "river stone cloud " * 100

    assert 40 not in block("umbrella", line_of(*texts), 320)
    assert 10 in block("umbrella", line_of(*texts), 320)


def test_what_does_not_fit_comes_back_in_part_with_its_hits():
    lines = [f"{n} {' '.join(WORDS[:6])}\n" for n in range(500)]
    lines[321] = "321 the umbrella code is 77-41\n"
    passages = line_of("".join(lines), *chatter(5))

    (part,) = (
        choice
        for choice in select(rank(query("umbrella code"), passages), passages, 400, FLOOR, words)
        if choice.position == 0
    )

    assert "321 the umbrella code is 77-41\n" in passages[0].text[part.start : part.stop]
    assert part.tokens <= 400
    assert not select(rank(query("umbrella code"), passages[:1]), passages[:1], 400, FLOOR)  # nothing without a count


@given(st.integers(0, 2_000), st.integers(0, 30), st.integers(0, 30), st.integers(0, 10_000))
def test_a_block_never_costs_more_than_the_budget_and_keeps_the_order(budget, message, run, seed):
    passages = line_of(*chatter(40, seed))
    chosen = select(rank(query("stone harbor violet"), passages), passages, budget, 0.0, words, Frame(message, run))
    positions = [choice.position for choice in chosen]
    runs = sum(position - 1 not in positions for position in positions)
    text = sum(words(passages[choice.position].text[choice.start : choice.stop]) for choice in chosen)

    assert text + message * len(chosen) + run * runs <= budget
    assert positions == sorted(set(positions))


def test_nothing_earlier_is_nothing_found():
    assert rank(query("river"), []).found == ()
    assert select(rank(query("river"), []), [], 100) == ()


@pytest.mark.parametrize(("count", "most"), [(400, 2.0), (3_000, 1.0)])
def test_a_search_is_quick(count, most):
    """Beside the time that reading its passages anew would take, which grows with the machine's as it does: about half
    of that, 3 and 20 ms."""
    passages = line_of(*chatter(count))
    wanted = query("What did the copper lantern signal to the harbor beyond the violet meadow in May 2023?")
    searching, reading = [], []
    for _ in range(7):
        searching.append(seconds(lambda: rank(wanted, passages)))
        reading.append(seconds(lambda: [terms(passage.text) for passage in passages]))

    assert min(searching) < most * min(reading)


def seconds(work: Callable[[], object]) -> float:
    """Of this process's CPU."""
    start = time.process_time()
    work()
    return time.process_time() - start
