"""What blocks a task, where tasks would wait for each other, and which agent fits."""

import re
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from uuid import UUID

from memory.nouns import Agent, Task, TaskStatus

DONE = (TaskStatus.COMPLETED, TaskStatus.CANCELLED)
WORD = re.compile(r"\w+")


def cycle(needs: Mapping[UUID, Collection[UUID]]) -> tuple[UUID, ...]:
    """Tasks that would wait for each other, the first again at the end; empty where none do.

    >>> a, b = UUID(int=1), UUID(int=2)
    >>> cycle({a: [b]}), len(cycle({a: [b], b: [a]}))
    ((), 3)
    """
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def blocking(task: Task, status: Mapping[str, TaskStatus]) -> tuple[str, ...]:
    """Ids of the tasks that must end first; `status` is that of the dependencies."""
    return tuple(id for id in task.dependencies if status.get(id, TaskStatus.COMPLETED) not in DONE)


def refusal(old: TaskStatus, new: TaskStatus, blocked: Sequence[str]) -> str | None:
    """Why a task may not change so; None: it may."""
    if old in DONE and new not in (old, TaskStatus.PENDING):
        return f"a task that is {old} can only become {TaskStatus.PENDING}, got {new}"
    if blocked and old != new and new in (TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED):
        return f"the task cannot be {new} before these are completed: {', '.join(blocked[:10])}"
    return None


def fitting(task: Task, agents: Sequence[Agent]) -> Agent | None:
    """The agent for a task, by capabilities; None where nobody fits.

    All of `metadata["requires"]` must be among the capabilities. Without it at least one capability must be named, word
    by word, in title or description. Most named first, then fewest open tasks, then the oldest agent.
    """
    fit = [(agent, named(task, agent)) for agent in agents if agent.is_active and not lacking(task, agent)]
    fit = [(agent, count) for agent, count in fit if count or required(task)]
    if not fit:
        return None
    return min(fit, key=lambda pair: (-pair[1], pair[0].performance_stats.get("open", 0), pair[0].created_at))[0]


def required(task: Task) -> tuple[str, ...]:
    """Capabilities that a task insists on."""
    wanted = task.metadata.get("requires")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    return tuple(name for name in wanted if isinstance(name, str)) if isinstance(wanted, list) else ()


def lacking(task: Task, agent: Agent) -> tuple[str, ...]:
    """What of the required an agent cannot."""
    can = {plain(name) for name in agent.capabilities}
    return tuple(name for name in required(task) if plain(name) not in can)


def named(task: Task, agent: Agent) -> int:
    """How many of an agent's capabilities a task's words name."""
    words = set(plain(f"{task.title} {task.description}"))
    capabilities = {plain(name) for name in agent.capabilities}
    return sum(bool(capability) and words.issuperset(capability) for capability in capabilities)


def plain(text: str) -> tuple[str, ...]:
    """Words alone, small: `code_review` and `Code review` are one.

    >>> plain("code_review"), plain("Code review")
    (('code', 'review'), ('code', 'review'))
    """
    return tuple(WORD.findall(text.casefold().replace("_", " ")))
