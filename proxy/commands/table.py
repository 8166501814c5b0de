"""Every command of the memory: the one list that the command line is made from.

A command's function says by its signature which arguments there are, and by its docstring what `--help` tells; its
first argument is the open memory. What it gives is what REST gives for the same: printed for people by `show`, or as
it is with `--json`.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from memory.errors import InvalidRequest, LLMMemoryError, NotFound
from proxy.commands import items, learning, records, work
from proxy.commands.opened import opened, read, served
from proxy.commands.parsing import Group
from proxy.commands.shown import ERROR, NOT_FOUND, USAGE, Shown, as_json, fail, one_line, tell

if TYPE_CHECKING:
    from proxy.config import Config


MOST_CHARS = 2_000  # of a line that says why


class Command(NamedTuple):
    name: str  # "items add"
    run: Callable[..., Coroutine[Any, Any, Any]]
    show: Callable[[Any], Shown] | None  # None: it writes by itself
    in_session: bool = True  # whether it takes --session
    check: Callable[[Any], None] = lambda answer: None  # fails after all was printed


class Options(NamedTuple):
    """What all commands take."""

    session: str | None = None
    key: str | None = None
    json: bool = False
    data_dir: Path | None = None
    config: Path | None = None


GROUPS = {  # the first command of a group is also what the group alone does
    "items": "Texts that are stored: list, show, add, change.",
    "tasks": "Tasks that wait for each other.",
    "agents": "Agents that take tasks.",
    "quarantine": "Content that nothing may tell.",
    "hil": "Questions to people (human in the loop).",
    "slm": "A small model on this machine: its weights, what fits, what it learns.",
}

COMMANDS = (
    Command("state", records.state, records.show_state),
    Command("search", items.search, items.show_found),
    Command("ask", items.ask, items.show_answer),
    Command("items list", items.listed, items.show_listed),
    Command("items show", items.show, items.show_one, in_session=False),
    Command("items add", items.add, items.show_added),
    Command("items pin", items.pin, items.show_pinned, in_session=False),
    Command("items delete", items.delete, work.show_done, in_session=False),
    Command("tasks list", work.tasks, work.show_tasks),
    Command("tasks create", work.create_task, work.show_task_made),
    Command("tasks update", work.update_task, work.show_done, in_session=False),
    Command("tasks assign", work.assign, work.show_done, in_session=False),
    Command("agents list", work.agents, work.show_agents),
    Command("agents create", work.create_agent, work.show_agent_made),
    Command("quarantine list", work.held, work.show_held),
    Command("quarantine show", work.read_held, work.show_read, in_session=False),
    Command("quarantine release", work.release, work.show_done, in_session=False),
    Command("hil pending", work.pending, work.show_pending),
    Command("hil ask", work.ask, work.show_asked),
    Command("hil answer", work.answer, work.show_done, in_session=False),
    Command("sessions", records.sessions, records.show_sessions, in_session=False),
    Command("hygiene", records.hygiene, records.show_hygiene),
    Command("usage", records.usage, records.show_usage, in_session=False),
    Command("slm learning", learning.learning, learning.show_learning, in_session=False),
    Command("slm train", learning.train, learning.show_training, in_session=False, check=learning.check_training),
    Command("slm adapters", learning.adapters, learning.show_adapters, in_session=False),
    Command("slm rollback", learning.rollback, learning.show_rolled_back, in_session=False),
    Command("export", records.export, None, in_session=False),
    Command("import", records.load, records.show_imported, in_session=False, check=records.check_imported),
)

COMMON: Mapping[str, Any] = {
    "session": Annotated[
        str | None, typer.Option(help="Which session; left out: the tenant's default one, and for `ask` all of them.")
    ],
    "key": Annotated[str | None, typer.Option(help="API key: whose memory; left out: the local tenant's.")],
    "json": Annotated[bool, typer.Option("--json", help="For programs: one JSON document, as REST gives it.")],
    "data_dir": Annotated[Path | None, typer.Option(help="Where the database lies. DATABASE_URL wins.")],
    "config": Annotated[Path | None, typer.Option(help="Settings file; left out: ./proxy.yaml if it is there.")],
}

# How a field is called on the command line, where it is not its own name behind two dashes.
SPELLED = {
    "session_id": "--session", "content_type": "--type", "content_types": "--type", "agent_type": "--type",
    "capabilities": "--can", "assigned_tools": "--tool", "assigned_agent": "--agent", "dependencies": "--after",
    "content": "FILE", "FILE": "FILE", "title": "TITLE", "agent_name": "NAME", "query": "QUERY", "question": "QUESTION",
    "response": "TEXT",
}  # fmt: skip


def add_to(cli: typer.Typer, begun: Mapping[str, typer.Typer]) -> None:
    """Wire all of them.

    Args:
        begun: groups that have commands of another kind already.
    """
    groups = {name: begun.get(name) or typer.Typer(cls=Group, help=told) for name, told in GROUPS.items()}
    added = set()
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group and group not in added:
            added.add(group)
            cli.add_typer(groups[group], name=group)
        (groups[group] if group else cli).command(name)(callback(command))


def callback(command: Command) -> Callable[..., None]:
    """What Typer calls: with the arguments of the command's function, and those that all commands take."""
    left_out = {"session": command.in_session, "json": command.show is not None}
    common = [name for name in COMMON if left_out.get(name, True)]

    def run(**given: Any) -> None:
        options = Options(**{name: given.pop(name) for name in common})
        perform(command, options, given)

    own = list(inspect.signature(command.run).parameters.values())[1:]
    shared = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=COMMON[n], default=Options._field_defaults[n])
        for n in common
    ]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keywords, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__doc__ = command.run.__doc__
    return run


