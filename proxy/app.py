"""The composition root: reads the settings, wires the parts, serves ASGI.

`infold serve` starts this in its web workers; `uvicorn proxy.app:app` works, too.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NamedTuple

import asyncpg
import structlog
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from memory.ask import model_of
from memory.bring import Bring
from memory.digest.fit import CountTokens
from memory.embed import Embedder, embedder
from memory.errors import LLMMemoryError, SpoolError, StoreError
from memory.items import Summarize
from memory.manager import MemoryManager
from memory.models import ModelTable
from memory.nouns import Clock, utc_now
from memory.recorder import Recorder
from memory.slm.admit import Admitted
from memory.spool import DISK_SECONDS, Spool
from memory.store.migrate import migrate
from memory.store.pool import AWAY, WAIT_SECONDS, Pool
from memory.store.secrets import load_pepper
from memory.summarize import local as summarized_locally
from memory.summarize import upstream as summarized_by
from memory.table import known_models
from memory.tokens import Counter
from memory.whole import Memory, memory
from proxy import logs, manage
from proxy.chat import managed, send_on
from proxy.config import Config, load
from proxy.exchange import Exchange
from proxy.household import database, job_worker, providers
from proxy.local import local_model
from proxy.metrics import Metrics
from proxy.parts import Parts
from proxy.rest.table import routes
from proxy.tunnel import connection_of, tunnel
from proxy.upstreams import Upstreams
from proxy.windows import Windows, client_without_cookies
from proxy.wire.dialects import dialect_at

log = structlog.get_logger()

OURS = frozenset(("/", "/healthz", "/readyz", "/metrics"))
OURS_BELOW = "/memory-manager/"
RETRY_SECONDS = 1.0
FIRST_CONNECTION_SECONDS = 5.0  # a start waits so long for the database, then serves without it
DRAIN_SECONDS = 2.0
QUERY_EMBEDDING_SECONDS = 0.25


def admin() -> list[Route]:
    """Our own pages, beside the data plane."""
    return [
        Route("/healthz", manage.alive),
        Route("/readyz", manage.ready),
        Route("/metrics", manage.metrics),
        *routes(),
        Route("/", manage.welcome),
    ]


class Waits(NamedTuple):
    """How long a request waits at most for what it could do without."""

    database_seconds: float = WAIT_SECONDS
    disk_seconds: float = DISK_SECONDS  # where the database is away


USUAL = Waits()


class App:
    """The ASGI application: the data plane as plain callables, all else as Starlette routes beside it."""

    def __init__(self, config: Config | None = None, clock: Clock = utc_now, waits: Waits = USUAL) -> None:
        self._config = config
        self._clock = clock
        self._waits = waits
        self._parts: Parts | None = None
        self._admin: ASGIApp = Starlette(
            routes=admin(), lifespan=self._lifespan, exception_handlers={404: manage.missing, Exception: manage.broken}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or path in OURS or path.startswith(OURS_BELOW):
            return await self._admin(scope, receive, send)
        assert self._parts is not None
        exchange = Exchange(scope, receive, send)
        if connection := connection_of(scope):
            way = self._parts.upstreams.unmanaged(exchange)
            return await tunnel(way.upstream, exchange, connection, way.headers)
        dialect = dialect_at(path)
        if dialect is not None:
            return await managed(self._parts, exchange, dialect)
        await send_on(self._parts.upstreams.unmanaged(exchange), exchange, None)

    @asynccontextmanager
    async def _lifespan(self, admin: Starlette) -> AsyncIterator[None]:
        config = self._config or load()
        logs.configure(config.log_level)
        async with AsyncExitStack() as stack:
            config = await stack.enter_async_context(local_model(config))
            dsn = await stack.enter_async_context(database(config))
            config = await stack.enter_async_context(job_worker(config, dsn))
            config = await stack.enter_async_context(providers(config))
            self._parts = await build(config, dsn, stack, self._clock, self._waits)
            admin.state.parts = self._parts
            yield
            if self._parts.background:
                await asyncio.wait(set(self._parts.background), timeout=10)
            await self._parts.memory.spending.write()


async def build(config: Config, dsn: str, stack: AsyncExitStack, clock: Clock = utc_now, waits: Waits = USUAL) -> Parts:
    """Wire the parts; what must end is pushed on the stack."""
    models = ModelTable(config.overrides)
    metrics = Metrics(known_models(models))
    pool = Pool(dsn, wait_seconds=waits.database_seconds)
    stack.push_async_callback(pool.close)
    spool = Spool(config.data_dir / "spool" / "turns", timeout_seconds=waits.disk_seconds)
    stack.callback(spool.close)
    recorder = Recorder(pool, spool)
    upstreams = Upstreams(config)
    stack.push_async_callback(upstreams.close)
    if upstreams.spendable and not config.is_loopback:
        log.warning("whoever reaches this address spends the keys of upstreams", upstreams=upstreams.spendable)
    client = await stack.enter_async_context(client_without_cookies())
    embedding = embedder_for(config)
    counter = Counter()
    for override in config.overrides.values():
        counter.reply(override.encoding or "")  # reads vocabularies of models' own, of which large ones take a second
    programs = Pool(dsn, 4, waits.database_seconds)  # of their own: a timeout shuts a pool's gate for all who use it
    stack.push_async_callback(programs.close)
    admitted = Admitted(config.settings.slm, config.models_home) if config.summarizer == "local" else None
    shorter = summarizer_for(config, models, counter, metrics, admitted)
    whole = memory(programs, dsn, counter, models, config.settings, clock, embedding, shorter, metrics)
    manager = MemoryManager(
        config.settings, pool, recorder, models, counter, embedding, Bring(whole.items, waits.database_seconds),
        lambda: whole.signals.is_connected,
    )  # fmt: skip
    stack.callback(whole.signals.listen(manager.heard))
    stack.callback(asyncio.create_task(whole.signals.run()).cancel)
    stack.enter_context(told_to_stop(whole.signals.end))
    parts = Parts(config, manager, upstreams, Windows(models, client), metrics, pool, recorder, admitted=admitted)
    if admitted is not None:
        parts.later(looked_at(admitted))
    if config.pepper is not None:
        parts.pepper = config.pepper.get_secret_value().encode()
    reached = asyncio.Event()
    stack.callback(asyncio.create_task(keep_database(parts, dsn, reached, programs, whole)).cancel)
    with suppress(TimeoutError):
        await asyncio.wait_for(reached.wait(), FIRST_CONNECTION_SECONDS)
    return parts


@contextmanager
def told_to_stop(call: Callable[[], None]) -> Iterator[None]:
    """Call on the loop as soon as the process is told to stop.

    uvicorn tells an application only after all its answers have ended, and a stream of events ends when it is told. So
    we hear the signals before it does, and it hears them from us. Signals come to the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    ours = [number for number, handler in before.items() if callable(handler)]  # else nobody would end the process
    for number in ours:
        signal.signal(number, heard)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def embedder_for(config: Config) -> Embedder | None:
    """How this process embeds a question: by the job worker's socket or a server; never in the process itself."""
    if config.embedder == "builtin" and config.embed_socket is None:
        return None
    socket_path = str(config.embed_socket) if config.embed_socket else None
    return embedder(config.embedder, socket_path=socket_path, timeout_seconds=QUERY_EMBEDDING_SECONDS)


