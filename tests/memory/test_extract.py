"""Sentences of passages that answer a question, word for word."""

from memory.extract import extract, told
from memory.rank import query

FERRY = "When does the ferry leave? Well, let me see. The ferry leaves at 07:40. Tickets cost 3 euros."
FEES = "Mooring fees rise in March. The harbour office is closed on Sundays."
WEIGHTS = query("When does the ferry leave?").weights


def test_the_sentence_that_answers_comes_before_the_one_that_asks():
    (one,) = extract([FERRY, FEES], [1.0, 0.5], WEIGHTS, 1)
    assert one.text == "The ferry leaves at 07:40."


def test_sentences_stand_in_the_order_of_the_passages_with_a_mark_between():
    chosen = extract([FERRY, FEES], [1.0, 0.9], WEIGHTS, 3)
    assert [(one.passage, one.place) for one in chosen] == [(0, 0), (0, 2), (1, 1)]
    assert told(chosen) == (
        "When does the ferry leave? … The ferry leaves at 07:40. … The harbour office is closed on Sundays."
    )
    assert told(extract([FEES], [1.0], {}, 2)) == FEES  # what stands together has none


def test_a_better_passage_gives_more():
    low = extract([FEES, FERRY], [1.0, 0.1], {}, 2)
    assert [one.passage for one in low] == [0, 0]


def test_nothing_gives_nothing():
    assert extract([], [], WEIGHTS, 3) == []
    assert told([]) == ""