def perform(command: Command, options: Options, given: Mapping[str, Any]) -> None:
    config = read(options.config, data_dir=options.data_dir)
    quiet()
    with refusals(command, given):
        with served(config) as dsn:
            answer = asyncio.run(asked(command, config, dsn, options, given))
        if command.show is not None and options.json:
            typer.echo(as_json(answer))
        elif command.show is not None:
            tell(command.show(answer))
    command.check(answer)


def quiet() -> None:
    """Standard output is the command's own; what goes wrong is told in a line at its end."""
    import structlog

    from proxy import logs
    from proxy.config import silence_libraries

    silence_libraries()
    if not structlog.is_configured():
        logs.configure("error")


async def asked(command: Command, config: "Config", dsn: str, options: Options, given: Mapping[str, Any]) -> Any:
    async with opened(config, dsn, options.key, options.session) as at:
        return await command.run(at, **given)


@contextmanager
def refusals(command: Command, given: Mapping[str, Any]) -> Iterator[None]:
    """What is refused, as one line and an exit code: 1 an error, 2 a wrong value, 3 no such thing."""
    try:
        yield
    except NotFound as error:
        fail(missing(command, given, error), NOT_FOUND)
    except InvalidRequest as error:
        fail(one_line(in_options(str(error), error.field), MOST_CHARS), USAGE)
    except BrokenPipeError:  # Typer's: whoever read our output has seen enough
        raise
    except (LLMMemoryError, OSError) as error:
        fail(one_line(str(error), MOST_CHARS), ERROR)


IDS = frozenset({"item_id", "task_id", "hil_id", "thread_id"})


def missing(command: Command, given: Mapping[str, Any], error: NotFound) -> str:
    told = str(error)
    if error.field not in IDS:
        return one_line(in_options(told, error.field), MOST_CHARS)
    id = next((str(given[name]) for name in ("item_id", "task_id", "hil_id", "thread") if name in given), "")
    group = command.name.split(" ")[0]
    return f"there is no {one_line(id)!r} among the tenant's; `infold {group}` lists a session's"


def in_options(told: str, field: str | None) -> str:
    """A sentence that begins with its field, with that as the command line calls it."""
    if not field or not told.startswith((f"{field} ", f"{field}:")):
        return told
    return f"{SPELLED.get(field, f'--{field}')}{told.removeprefix(field)}"