def summarizer_for(
    config: Config, models: ModelTable, counter: Counter, metrics: Metrics, admitted: Admitted | None = None
) -> Summarize | None:
    """A small model, where one is set: the local one, or the provider's with a key of the operator's."""

    def counting(model: str) -> CountTokens:
        return partial(counter.text, encoding=models.find(model).encoding)

    if admitted is not None:
        model = model_of(config.settings.slm)
        return summarized_locally(model, admitted, counting) if model is not None else None
    if config.summarizer != "upstream" or config.openai_api_key is None:
        return None

    def paid(model: str, input_tokens: int, output_tokens: int) -> None:
        prices = models.find(model, config.upstream).prices
        cost = input_tokens * prices.input + output_tokens * prices.output if prices else 0.0
        metrics.own_cost.labels(metrics.model(model)).inc(cost)

    return summarized_by(config.upstream, config.openai_api_key.get_secret_value(), counting, paid=paid)


async def looked_at(admitted: Admitted) -> None:
    """Say at the start who will summarise."""
    try:
        await admitted.verdict()
        log.info("summaries of the local model", told=admitted.told)
    except (LLMMemoryError, OSError) as error:
        admitted.told = f"not admitted: {error}"
        log.warning("summaries of the local model", told=admitted.told)


async def keep_database(parts: Parts, dsn: str, reached: asyncio.Event, programs: Pool, whole: Memory) -> None:
    """Reach the database, bring its schema up, read the pepper; until then requests are a wire.

    Afterwards the pool's own gate watches; when the database comes back, the spool is replayed.
    """
    told = False
    while True:
        try:
            await migrate(dsn)
            await programs.open()
            await parts.pool.open()
            if parts.pepper is None:
                async with parts.pool.connection(5) as connection:
                    parts.pepper = await load_pepper(connection)
            break
        except (StoreError, asyncpg.PostgresError, *AWAY) as error:
            if not told:
                log.warning("database away", reason=f"{type(error).__name__}: {error}")
            told = True
            await asyncio.sleep(RETRY_SECONDS)
    log.info("database ready")
    parts.whole = whole
    parts.metrics.database.set(1)
    parts.pool.on_change(lambda available: database_changed(parts, available))
    reached.set()
    while True:  # whatever the reason a turn was spooled for, it does not wait for the next outage
        await replay(parts)
        await parts.memory.spending.write()
        await whole.lookout.look_again()
        await asyncio.sleep(DRAIN_SECONDS)


async def replay(parts: Parts) -> None:
    """Write what was spooled to the database, if it is there; a disk that fails now is asked again later."""
    try:
        waiting = await asyncio.to_thread(parts.recorder.spooled)
        if waiting and parts.pool.available:
            await parts.recorder.drain()
    except (SpoolError, OSError) as error:
        log.error("the spool cannot be read", reason=str(error))


def database_changed(parts: Parts, available: bool) -> None:
    parts.metrics.database.set(int(available))
    if available:
        parts.later(replay(parts))


app = App()
