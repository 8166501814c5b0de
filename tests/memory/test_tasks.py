"""Tasks wait for each other in one direction, and go to whoever can do them."""

from datetime import timedelta
from uuid import UUID

import pytest

from memory.nouns import Agent, Task, TaskStatus
from memory.tasks import blocking, cycle, fitting, refusal
from tests.clock import NOON

A, B, C = (UUID(int=n) for n in (1, 2, 3))
PENDING, IN_PROGRESS, COMPLETED, CANCELLED = TaskStatus


def task(title="work", description="", requires=None, dependencies=()):
    metadata = {} if requires is None else {"requires": requires}
    return Task(str(A), "s", title, description, PENDING, 0, None, list(dependencies), 0.0, NOON, NOON, None, metadata)


def agent(name, *capabilities, open=0, age=0, active=True):
    made = NOON - timedelta(days=age)
    return Agent(name, "s", name, "coder", list(capabilities), [], {"open": open}, active, made, made, {})


@pytest.mark.parametrize(
    ("needs", "members"),
    [({}, set()), ({A: [B], B: [C]}, set()), ({A: [A]}, {A}), ({A: [B], B: [A]}, {A, B}),
     ({A: [B], B: [C], C: [A]}, {A, B, C}), ({A: [B, C], B: [C]}, set())],
)  # fmt: skip
def test_tasks_that_wait_for_each_other_are_named(needs, members):
    assert set(cycle(needs)) == members


def test_what_has_not_ended_blocks():
    waiting = task(dependencies=["a", "b", "c", "d"])
    status = {"a": PENDING, "b": IN_PROGRESS, "c": COMPLETED, "d": CANCELLED}
    assert blocking(waiting, status) == ("a", "b")


@pytest.mark.parametrize("old", TaskStatus)
@pytest.mark.parametrize("new", TaskStatus)
def test_which_changes_are_refused(old, new):
    ended = old in (COMPLETED, CANCELLED)
    assert bool(refusal(old, new, ())) == (ended and new not in (old, PENDING))
    if not ended:
        assert bool(refusal(old, new, ("a",))) == (new in (IN_PROGRESS, COMPLETED) and new != old)


@pytest.mark.parametrize(
    ("work", "agents", "chosen"),
    [
        (task(requires=["code_review"]), [agent("a", "testing"), agent("b", "Code review")], "b"),
        (task(requires=["x", "y"]), [agent("a", "x"), agent("b", "y", "x")], "b"),
        (task(requires=["x", "y"]), [agent("a", "x"), agent("b", "y")], None),
        (task(requires="x"), [agent("a", "x")], "a"),
        (task("Design the API"), [agent("a", "testing"), agent("b", "api", "design")], "b"),
        (task("Design the API"), [agent("a", "api"), agent("b", "api", "design")], "b"),
        (task("Capital city"), [agent("a", "api")], None),
        (task(requires=["x"]), [agent("a", "x", open=2), agent("b", "x", open=1)], "b"),
        (task(requires=["x"]), [agent("a", "x", age=1), agent("b", "x", age=2)], "b"),
        (task(requires=["x"]), [agent("a", "x", active=False)], None),
        (task("work"), [agent("a", "-", "")], None),
        (task(requires={"odd": 1}), [agent("a", "x")], None),
    ],
)  # fmt: skip
def test_who_fits(work, agents, chosen):
    found = fitting(work, agents)
    assert (found and found.id) == chosen
