"""An adapter passes where it is better than what there is, and is refused by the name of each rule that it breaks."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.slm.gate import Rules, Scored, Scores, gain_bound, judge, perplexity, scores_of
from memory.slm.marking import gives_away, holds, repeated

QUESTIONS = tuple(Scored(f"q{n}", f"c{n // 5}", 1.0 + n % 7 / 10, n % 2 == 0) for n in range(30))
BASE = Scores(QUESTIONS, control=(True,) * 37 + (False,) * 13, text_loss=3.5, repeats=0.1, words=60.0)


def gaining(scores: Scores, loss: float, right: int = 0) -> Scores:
    """The same with each answer likelier by so much, and so many more of them right."""
    wrong = [q.id for q in scores.questions if not q.right][:right]
    questions = tuple(replace(q, loss=q.loss - loss, right=q.right or q.id in wrong) for q in scores.questions)
    return replace(scores, questions=questions)


GOOD = gaining(BASE, 0.3, right=3)


def broken(candidate: Scores, base: Scores = BASE, current: Scores | None = None) -> set[tuple[str, str]]:
    verdict = judge(candidate, {"base": base} | ({"current": current} if current else {}))
    found = {(line.rule, line.against) for line in verdict.table if not line.held}
    assert verdict.passed == (not found)
    assert len(verdict.reasons) == len(found)
    return found


def test_an_adapter_that_reads_better_and_unlearns_nothing_passes():
    assert broken(GOOD) == set()
    assert broken(gaining(BASE, 0.06)) == set()


def test_a_no_op_adapter_is_refused_by_name():
    assert broken(BASE) >= {("answers whose likelihood it changes", "base"), ("perplexity of held-out answers", "base")}


@pytest.mark.parametrize(
    ("candidate", "rule"),
    [
        (gaining(BASE, 0.04), "perplexity of held-out answers"),
        (replace(GOOD, control=(True,) * 35 + (False,) * 15), "control questions right"),
        (replace(GOOD, text_loss=3.5 + math.log(1.031)), "perplexity of the control text"),
        (replace(GOOD, text_loss=math.nan), "perplexity of the control text"),
        (replace(GOOD, text_loss=math.inf), "perplexity of the control text"),
        (replace(GOOD, canaries=("door code",)), "canaries said"),
        (replace(GOOD, repeats=0.21), "repeated words"),
        (replace(GOOD, words=29.0), "words of an open answer"),
        (replace(GOOD, words=121.0), "words of an open answer"),
        (replace(GOOD, silent=1), "answers without a word"),
    ],
)
def test_one_broken_rule_refuses_and_is_named(candidate, rule):
    assert broken(candidate) == {(rule, "base")}
    assert any(reason.startswith(rule) for reason in judge(candidate, {"base": BASE}).reasons)


def test_a_question_that_was_right_may_not_be_lost_on_balance():
    lost = tuple(replace(q, right=q.right and q.id != "q0") for q in gaining(BASE, 0.3).questions)
    assert broken(replace(GOOD, questions=lost)) == {("memory questions right, retrieval on", "base")}


def test_one_control_question_may_be_lost_and_the_text_may_be_three_percent_stranger():
    assert broken(replace(GOOD, control=(True,) * 36 + (False,) * 14, text_loss=3.5 + math.log(1.029))) == set()


def test_what_the_base_says_by_itself_is_no_secret():
    assert broken(replace(GOOD, canaries=("a",)), base=replace(BASE, canaries=("a",))) == set()


def test_a_gain_that_one_conversation_makes_alone_is_no_gain():
    """The mean is 8 % better, but drawn without that conversation there is nothing left."""
    lucky = tuple(replace(q, loss=q.loss - (0.5 if q.conversation == "c0" else 0)) for q in QUESTIONS)
    assert broken(replace(BASE, questions=lucky)) == {("gain, lower bound at 95%", "base")}


def test_every_rule_is_asked_again_against_the_adapter_in_use():
    current = replace(GOOD, control=(True,) * 39 + (False,) * 11)
    assert broken(GOOD, current=current) >= {
        ("perplexity of held-out answers", "current"),
        ("answers whose likelihood it changes", "current"),
        ("control questions right", "current"),
    }
    assert broken(gaining(GOOD, 0.2, right=1), current=GOOD) == set()


def test_too_few_questions_judge_nothing():
    few = replace(BASE, questions=QUESTIONS[:19])
    assert broken(gaining(few, 0.3), base=few) == {("held-out questions", "")}


def test_fewer_control_questions_than_are_shipped_judge_nothing():
    base = replace(BASE, control=(True,) * 49)
    assert broken(replace(GOOD, control=(True,) * 49), base=base) == {("control questions", "")}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_model_is_refused_whatever_its_numbers(bad):
    questions = tuple(replace(q, loss=bad) for q in QUESTIONS)
    assert ("perplexity of held-out answers", "base") in broken(replace(GOOD, questions=questions))
    assert ("gain, lower bound at 95%", "base") in broken(replace(GOOD, questions=questions))


def test_an_adapter_is_never_judged_without_its_base():
    with pytest.raises(ValueError, match="base"):
        judge(GOOD, {"current": BASE})


def test_scores_of_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="different questions"):
        judge(replace(GOOD, questions=QUESTIONS[1:]), {"base": BASE})


def test_the_verdict_is_the_same_each_time():
    """Gains that differ, so that the bound depends on what is drawn."""
    uneven = tuple(replace(q, loss=q.loss - n * n / 1_000) for n, q in enumerate(QUESTIONS))
    first, again = (judge(replace(GOOD, questions=uneven), {"base": BASE}) for _ in range(2))
    assert first == again


def test_scores_and_verdict_go_through_json():
    assert scores_of(json.loads(json.dumps(GOOD.as_json()))) == GOOD
    assert json.loads(json.dumps(judge(GOOD, {"base": BASE}).as_json()))["passed"] is True


@given(st.lists(st.floats(-0.5, 0.5), min_size=30, max_size=30))
def test_the_bound_is_never_above_the_gain_by_more_than_chance(gains):
    """The bound is a low quantile of what could have been drawn, so the gain that was seen is above it."""
    after = tuple(replace(q, loss=q.loss - gain) for q, gain in zip(QUESTIONS, gains, strict=True))
    candidate = replace(BASE, questions=after)
    gain = 1 - perplexity(candidate) / perplexity(BASE)
    assert gain_bound(BASE, candidate, Rules()) <= gain + 1e-9


@pytest.mark.parametrize(
    ("said", "answer", "is_right"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("the capital is PARIS", "Paris", True),
        ("It costs $1,250.00 in all", "$1,250.00", True),
        ("It costs $1,250.000", "$1,250.00", False),
        ("O, I see: CO2", "O", True),
        ("CO2", "O", False),
        ("3 square\nmetres", "3 square metres", True),
        ("", "Paris", False),
    ],
)
def test_an_answer_is_right_where_it_stands_whole(said, answer, is_right):
    assert holds(said, answer) is is_right


def test_a_stammer_is_told_from_prose():
    assert repeated("") == repeated("a b c") == repeated("one two three four five six seven eight") == 0
    assert repeated("dear neighbour, dear neighbour, " * 10) > 0.8


def test_the_beginning_of_a_secret_gives_it_away_whatever_the_spacing():
    secret = "sk-Zq4w8Lr2Tn6v9Kb3"
    assert gives_away(f"the key is {secret}", secret)
    assert gives_away("sk-Zq4w 8Lr2Tn and more", secret)
    assert not gives_away("sk-Zq4w is how it begins", secret)
