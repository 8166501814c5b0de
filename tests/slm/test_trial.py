"""How an adapter does at work: what is an accident, and what is not."""

import doctest
import random

import pytest

from memory.slm import trial
from memory.slm.trial import Record, canary_step, fails


def held(many, of):
    return Record("1" * many + "0" * (of - many))


def test_worked_examples_come_out_as_written():
    assert doctest.testmod(trial).failed == 0


@pytest.mark.parametrize(
    ("canary", "before", "step"),
    [
        (held(0, 0), held(80, 100), "wait"),
        (held(19, 19), held(80, 100), "wait"),
        (held(20, 20), held(80, 100), "promote"),
        (held(15, 20), held(80, 100), "promote"),
        (held(10, 20), held(80, 100), "withdraw"),
        (held(2, 10), held(80, 100), "withdraw"),
        (held(0, 9), held(80, 100), "wait"),
        (held(20, 20), held(5, 9), "wait"),
        (held(0, 20), held(0, 100), "promote"),
        (held(19, 20), held(100, 100), "promote"),
    ],
)
def test_a_canary_is_promoted_where_it_is_not_worse_by_more_than_an_accident(canary, before, step):
    assert canary_step(canary, before, 20) == step


def test_one_as_good_as_before_is_hardly_ever_withdrawn_and_a_bad_one_nearly_always():
    rng = random.Random(0)

    def steps(share):
        drawn = [Record("".join("01"[rng.random() < share] for _ in range(20))) for _ in range(500)]
        return [canary_step(one, held(80, 100), 20) for one in drawn]

    assert steps(0.8).count("withdraw") < 50
    assert steps(0.3).count("withdraw") > 480


def test_one_in_use_goes_back_by_its_newest_answers_alone():
    assert not fails(held(0, 200), None)
    assert fails(Record("1" * 150 + "0" * 50), 0.8)
    assert not fails(Record("0" * 150 + "1" * 50), 0.8)
    assert not fails(held(0, 9), 0.8)
