"""The work board, questions to people, and what is held in quarantine."""

from typing import TYPE_CHECKING, Annotated

import typer

from memory.errors import NotFound
from proxy.commands.opened import At
from proxy.commands.shown import Rows, Shown

if TYPE_CHECKING:
    from proxy.rest.bodies import (
        AgentMade,
        AgentsListed,
        Done,
        HumanAsked,
        HumanListed,
        QuarantineListed,
        QuarantineRead,
        TaskMade,
        TasksListed,
    )

Priority = Annotated[int, typer.Option(help="0 to 10, 10 highest.")]
TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
After = Annotated[list[str] | None, typer.Option(help="A task that comes first; may be there several times.")]
Thread = Annotated[str, typer.Argument(metavar="THREAD", help="The id of what is held: thread_...")]
STATUSES = "pending, in_progress, completed or cancelled."


def show_done(answer: "Done") -> Shown:
    yield answer.message


# Tasks


async def tasks(at: At, status: Annotated[str | None, typer.Option(help=STATUSES)] = None) -> "TasksListed":
    """The session's tasks, by priority, newest first.

    Example: infold tasks --status pending
    """
    from proxy.rest.bodies import TasksListed

    found = await at.memory.board.tasks(at.place, status)
    return TasksListed(tasks=list(found), count=len(found))


def show_tasks(answer: "TasksListed") -> Shown:
    columns = ("id", "status", "done %", "priority", "agent", "title")
    rows = [(t.id, t.status, round(t.progress), t.priority, t.assigned_agent, t.title) for t in answer.tasks]
    yield Rows(columns, rows, "No tasks in this session. `infold tasks create TITLE` makes one.")


async def create_task(
    at: At,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What is to be done.")],
    description: Annotated[str, typer.Option(help="In more words.")] = "",
    priority: Priority = 0,
    agent: Annotated[str | None, typer.Option(help="Who does it.")] = None,
    after: After = None,
    requires: Annotated[list[str] | None, typer.Option(help="What its agent must be able to do; likewise.")] = None,
) -> "TaskMade":
    """Make a task; prints its id.

    Example: infold tasks create "Trim the wick" --priority 5
    """
    from proxy.rest.bodies import TaskMade

    task = await at.memory.board.create_task(
        at.place, title, description, priority, agent, after, {"requires": requires} if requires else None
    )
    return TaskMade(task_id=task.id, message="The task is made.")


def show_task_made(answer: "TaskMade") -> Shown:
    yield answer.task_id


async def update_task(
    at: At,
    task_id: TaskId,
    status: Annotated[str | None, typer.Option(help=STATUSES)] = None,
    progress: Annotated[float | None, typer.Option(help="Percent, 0 to 100.")] = None,
) -> "Done":
    """Change a task's status or progress.

    Example: infold tasks update 01890a5d-ac96-774b-bcce-b302099a8057 --status completed
    """
    from proxy.rest.bodies import Done

    task = await at.memory.board.update_task(at.tenant, task_id, status, progress)
    return Done(message=f"The task is {task.status}, at {task.progress:g} percent.")


