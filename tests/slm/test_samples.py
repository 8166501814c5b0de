"""Rows are made of conversations by rule, split by conversation, and hold no secret."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import InvalidRequest
from memory.slm.cloze import GAP, clozes
from memory.slm.recipe import Task
from memory.slm.samples import (
    Conversation,
    Split,
    Utterance,
    as_lines,
    canaries_of,
    questions_of,
    replays,
    rows_from,
    rows_of,
    splits,
)
from memory.slm.shipped import admission, control, open_prompts, replay_prompts
from tests.slm.talks import talks

TALKS = talks(25)
EVERY = tuple(task for task in Task if task is not Task.REPLAY)
KEY = "sk-" + "Zq4w8Lr2Tn6v" * 3


def said(*texts: str, name: str = "c") -> Conversation:
    roles = ("user", "assistant")
    return Conversation(name, 0.0, tuple(Utterance(f"{name}{n}", roles[n % 2], text) for n, text in enumerate(texts)))


def test_the_same_conversations_give_the_same_rows():
    assert rows_of(TALKS, EVERY) == rows_of(talks(25), EVERY)
    assert questions_of(TALKS) == questions_of(talks(25))


def test_every_task_gives_rows():
    assert {row.task for row in rows_of(TALKS, EVERY)} == set(EVERY)


@given(st.permutations(TALKS))
def test_the_newest_fifth_is_held_out_in_whatever_order_conversations_come(order):
    parts = splits(order)
    newest = {talk.id for talk in sorted(TALKS, key=lambda talk: talk.ended)[-5:]}
    assert {name for name, part in parts.items() if part is Split.HELD_OUT} == newest


@given(st.integers(1, 40))
def test_there_is_always_a_held_out_conversation_and_no_other_part_has_a_share_in_it(many):
    rows = splits(talks(many))
    assert Split.HELD_OUT in rows.values()
    assert len(rows) == many
    if many >= 7:
        assert {*rows.values()} == {*Split}


def test_a_conversation_is_in_one_part_only():
    parts: dict[str, set[Split]] = {}
    for row in rows_of(TALKS, EVERY):
        parts.setdefault(row.conversation, set()).add(row.split)
    assert all(len(found) == 1 for found in parts.values())


def test_the_answer_to_learn_stands_in_the_passages_of_its_row():
    rows = rows_of(TALKS, [Task.ANSWER])
    assert len(rows) > 80
    for row in rows:
        assert row.messages[-1][0] == "assistant"
        assert row.messages[-1][1] in row.messages[-2][1]
        assert GAP not in row.messages[-1][1]


def test_questions_are_asked_about_held_out_conversations_alone():
    parts = splits(TALKS)
    questions = questions_of(TALKS)
    assert len(questions) >= 20
    assert {parts[question.conversation] for question in questions} == {Split.HELD_OUT}
    assert len({question.id for question in questions}) == len(questions)


def test_what_an_earlier_conversation_has_is_neither_learnt_twice_nor_held_out():
    """As the branches of a conversation have it, and several that begin with the same document."""
    first = said(*(f"The crane at berth {n} lifts {n + 40} tonnes since March." for n in range(6)), name="first")
    second = replace(said(*(u.text for u in first.utterances), "A pilot costs $340 a trip.", name="second"), ended=1.0)
    third = replace(
        said(*(u.text for u in second.utterances), "The fog over the harbour lifted by 2026-03-04.", name="third"),
        ended=2.0,
    )
    rows = rows_of((third, first, second), [Task.ANSWER])
    assert len({row.messages for row in rows}) == len(rows)
    assert {row.conversation for row in rows if "crane" in row.messages[-2][1]} == {"first"}
    assert [question.answer for question in questions_of((third, first, second))] == ["2026-03-04"]


def test_a_row_names_the_messages_that_it_was_made_of():
    there = {said.id for talk in TALKS for said in talk.utterances}
    for row in rows_of(TALKS, EVERY):
        assert row.source_turn_ids
        assert set(row.source_turn_ids) <= there


def test_rows_come_back_from_their_lines():
    rows = rows_of(TALKS, EVERY) + replays(replay_prompts(), 30, 0.25, 0)
    assert rows_from(as_lines(rows)) == rows
    assert json.loads(as_lines(rows).splitlines()[0]).keys() == {
        "messages", "task", "conversation", "source_turn_ids", "split",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"messages": []}', '{"messages": [{"role": "user"}]}', "null"])
def test_a_line_that_is_no_row_is_told_by_its_number_alone(line):
    good = as_lines(rows_of(TALKS, EVERY)[:1])
    with pytest.raises(InvalidRequest, match=r"^line 2 of the rows is no row$"):
        rows_from(good + line)


def test_a_message_with_a_secret_is_in_no_row_and_no_passage():
    leaky = [
        Conversation(talk.id, talk.ended, (*talk.utterances, Utterance("s", "user", f"The key for Tampere is {KEY}.")))
        for talk in TALKS
    ]
    assert KEY not in as_lines(rows_of(leaky, EVERY))
    assert not any(KEY in passage for question in questions_of(leaky) for passage in question.passages)


def test_secrets_become_canaries_with_the_words_before_them():
    (canary,) = canaries_of([said(f"Please note that our key is {KEY}, do not lose it.")])
    assert canary.secret.startswith(KEY)
    assert canary.lead.endswith("our key is ")


@pytest.mark.parametrize(
    "conversations", [[], [said("Hi!", "Hello.")], [said("", " ")], [said("Ok.") for _ in range(9)]]
)
def test_nothing_to_learn_from_is_an_error_that_says_so(conversations):
    with pytest.raises(InvalidRequest, match="nothing to learn"):
        rows_of(conversations, [Task.ANSWER])


def test_replays_are_their_share_of_all_rows_and_drawn_from_the_seed():
    rows = replays(replay_prompts(), 90, 0.25, 3)
    assert len(rows) == 30
    assert rows == replays(replay_prompts(), 90, 0.25, 3) != replays(replay_prompts(), 90, 0.25, 4)
    assert all(row.task is Task.REPLAY and row.split is Split.TRAIN for row in rows)
    assert replays(replay_prompts(), 90, 0.0, 3) == ()
    assert len(replays(replay_prompts(), 10_000, 0.5, 3)) == len(replay_prompts())


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("The offer has the number BW-7731 and is valid for a month.", "BW-7731"),
        ("Please keep it under $1,250.00 for the whole evening.", "$1,250.00"),
        ("She wants everything out of the yard by March 14, if possible.", "March 14"),
        ("We decided to give the contract to Brightwell Systems this time.", "Brightwell Systems"),
    ],
)
def test_a_fact_of_a_sentence_is_asked_for_and_not_told(sentence, answer):
    (one,) = clozes(sentence)
    assert one.answer == answer
    assert answer not in one.question


@pytest.mark.parametrize(
    "text", ["", "Ok.", "Yes, let us do that then.", "€40", "x" * 5_000, "Pay €40 or €40 to us now please."]
)
def test_what_holds_no_single_fact_is_not_asked_about(text):
    assert clozes(text) == ()


def test_speakers_are_no_answers():
    text = "It was so good to see you again, Caroline, after all these years."
    assert clozes(text)
    assert clozes(text, frozenset({"Caroline"})) == ()


@given(st.lists(st.text(max_size=200), max_size=6))
def test_whatever_was_said_rows_are_made_or_refused(texts):
    try:
        rows = rows_of([said(*texts, name="a"), said(*texts, name="b")], EVERY)
    except InvalidRequest:
        return
    assert rows_from(as_lines(rows)) == rows


def test_what_is_shipped_is_whole():
    assert len(control()) == 50
    assert len({one.question for one in control()}) == 50
    assert not {one.question for one in control()} & {*replay_prompts(), *open_prompts()}
    assert not {*replay_prompts()} & {*open_prompts()}
    assert len(admission()) == 5
    for one in admission():
        whole = "\n".join(content for _, content in one.messages)
        assert len(one.facts) >= 10
        assert all(fact in whole for fact in one.facts)
        assert [role for role, _ in one.messages[:2]] == ["user", "assistant"]
