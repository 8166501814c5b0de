"""`infold slm learning, train, adapters, rollback`: a small model that learns from a tenant's conversations."""

import asyncio
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from memory.errors import Conflict, InvalidRequest
from proxy.commands.opened import At
from proxy.commands.shown import Rows, Shown

if TYPE_CHECKING:
    from memory.nouns import AdapterTold, Training
    from proxy.rest.learning import AdaptersListed, LearningTold, TrainingTold

POLL_SECONDS = 1.0  # where another process trains
WORDS = {"on": True, "off": False}


async def learning(
    at: At,
    word: Annotated[str | None, typer.Argument(metavar="on|off", help="Left out: how it stands.")] = None,
    past: Annotated[
        bool, typer.Option("--past", help="With on: learn from what is stored already, too, not only from now on.")
    ] = False,
) -> "LearningTold":
    """Whether a model may learn from your conversations, what may be learnt, and what was.

    Example: infold slm learning on

    The operator allows it for all with `slm.learning.enabled`, and you for yourself with this. Off: nothing more is
    learnt, and what was learnt is not used; on again it is. `infold slm train` trains.
    """
    from proxy.rest.learning import LearningTold

    if word is None:
        return LearningTold(learning=await at.memory.learning.state(at.tenant))
    if word not in WORDS:
        raise InvalidRequest(f"on|off must be on or off, got {word!r}", "word")
    return LearningTold(learning=await at.memory.learning.switch(at.tenant, WORDS[word], past))


EXCLUDED = {
    "quarantined": "is or was in quarantine",
    "secret": "a key stands in it",
    "provider": "an answer that may not train other models; see `trainable_outputs` in proxy.yaml",
    "tool": "a tool brought it",
    "empty": "no words",
}


def show_learning(answer: "LearningTold") -> Shown:
    state = answer.learning
    yield Rows(
        ("", ""),
        [
            ("learning", "on" if state.enabled else "off"),
            ("allowed by the operator", state.allowed),
            ("trigger", state.trigger),
            ("learns from what was said since", state.since),
            ("messages that may be learnt from", state.samples),
            ("of these since the last training", state.new_samples),
        ],
    )
    if state.excluded:
        yield ""
        rows = [(count, name, EXCLUDED.get(name, "")) for name, count in state.excluded.items()]
        yield Rows(("messages that may not", "reason", ""), rows)
    yield ""
    measured = {a.id for a in state.adapters if a.state == "trained"}
    yield Rows(
        ("training", "state", "why", "messages", "queued", "what happened"),
        [(t.id, t.state, t.why, t.samples, t.queued_at, happened(t, t.id in measured)) for t in state.trainings],
        "No training yet. `infold slm train` begins one.",
    )


def happened(training: "Training", is_measured: bool) -> str:
    """How far it is, or what came of it."""
    if training.state != "running":
        return training.error or numbers(training)
    parts = [numbers(training), "is measured against what there is" if is_measured else ""]
    parts.append(f"try {training.tries}: {training.error}" if training.error else "")
    return "; ".join(filter(None, parts))


def numbers(training: "Training") -> str:
    """What a trainer told last, in words."""
    told = training.metrics
    parts = [f"{told['step']} of {told['steps']} steps"] if {"step", "steps"} <= told.keys() else []
    parts += [f"loss {told['last_loss']:.3g}"] if told.get("last_loss") is not None else []
    parts += [f"{told['seconds']:,.0f} s"] if "seconds" in told else []
    return ", ".join(parts)


async def train(
    at: At,
    force: Annotated[
        bool, typer.Option("--force", help="Also with few messages, or with a model too large for a processor.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Train here and now, and show how it goes; else a running server does it.")
    ] = False,
) -> "TrainingTold":
    """Train an adapter on your conversations; it is used only if it proves better than what there is.

    Example: infold slm train --wait

    Four fifths of the conversations are learnt from, the newest fifth is held out to judge by. What passes is on trial
    for some answers, then in use. Ctrl-C saves where it stands; the same command goes on from there.
    """
    from proxy.rest.learning import TrainingTold

    found = await at.memory.learning.want(at.tenant, force)
    if wait:
        found = await trained(at, found)
    return TrainingTold(training=found)


