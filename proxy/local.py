"""The small model of a server: its weights, the engine that runs it, and what that makes of the settings.

Where `upstream` is `local`, every request that no entry of `upstreams` claims goes to it, whatever model it names. Else
it is one upstream among others, under its own name.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import structlog
from pydantic import SecretStr
from yarl import URL

from memory.errors import EngineError, LLMMemoryError
from memory.nouns import MemoryApproach
from memory.settings import Slm
from memory.slm import at_hand
from memory.slm.adapting import lends
from memory.slm.at_hand import AtHand
from memory.slm.counting import counting
from memory.slm.engine import PATIENCE_SECONDS, READS, Backend, Engine, Ready, Running, ending
from memory.slm.weights import Weights, locate
from proxy.config import LOCAL, LOCAL_UPSTREAM, Config, ModelSection, engine_environment
from proxy.destinations import UpstreamSection

log = structlog.get_logger()

LOOK_SECONDS = 0.1
FIRST_SECONDS, MOST_SECONDS = 0.5, 60.0  # between a death and the next start: twice as long each time
STEADY_SECONDS = 60.0  # one that has lived so long starts again as soon as the first time
ANY = "*"


def backend_of(config: Config) -> Backend | None:
    """What is to run a model here; None: nothing, or it runs elsewhere."""
    if config.slm.url is None and config.slm.backend in ("llamacpp", "transformers"):
        return config.slm.backend
    return "llamacpp" if is_needed(config) and config.slm.backend == "none" else None


def is_needed(config: Config) -> bool:
    """Whether a server without its local model is not what was asked for."""
    return config.upstream == LOCAL or config.use_slm or config.memory_approach is MemoryApproach.SLM


def running(config: Config, backend: Backend, weights: Weights) -> Running:
    slm = config.slm
    return Running(
        backend,
        weights,
        config.models_home,
        threads=slm.threads,
        window=slm.window,
        quantization=slm.quantization,
        adapters=config.adapters_home if lends(backend, slm.learning.enabled) else None,
    )


def spawned(config: Config) -> Engine | None:
    """The engine, begun to start. None: there is to be none, or it cannot be and is not needed.

    Raises:
        LLMMemoryError: it cannot be, and is needed.
    """
    backend = backend_of(config)
    if backend is None:
        return None
    try:
        weights = locate(config.slm.model, config.models_home, READS[backend])
        engine = Engine(running(config, backend, weights), engine_environment())
        engine.spawn(engine.running.port)
    except LLMMemoryError as error:
        without(config, error)
        return None
    return engine


def without(config: Config, error: LLMMemoryError) -> None:
    """Go on, where the model is not needed."""
    if is_needed(config):
        raise error
    log.error("going on without the local model", reason=str(error))


def settled(config: Config, engine: Engine | None, is_over: Callable[[], bool] = lambda: False) -> Config:
    """The settings for the processes beside an engine, once it is ready. Blocks.

    Args:
        engine: None: the one at `slm.url`, if there is one.
        is_over: whether nobody needs it any more.

    Raises:
        LLMMemoryError: it does not start and is needed, or cannot chat and all chats are to go there.
        OSError: its vocabulary cannot be written.
    """
    if engine is None:
        if config.upstream != LOCAL or config.slm.url is None:
            return config
        known = ModelSection(context_window=config.slm.window, input_usd_per_million=0, output_usd_per_million=0)
        return joined(config, config.slm.url, config.slm.model, known)
    try:
        wait(engine, is_over)
        return config if engine.ready is None else told(config, engine.running.weights, engine.ready, engine.key)
    except EngineError as error:
        engine.stop()
        without(config, error)
        return config


def wait(engine: Engine, is_over: Callable[[], bool]) -> None:
    """
    Raises:
        EngineError
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not engine.wait(LOOK_SECONDS) and not is_over():
        if time.monotonic() > deadline:
            raise EngineError(f"the engine of {engine.name} was not ready within {PATIENCE_SECONDS:.0f} s")


def told(config: Config, weights: Weights, ready: Ready, key: str | None = None) -> Config:
    """
    Args:
        key: by which the engine lends adapters.

    Raises:
        EngineError: all chats are to go to a model that cannot chat.
        OSError: its vocabulary cannot be written.
    """
    if config.upstream == LOCAL and ready.message_tokens is None:
        raise EngineError(
            f"{weights.name} has no chat template: it completes texts and cannot chat. "
            "`infold slm models` lists those that can"
        )
    counted = counting(weights, config.models_home, ready)
    known = ModelSection(
        context_window=int(ready.window / counted.factor),
        encoding=counted.encoding,
        input_usd_per_million=0,
        output_usd_per_million=0,
    )
    slm = config.slm.model_copy(update={"backend": backend_of(config), "url": ready.url, "window": ready.window})
    update = {"slm": slm, "slm_name": weights.name, "slm_key": SecretStr(key) if key else None}
    return joined(config, ready.url, weights.name, known).model_copy(update=update)


