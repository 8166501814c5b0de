"""The work board, questions to people, and what is held in quarantine."""

from memory.errors import NotFound
from proxy.rest.asking import Asking
from proxy.rest.bodies import (
    AgentCreate,
    AgentMade,
    AgentQuery,
    AgentsListed,
    Done,
    HumanAnswer,
    HumanAsk,
    HumanAsked,
    HumanListed,
    HumanQuery,
    Quarantined,
    QuarantineListed,
    QuarantinePut,
    QuarantineRead,
    TaskAssign,
    TaskCreate,
    TaskMade,
    TaskQuery,
    TasksListed,
    TaskUpdate,
)


async def create_task(asking: Asking, body: TaskCreate) -> TaskMade:
    task = await asking.memory.board.create_task(
        asking.place, body.title, body.description, body.priority, body.assigned_agent, body.dependencies,
        body.metadata,
    )  # fmt: skip
    return TaskMade(task_id=task.id, message="The task is made.")


async def update_task(asking: Asking, body: TaskUpdate) -> Done:
    board = asking.memory.board
    task = await board.update_task(asking.tenant, body.task_id, body.status, body.progress, body.metadata)
    return Done(message=f"The task is {task.status}, at {task.progress:g} percent.")


async def tasks(asking: Asking, query: TaskQuery) -> TasksListed:
    found = await asking.memory.board.tasks(asking.place, query.status)
    return TasksListed(tasks=list(found), count=len(found))


async def assign(asking: Asking, body: TaskAssign) -> AgentMade:
    agent = await asking.memory.board.assign(asking.tenant, asking.named["task_id"], body.agent_id)
    return AgentMade(agent_id=agent.id, message=f"The task is with {agent.agent_name}.")


async def create_agent(asking: Asking, body: AgentCreate) -> AgentMade:
    agent = await asking.memory.board.create_agent(
        asking.place, body.agent_name, body.agent_type, body.capabilities, body.assigned_tools, body.metadata
    )
    return AgentMade(agent_id=agent.id, message="The agent is known.")


async def agents(asking: Asking, query: AgentQuery) -> AgentsListed:
    found = await asking.memory.board.agents(asking.place, query.agent_type)
    return AgentsListed(agents=list(found), count=len(found))


async def isolate(asking: Asking, body: QuarantinePut) -> Quarantined:
    thread = await asking.memory.quarantine.isolate(
        asking.place, body.content, body.context_type, body.reason, body.metadata, asking.principal
    )
    return Quarantined(thread_id=thread, message="The content is held; only its thread id reads it.")


async def isolated(asking: Asking) -> QuarantineListed:
    found = await asking.memory.quarantine.listed(asking.place)
    return QuarantineListed(contexts=list(found), count=len(found))


async def read_isolated(asking: Asking) -> QuarantineRead:
    context = await asking.memory.quarantine.read(asking.principal, asking.named["thread_id"])
    if context is None:
        raise NotFound.of("thread_id")
    return QuarantineRead(context=context)


async def release(asking: Asking) -> Done:
    await asking.memory.quarantine.release(asking.principal, asking.named["thread_id"])
    return Done(message="The content is back.")


async def ask(asking: Asking, body: HumanAsk) -> HumanAsked:
    asked = await asking.memory.humans.ask(asking.place, body.question, body.priority, body.metadata)
    return HumanAsked(hil_id=asked.id, message="The question waits for an answer.")


async def answer(asking: Asking, body: HumanAnswer) -> Done:
    await asking.memory.humans.answer(asking.tenant, body.hil_id, body.response, asking.principal)
    return Done(message="The answer is on its way.")


async def pending(asking: Asking, query: HumanQuery) -> HumanListed:
    found = await asking.memory.humans.pending(asking.place, query.wait)
    return HumanListed(requests=list(found), count=len(found))