async def trained(at: At, wanted: "Training") -> "Training":
    """Train until that training has ended; where another process trains, wait for it."""
    from memory.trainer import Trainer

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    trainer = Trainer(at.memory.pool, at.home, at.slm, at.memory.clock, at.bases)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        with progress() as tell:
            while True:
                ended = await trainer.run(tell, (at.tenant, UUID(wanted.id)), stop)
                found = ended or await at.memory.learning.training(at.tenant, wanted.id)
                if found is None:
                    raise Conflict("the training is gone: everything was erased")
                if found.state not in ("queued", "running") or stop.is_set():
                    return found
                if ended is None:
                    tell({"event": "waiting"})
                    await asyncio.sleep(POLL_SECONDS)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def progress() -> Iterator[Any]:
    """A bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None, told="")

        def tell(event: Mapping[str, Any]) -> None:
            match event["event"]:
                case "loaded":
                    bar.update(task, description=f"training on {event['rows']:,} rows", total=event["steps"])
                case "step":
                    told = f"step {event['step']} of {event['steps']}, loss {event['loss']:.3f}"
                    bar.update(task, completed=event["step"], total=event["steps"], told=told)
                case "measuring":
                    bar.update(task, description="measuring against what there is", total=None, told="")
                case "waiting":
                    bar.update(task, description="another process trains", total=None, told="")

        yield tell


def show_training(answer: "TrainingTold") -> Shown:
    one = answer.training
    if one.state == "queued":
        yield f"{one.id} waits: a running `infold serve` or `infold worker` trains; --wait trains here."
    elif one.state == "running":
        yield f"{one.id} is being trained; `infold slm learning` tells how it goes."
    elif one.state == "done":
        yield f"{one.id} passed: `infold slm adapters` says whether it is on trial or in use, and has the table."
    else:
        yield f"{one.id} {one.state}: {one.error or 'no reason was told'}"


def check_training(answer: "TrainingTold") -> None:
    """Exit code 1 where nothing came of it."""
    if answer.training.state in ("refused", "failed"):
        raise typer.Exit(1)
    if answer.training.state == "stopped":
        raise typer.Exit(130)


async def adapters(at: At) -> "AdaptersListed":
    """What was trained, what became of it, and the table by which the last one was judged.

    Example: infold slm adapters
    """
    return listed(await at.memory.learning.adapters(at.tenant))


def listed(found: "list[AdapterTold]") -> "AdaptersListed":
    from proxy.rest.learning import AdaptersListed

    return AdaptersListed(adapters=found, count=len(found))


def show_adapters(answer: "AdaptersListed") -> Shown:
    columns = ("adapter", "number", "state", "loaded", "answers", "held", "made", "why")
    rows = [
        (a.id, a.number, a.state, a.served, a.asked, a.accepted, a.created_at, a.error or "; ".join(a.reasons))
        for a in answer.adapters
    ]
    yield Rows(columns, rows, "No adapter yet. `infold slm train` makes one.")
    judged = next((a for a in answer.adapters if a.table), None)
    if judged is not None:
        yield f"\nThe gate's table of {judged.id}:"
        lines = [
            (
                line["rule"],
                line["against"],
                f"{line['before']:.4g}",
                f"{line['after']:.4g}",
                line["bound"],
                line["held"],
            )
            for line in judged.table
        ]
        yield Rows(("rule", "against", "before", "after", "must be", "held"), lines)


async def rollback(at: At) -> "AdaptersListed":
    """Take back the adapter on trial, else the one in use: the one before it reads again, or the bare model.

    Example: infold slm rollback
    """
    return listed(await at.memory.learning.roll_back(at.tenant))


def show_rolled_back(answer: "AdaptersListed") -> Shown:
    reads = next((a for a in answer.adapters if a.state == "active"), None)
    yield f"Adapter {reads.number} reads now." if reads else "The bare model reads now."
