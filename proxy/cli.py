"""The command `infold`: each command parses, calls one function, prints."""

import asyncio
import gc
import json
import socket
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory.errors import LLMMemoryError
from proxy.commands import table
from proxy.commands.offered import with_weights
from proxy.commands.opened import read
from proxy.commands.parsing import Whole
from proxy.commands.shown import fail
from proxy.commands.slm import slm

if TYPE_CHECKING:
    from memory.slm.engine import Engine
    from proxy.config import Config

cli = typer.Typer(
    name="infold",
    cls=Whole,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# When Python looks for cycles: after so many new objects, and so many such looks. Requests make thousands of objects
# and hardly a cycle.
COLLECT_AFTER = (50_000, 20, 100)


def main() -> None:
    cli()


def tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infold {metadata.version('infold')}")
        raise typer.Exit


@cli.callback()
def infold(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """An OpenAI-compatible proxy that keeps long conversations inside the model's window and loses nothing."""


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; left out: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one; left out: 8808.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="Provider's base URL, or `local`: a small model here. Left out: https://api.openai.com/v1."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where database and spool lie.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file; left out: ./proxy.yaml if it is there.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Fetch the local model's weights without asking.")] = False,
) -> None:
    """Serve the proxy.

    Example: infold serve --upstream https://api.openai.com/v1
    Without a provider: infold serve --upstream local

    Then point any OpenAI SDK at it: OpenAI(base_url="http://127.0.0.1:8808/v1").
    Every option is also a setting in proxy.yaml and in the environment: INFOLD_PORT, INFOLD_UPSTREAM, ...
    """
    settings = read(config, host=host, port=port, upstream=upstream, data_dir=data_dir)
    from memory.slm.engine import READS
    from proxy import logs
    from proxy.household import Household
    from proxy.local import backend_of, is_needed

    if is_needed(settings) and (backend := backend_of(settings)) is not None:
        with_weights(settings.slm.model, settings.models_home, READS[backend], yes)
    logs.configure(settings.log_level)
    try:
        Household(settings).run(lambda url, engine: banner(settings, url, engine))
    except (LLMMemoryError, OSError) as error:
        fail(str(error))


def banner(config: "Config", url: str, engine: "Engine | None" = None) -> None:
    from proxy.local import shown

    database = "your PostgreSQL (DATABASE_URL)" if config.database_url else f"embedded PostgreSQL in {config.data_dir}"
    here = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")  # where nobody can connect to
    local = engine.name if engine is not None else config.slm.url
    upstream = local if config.upstream == "local" else config.upstream
    model = f"Local model: {shown(engine)}\n" if engine is not None and engine.ready is not None else ""
    typer.echo(
        f"Infold listens on {url} and forwards to {upstream}\n"
        f"{model}"
        f"Memory: {database}\n"
        f'Use it: OpenAI(base_url="{here}/v1")   Stop it: Ctrl-C lets running streams finish'
    )


@cli.command(hidden=True)
def web(fd: Annotated[int, typer.Option(help="An inherited listening socket.")]) -> None:
    """One web worker; `infold serve` starts it."""
    import uvicorn

    from proxy.config import load

    gc.set_threshold(*COLLECT_AFTER)
    config = load()
    server = uvicorn.Config(
        "proxy.app:app",
        loop="uvloop",
        http="proxy.tunnel:Connections",  # httptools, and a way out for WebSockets
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(config.drain_seconds) or None,
    )
    uvicorn.Server(server).run(sockets=[socket.socket(fileno=fd)])


@cli.command(hidden=True)
def providers(fd: Annotated[int, typer.Option(help="An inherited listening socket.")]) -> None:
    """The process that translates for providers of other dialects; starts when the first request needs it."""
    import uvicorn

    server = uvicorn.Config(
        "proxy.providers:Providers",
        factory=True,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        date_header=False,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(server).run(sockets=[socket.socket(fileno=fd)])


@cli.command()
def worker(config: Annotated[Path | None, typer.Option(help="Settings file.")] = None) -> None:
    """Run background jobs alone: embeddings and tidying. `infold serve` starts one by itself."""
    settings = read(config)
    from proxy.config import silence_libraries

    silence_libraries()
    from proxy.jobs import run

    asyncio.run(run(settings))


@cli.command(hidden=True)
def embed() -> None:
    """The embedder for web workers alone; `infold serve` starts it where `job_worker` is false."""
    from proxy.config import ConfigError, load, silence_libraries

    silence_libraries()
    from proxy.jobs import embed_alone

    try:
        asyncio.run(embed_alone(load()))
    except ConfigError as error:
        fail(str(error))


@cli.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file.")] = None,
) -> None:
    """The models whose windows and prices are known, yours first.

    Example: infold models --json
    """
    from memory.models import ModelTable
    from memory.table import known_models, model_config

    table = ModelTable(read(config).overrides)
    rows = {name: dict(model_config(name, table)) for name in known_models(table) if table.find(name).window}
    if as_json:
        return typer.echo(json.dumps(rows, indent=2))
    width = max(map(len, rows))
    typer.echo(f"{'model':{width}}  {'window':>9}  {'answer':>7}  trigger  safe  $/1k in  $/1k out")
    for name, row in rows.items():
        window, trigger, safe, answer, cost, cost_out = row.values()
        prices = f"{cost:>7.5f}  {cost_out:>8.5f}"
        typer.echo(f"{name:{width}}  {window:>9,}  {answer:>7,}  {trigger:>7.0%}  {safe:>4.0%}  {prices}")


@cli.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Without pauses.")] = False,
    seed: Annotated[int, typer.Option(help="Which telling: names and numbers are drawn from it.")] = 0,
) -> None:
    """Watch a conversation of more than ten windows flow through Infold: no key, no network, nothing left behind.

    Example: infold demo --seed 7

    A scripted provider answers from the prompt it receives and from nothing else. The exit code is 0 when all
    questions at the end were answered, else 1.
    """
    try:
        from rich.console import Console

        from proxy.demo.house import DemoError
        from proxy.demo.run import demo as play
    except ModuleNotFoundError as error:
        fail(f"the demo needs the package {error.name}; `pip install infold` brings it")
    try:
        all_answered = play(seed, fast, Console())
    except KeyboardInterrupt:
        fail("stopped")
    except (DemoError, LLMMemoryError, OSError) as error:
        fail(str(error))
    raise typer.Exit(0 if all_answered else 1)


table.add_to(cli, {"slm": slm})

if __name__ == "__main__":
    main()