def joined(config: Config, url: str, name: str, known: ModelSection) -> Config:
    """With the model among the upstreams. What the operator says of it wins.

    Raises:
        LLMMemoryError: its names are taken there.
    """
    called, is_default = config.local_upstream, config.upstream == LOCAL
    if called is None:
        names = ", ".join(LOCAL_UPSTREAM)
        raise LLMMemoryError(f"upstreams: leave one of the names {names} to the local model")
    section = UpstreamSection.model_validate({"url": url, "models": [ANY if is_default else name], "model": name})
    section = section.model_copy(update={"trainable_outputs": config.trainable_outputs})
    mine = config.models.get(name)
    known = known if mine is None else known.model_copy(update=mine.model_dump(exclude_none=True))
    return config.model_copy(
        update={
            "upstream": url if is_default else config.upstream,
            "upstreams": {**config.upstreams, called: section},
            "models": {**config.models, name: known},
        }
    )


@contextmanager
def findable(config: Config, engine: Engine | None) -> Iterator[None]:
    """Tell other programs on the data directory of an engine that is ready; where that cannot be written, they do
    without."""
    with ExitStack() as stack:
        if engine is not None and engine.ready is not None:
            how, ready = engine.running, engine.ready
            there = AtHand(
                ready.url, engine.name, how.backend, ready.window, how.quantization, os.getpid(), engine.key
            )  # fmt: skip
            try:
                stack.enter_context(at_hand.told(config.data_dir, there))
            except OSError as error:
                log.warning("other programs do not find the local model", reason=str(error))
        yield


def nearby(config: Config) -> Slm:
    """The local model: at the URL of the settings, else the one that a server runs on the data directory. Blocks."""
    slm = config.settings.slm
    there = at_hand.at_hand(config.data_dir) if slm.url is None else None
    if there is None:
        return slm
    how = {"backend": there.backend, "quantization": there.quantization, "window": there.window}
    return replace(slm, url=there.url, name=there.model, key=there.key, **how)  # type: ignore[arg-type]


def shown(engine: Engine) -> str:
    """What an engine that is ready runs, in a line."""
    assert engine.ready is not None
    how = engine.running
    threads = f"{how.threads} thread{'s' if how.threads > 1 else ''}"
    return f"{engine.name}, window {engine.ready.window:,} tokens, {how.backend}, {threads}, {engine.ready.url}"


class Tended:
    """An engine that is started again where it listened, each time it dies."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.monotonic) -> None:
        """`engine`: ready."""
        assert engine.ready is not None
        self._engine = engine
        self._now = now
        self._port = URL(engine.ready.url).port or 0
        self._is_ready = True
        self._since = now()
        self._pause = FIRST_SECONDS
        self._again: float | None = None  # when it is started next

    def tend(self) -> None:
        """Look after it; returns at once."""
        if self._again is not None:
            if self._now() >= self._again:
                self._again, self._since, self._is_ready = None, self._now(), False
                self._engine.spawn(self._port)
            return
        try:
            if not self._is_ready and self._engine.wait(0):
                self._is_ready = True
                log.info("the engine is back", model=self._engine.name)
        except EngineError as error:
            return self._died(str(error))
        code = self._engine.poll()
        if code is not None:
            self._died(f"it ended {ending(code)}")

    def _died(self, reason: str) -> None:
        lived = self._now() - self._since
        self._pause = FIRST_SECONDS if lived > STEADY_SECONDS else self._pause
        log.warning("the engine died", model=self._engine.name, reason=reason, again_in_seconds=self._pause)
        self._again, self._pause = self._now() + self._pause, min(2 * self._pause, MOST_SECONDS)


def alone(how: Running, ready: Callable[[Engine], None]) -> None:
    """Run an engine until SIGINT or SIGTERM.

    Raises:
        EngineError: it does not start.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    engine = Engine(how, engine_environment())
    try:
        engine.spawn(how.port)
        wait(engine, stopping.is_set)
        if engine.ready is None:
            return
        ready(engine)
        tended = Tended(engine)
        while not stopping.wait(LOOK_SECONDS):
            tended.tend()
    finally:
        engine.stop()


@asynccontextmanager
async def local_model(config: Config) -> AsyncIterator[Config]:
    """The local model of a web process that nobody supervises; gives the settings with the way to it.

    Raises:
        LLMMemoryError, OSError
    """
    if config.supervised:
        yield config
        return
    engine = spawned(config)
    try:
        config = await asyncio.to_thread(settled, config, engine)
        task = asyncio.create_task(tend(Tended(engine))) if engine and engine.ready else None
        try:
            with findable(config, engine):
                yield config
        finally:
            if task is not None:
                task.cancel()
    finally:
        if engine is not None:
            engine.stop()


async def tend(tended: Tended) -> None:
    while True:
        tended.tend()
        await asyncio.sleep(LOOK_SECONDS)
