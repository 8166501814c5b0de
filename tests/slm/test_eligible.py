"""What may be learnt from, and when there is enough of it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from memory.settings import Learning
from memory.slm.eligible import Waiting, due, importance, reason
from tests.clock import NOON

KEY = "sk-ant-abc123DEF456ghi789JKL0"


@pytest.mark.parametrize(
    ("role", "text", "held", "upstreams", "why"),
    [
        ("user", "hello", False, (), ""),
        ("user", "hello", True, (), "quarantined"),
        ("user", f"it is {KEY}", False, (), "secret"),
        ("user", f"it is {KEY}", True, (), "quarantined"),
        ("user", " \n", False, (), "empty"),
        ("tool", "hello", False, (), "tool"),
        ("developer", "hello", False, (), "tool"),
        ("assistant", "hello", False, ("default",), ""),
        ("assistant", "hello", False, ("default", "default"), ""),
        ("assistant", "hello", False, ("default", "other"), "provider"),
        ("assistant", "hello", False, ("other",), "provider"),
        ("assistant", "hello", False, ("",), "provider"),
        ("assistant", "hello", False, (), "provider"),
        ("assistant", KEY, False, ("default",), "secret"),
    ],
)
def test_one_reason_is_enough_not_to_learn_from_a_message(role, text, held, upstreams, why):
    assert reason(role, text, held, upstreams, {"default"}) == why


def test_a_message_weighs_by_its_facts_and_never_too_much():
    assert importance("Well, yes.") == 0
    assert 0 < importance("Marta signs offer KN-4471 for €1,200 before April 9.") <= 10
    assert importance(" ".join(f"KN-{n} costs €{n},000." for n in range(1000, 1100))) == 10


ENOUGH = Waiting(samples=60, conversations=10, importance=100, since=NOON)


@pytest.mark.parametrize(
    ("settings", "waiting", "hours", "why"),
    [
        ({"trigger": "manual"}, ENOUGH, 1_000, None),
        ({"trigger": "fixed"}, ENOUGH, 23.9, None),
        ({"trigger": "fixed"}, ENOUGH, 24, "hours"),
        ({"trigger": "fixed", "conversations": 10}, ENOUGH, 0, "conversations"),
        ({"trigger": "fixed", "least_samples": 61}, ENOUGH, 1_000, None),
        ({"trigger": "adaptive", "importance": 100}, ENOUGH, 0, "importance"),
        ({"trigger": "adaptive", "importance": 101}, ENOUGH, 1_000, None),
        ({"trigger": "adaptive", "importance": 1, "least_samples": 61}, ENOUGH, 0, None),
    ],
)
def test_a_training_is_due_by_its_trigger_and_never_with_too_little(settings, waiting, hours, why):
    assert due(replace(Learning(), **settings), waiting, NOON + timedelta(hours=hours)) == why