async def assign(
    at: At,
    task_id: TaskId,
    agent: Annotated[str | None, typer.Option(help="An agent's id; left out: the one that fits best.")] = None,
) -> "AgentMade":
    """Give a task to an agent.

    Example: infold tasks assign 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from proxy.rest.bodies import AgentMade

    try:
        found = await at.memory.board.assign(at.tenant, task_id, agent)
    except NotFound:
        raise NotFound(f"there is no task {task_id}" + (f", or no agent {agent}" if agent else "")) from None
    return AgentMade(agent_id=found.id, message=f"The task is with {found.agent_name}.")


# Agents


async def agents(
    at: At, kind: Annotated[str | None, typer.Option("--type", help="Of this type alone.")] = None
) -> "AgentsListed":
    """The session's active agents, newest first.

    Example: infold agents
    """
    from proxy.rest.bodies import AgentsListed

    found = await at.memory.board.agents(at.place, kind)
    return AgentsListed(agents=list(found), count=len(found))


def show_agents(answer: "AgentsListed") -> Shown:
    columns = ("id", "name", "type", "open tasks", "capabilities")
    rows = [(a.id, a.agent_name, a.agent_type, a.performance_stats["open"], a.capabilities) for a in answer.agents]
    yield Rows(columns, rows, "No agents in this session. `infold agents create NAME --can SKILL` makes one known.")


async def create_agent(
    at: At,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")],
    kind: Annotated[str, typer.Option("--type", help="What kind of agent it is.")] = "agent",
    can: Annotated[list[str] | None, typer.Option(help="What it can do; may be there several times.")] = None,
    tool: Annotated[list[str] | None, typer.Option(help="A tool that it has; may be there several times.")] = None,
) -> "AgentMade":
    """Make an agent known; prints its id.

    Example: infold agents create Ada --type coder --can python --can sql
    """
    from proxy.rest.bodies import AgentMade

    agent = await at.memory.board.create_agent(at.place, name, kind, can or [], tool)
    return AgentMade(agent_id=agent.id, message="The agent is known.")


def show_agent_made(answer: "AgentMade") -> Shown:
    yield answer.agent_id


# People


async def pending(at: At) -> "HumanListed":
    """Questions that wait for a person, by priority, oldest first.

    Example: infold hil
    """
    from proxy.rest.bodies import HumanListed

    found = await at.memory.humans.pending(at.place)
    return HumanListed(requests=list(found), count=len(found))


def show_pending(answer: "HumanListed") -> Shown:
    rows = [(asked.id, asked.priority, asked.created_at, asked.expires_at, asked.question) for asked in answer.requests]
    yield Rows(("id", "priority", "asked", "expires", "question"), rows, "No questions wait in this session.")


async def ask(
    at: At,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="For a person.")],
    priority: Priority = 0,
) -> "HumanAsked":
    """Ask a person; prints the question's id.

    Example: infold hil ask "Light the lantern?"
    """
    from proxy.rest.bodies import HumanAsked

    asked = await at.memory.humans.ask(at.place, question, priority)
    return HumanAsked(hil_id=asked.id, message="The question waits for an answer.")


def show_asked(answer: "HumanAsked") -> Shown:
    yield answer.hil_id


async def answer(
    at: At,
    hil_id: Annotated[str, typer.Argument(metavar="ID", help="The question's id.")],
    response: Annotated[str, typer.Argument(metavar="TEXT", help="The answer.")],
) -> "Done":
    """Answer a question; the program that waits for it goes on.

    Example: infold hil answer 01890a5d-ac96-774b-bcce-b302099a8057 "Yes, at dusk."
    """
    from proxy.rest.bodies import Done

    await at.memory.humans.answer(at.tenant, hil_id, response, at.principal)
    return Done(message="The answer is on its way.")


# Quarantine


async def held(at: At) -> "QuarantineListed":
    """What the session has in quarantine, newest first, without its content.

    Example: infold quarantine
    """
    from proxy.rest.bodies import QuarantineListed

    found = await at.memory.quarantine.listed(at.place)
    return QuarantineListed(contexts=list(found), count=len(found))


def show_held(answer: "QuarantineListed") -> Shown:
    columns = ("thread", "state", "type", "tokens", "since", "reason")
    rows = [
        (one.thread_id, one.state, one.context_type, one.token_count, one.created_at, one.reason_for_isolation)
        for one in answer.contexts
    ]
    yield Rows(columns, rows, "Nothing of this session is in quarantine.")


async def read_held(at: At, thread: Thread) -> "QuarantineRead":
    """What is held, with its content; the reading is written down.

    Example: infold quarantine show thread_0123456789abcdef0123456789abcdef
    """
    from proxy.rest.bodies import QuarantineRead

    context = await at.memory.quarantine.read(at.principal, thread)
    if context is None:
        raise NotFound.of("thread_id")
    return QuarantineRead(context=context)


def show_read(answer: "QuarantineRead") -> Shown:
    context = answer.context
    facts = [
        ("thread", context.thread_id),
        ("session", context.session_id),
        ("type", context.context_type),
        ("since", context.created_at),
        ("reason", context.reason_for_isolation),
    ]
    yield Rows(("", ""), facts)
    yield f"\n{context.isolated_content or ''}".removesuffix("\n")


async def release(at: At, thread: Thread) -> "Done":
    """Give content back: it can be found and told again.

    Example: infold quarantine release thread_0123456789abcdef0123456789abcdef
    """
    from proxy.rest.bodies import Done

    await at.memory.quarantine.release(at.principal, thread)
    return Done(message="The content is back.")
