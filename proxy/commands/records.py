"""A session as a whole, what was spent, and everything of a tenant out and in again."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.commands.files import STANDARD, chunks, size_of, written
from proxy.commands.opened import At
from proxy.commands.shown import Rows, Shown, fail

if TYPE_CHECKING:
    from rich.progress import Progress

    from proxy.rest.bodies import Imported, SessionsListed, State, Tidied, UsageTold


async def state(at: At) -> "State":
    """What the session's prompt holds, and how full the model's window is.

    Example: infold state --session harbour
    """
    from proxy.rest.bodies import State

    return State(state=await at.memory.items.state(at.place, at.model))


def show_state(answer: "State") -> Shown:
    state = answer.state
    used, total = state.used_context_length, state.total_context_length
    spent = state.token_usage_stats
    yield Rows(
        ("", ""),
        [
            ("session", state.session_id),
            ("model", state.model_name),
            ("window", f"{used:,} of {total:,} tokens used, {state.context_utilization_percentage:.1f} %"),
            ("items in full", len(state.active_items)),
            ("items shortened", len(state.compressed_items)),
            ("tokens spent", f"{spent.input_tokens:,} in, {spent.output_tokens:,} out, ${spent.total_cost:,.4f}"),
        ],
    )


async def sessions(
    at: At,
    limit: Annotated[int, typer.Option(help="At most so many, 1 to 1,000.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
) -> "SessionsListed":
    """The tenant's sessions, newest first.

    Example: infold sessions
    """
    from proxy.rest.bodies import SessionsListed

    found, more = await at.memory.sessions.listed(at.tenant, cursor, limit)
    return SessionsListed(sessions=found, next=more)


def show_sessions(answer: "SessionsListed") -> Shown:
    rows = [(one.id, one.items, one.turns, one.created_at) for one in answer.sessions]
    yield Rows(("session", "items", "turns", "created"), rows, "No sessions yet.")
    if answer.next:
        yield f"There are more: --cursor {answer.next}"


async def hygiene(
    at: At, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False
) -> "Tidied":
    """Compress and archive what time has passed by.

    Example: infold hygiene --dry-run
    """
    from proxy.rest.bodies import Tidied

    report = await at.memory.items.hygiene(at.place, dry_run)
    done = "Nothing was changed; this is what would be." if report.dry_run else "The session is tidied."
    return Tidied(message=done, report=report)


def show_hygiene(answer: "Tidied") -> Shown:
    report = answer.report
    rows = [(item.id, item.action, item.why) for item in report.items if item.action != "keep"]
    yield Rows(("id", "action", "why"), rows)
    counts = f"compress {report.compressed:,}, archive {report.archived:,}, delete {report.deleted:,}"
    yield f"{answer.message} Items: {counts}, keep {report.kept:,}."


async def usage(
    at: At,
    by: Annotated[str, typer.Option(help="day, model or session.")] = "day",
    since: Annotated[str | None, typer.Option("--from", help="A date, or a time in ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Likewise; itself left out.")] = None,
    session: Annotated[str | None, typer.Option(help="Of this session alone.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many rows, 1 to 1,000.")] = 1000,
) -> "UsageTold":
    """Tokens, bill, and what the bill would have been without Infold.

    Example: infold usage --by model --from 2026-01-01
    """
    from proxy.rest.bodies import UsageTold

    return UsageTold(usage=list(await at.memory.usage.sums(at.tenant, by, since, until, session, limit)), by=by)


def show_usage(answer: "UsageTold") -> Shown:
    columns = (answer.by, "calls", "input", "cached", "output", "bill $", "without us $", "own $", "without a price")
    rows = [
        (
            one.key,
            one.calls,
            one.input_tokens,
            one.cached_tokens,
            one.output_tokens,
            one.bill_usd,
            one.counterfactual_usd,
            one.own_usd,
            one.unpriced_calls,
        )
        for one in answer.usage
    ]
    yield Rows(columns, rows, "No calls yet.")


async def export(
    at: At,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="- is standard output.")] = STANDARD,
) -> None:
    """Everything of the tenant, all sessions, as JSON lines.

    Example: infold export memory.jsonl
    """
    count = 0
    with written(file) as stream:
        async for line in at.memory.portable.export(at.tenant):
            stream.write(line + b"\n")
            count += 1
    if file != STANDARD:
        typer.echo(f"{count:,} lines are in {file}.", err=True)


async def load(
    at: At,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export; - is standard input.")],
) -> "Imported":
    """Take in what an export gave; twice changes nothing.

    Example: infold import memory.jsonl
    """
    from memory.portable import lines_of
    from proxy.rest.bodies import Imported

    with progress() as bar:
        task = bar.add_task("import", total=size_of(file))

        async def counted() -> AsyncIterator[bytes]:
            async for chunk in chunks(file):
                yield chunk
                bar.advance(task, len(chunk))

        return Imported(counts=await at.memory.portable.load(at.principal, lines_of(counted())))


@contextmanager
def progress() -> Iterator["Progress"]:
    """A bar of bytes on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar


def show_imported(answer: "Imported") -> Shown:
    columns = ("kind", "imported", "present", "refused", "ignored")
    rows = [(kind, *(counts[name] for name in columns[1:])) for kind, counts in sorted(answer.counts.items())]
    yield Rows(columns, rows, "There was nothing in it.")


def check_imported(answer: "Imported") -> None:
    """Lines that were refused make the command fail, once all the others are in."""
    if refused := sum(counts["refused"] for counts in answer.counts.values()):
        fail(f"{refused:,} lines could not be taken: they are no export of Infold's, or hold what it does not allow")
