"""An answer says nothing that its passages do not say, and is told with those that it rests on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.grounded import normal, rests_on, stands, ungrounded

FERRY = "The ferry to Skarholm leaves at 07:40 from pier 9, and Ada Quill sells tickets for $12,500 a year."
FEES = "Mooring fees rise to thirty-one euros on 8 March 2024; read /srv/fees/2024.csv or ask harbour_office."
DENIED = "The council did not approve the new jetty."
PASSAGES = (FERRY, FEES, DENIED)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "From pier 9.",
        "It leaves at 7:40",
        "Ada Quill's tickets",
        "ADA sells them for $12500",
        "31 euros",
        "Thirty one euros, from March 8, 2024",
        "on 2024-03-08",
        "In /srv/fees/2024.csv, says harbour_office.",
        "They're sold at the pier.",
        "The jetty was not approved.",
        "I'm told: pier 9",
    ],
)
def test_what_the_passages_say_is_grounded_however_it_is_written(answer):
    assert ungrounded(answer, PASSAGES) == ()


@pytest.mark.parametrize(
    ("answer", "strange"),
    [
        ("From pier 19.", "19"),
        ("From pier 2.", "2"),  # stands in 2024 alone
        ("At 8:40", "8:40"),
        ("Nine ferries, eleven tickets", "11"),
        ("Tickets from Bob", "Bob"),
        ("Bob sells them", "Bob"),  # the first word of a sentence
        ("Ada Skarholm sells them", "Ada Skarholm"),  # half of one name, half of another
        ("On 9 March 2024", "03-09"),
        ("On 8 May 2024", "05-08"),
        ("In /srv/fees/2023.csv", "/srv/fees/2023.csv"),
        ("See harbour_master", "harbour_master"),
        ("Ask ada@example.org", "ada@example.org"),
        ("It is 31 dollars", "31 dollars"),
        ('It says "ask the mayor"', "ask the mayor"),
        ("v2.0.1", "v2.0.1"),
        ("в Париже", "Париже"),
        ("北京", "北京"),
        ("القاهرة", "القاهرة"),
    ],
)
def test_an_invented_value_is_named(answer, strange):
    assert strange in ungrounded(answer, PASSAGES)


def test_words_of_a_script_without_capitals_must_all_be_there():
    said = ["我们在北京见面。", "نلتقي في القاهرة غدا"]
    assert ungrounded("北京", said) == ()
    assert ungrounded("في القاهرة", said) == ()
    assert ungrounded("上海", said) == ("上海",)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.text(max_size=40))
def test_any_text_is_looked_at_without_an_error(passages, answer):
    ungrounded(answer, passages)
    assert set(rests_on(answer, "what?", passages)) <= set(range(len(passages)))


@given(st.text(alphabet="aB1 .:-'北é", max_size=30))
def test_a_passage_is_grounded_in_itself(text):
    assert ungrounded(text, [text]) == ()


def test_values_stand_as_a_whole():
    assert stands("12", "pier 12, gate 3")
    assert not stands("12", "in 2012")
    assert not stands("12", "12th")
    assert not stands("ann", "annual")
    assert stands("北京", "我们在北京见面")
    assert normal("Twenty-three of 1,200, 007 and seven") == "23 of 1200, 7 and 7"


QUESTION = "When does the ferry leave and where?"


def test_an_answer_rests_on_the_passages_that_hold_its_words():
    assert rests_on("At 07:40 from pier 9", QUESTION, PASSAGES) == (0,)
    assert rests_on("Fees rise to thirty-one euros", "What about fees?", PASSAGES) == (1,)
    assert rests_on("Pier 9; mooring fees rise", "What is new?", PASSAGES) == (1, 0)


def test_an_answer_of_other_words_rests_on_nothing():
    assert rests_on("It was a wonderful holiday for everybody", QUESTION, PASSAGES) == ()
    assert rests_on("Yes.", QUESTION, PASSAGES) == ()
    assert rests_on("", QUESTION, PASSAGES) == ()


def test_the_question_said_again_is_no_answer():
    assert rests_on("The ferry leaves Skarholm", "Does the ferry leave Skarholm?", PASSAGES) == ()
    assert rests_on("tickets", "Tickets or fees?", PASSAGES) == (0,)  # a choice is


def test_a_denial_is_neither_lost_nor_made():
    question = "What about the jetty?"
    assert rests_on("The council did not approve it", question, PASSAGES) == (2,)
    assert rests_on("The council did approve the new jetty", question, PASSAGES) == ()
    assert rests_on("The ferry does not leave from pier 9", question, PASSAGES) == ()
