"""A program's own local model: its engine is started when it is first asked, and ends with the program.

Where a server on the same data directory runs that model already, it is asked there, and nothing is started.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from memory.environment import for_engines
from memory.errors import EngineError, InvalidRequest
from memory.settings import Slm
from memory.slm.adapting import lends
from memory.slm.at_hand import AtHand, at_hand
from memory.slm.client import ANSWER_SECONDS, Completion, ModelAt
from memory.slm.engine import PATIENCE_SECONDS, READS, Backend, Engine, Ready, Running
from memory.slm.registry import MODELS, find
from memory.slm.weights import MissingWeights, Weights, locate

LIBRARIES: Mapping[Backend, str] = {"llamacpp": "xllamacpp", "transformers": "transformers"}
EXTRAS: Mapping[Backend, str] = {"llamacpp": "slm-cpu", "transformers": "slm"}
CLOSED = "this memory manager has been closed"
LOOK_SECONDS = 0.1
AGAIN_SECONDS = 30.0  # after an engine did not start, until it is tried again


class OwnModel(ModelAt):
    """Asked like any other; the first answer takes as long as the engine takes to start."""

    def __init__(self, slm: Slm, data_dir: Path, whichever: bool = False, seconds: float = ANSWER_SECONDS) -> None:
        """All is looked at, nothing started.

        Args:
            whichever: what a server runs is right, whatever model it is.

        Raises:
            InvalidRequest: there is no such model; the message lists those we know.
            MissingWeights: its weights are not there; the message says where they belong.
            EngineError: what runs it is not installed.
            BadWeights: they cannot be used.
        """
        self._data_dir = data_dir
        self._there = asked_for(slm, at_hand(data_dir), whichever)
        self._running = None if self._there else running(slm, data_dir)
        self._engine: Engine | None = None
        self._starting = threading.Lock()
        self._failed: tuple[float, str] | None = None
        self._closed = False
        there, own = self._there, self._running
        name = there.model if there else own.weights.name if own else slm.model
        super().__init__(there.url if there else "", name, there.key if there else None, seconds)
        self.slm = replace(
            slm,
            backend=there.backend if there else own.backend if own else slm.backend,  # type: ignore[arg-type]
            quantization=there.quantization if there else slm.quantization,  # type: ignore[arg-type]
            model=slm.model if own else name,
            window=there.window if there else slm.window,
        )

    async def complete(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, temperature: float = 0.0, stop: Sequence[str] = ()
    ) -> Completion:
        """
        Raises:
            ModelError: it does not start or did not answer.
        """
        await asyncio.to_thread(self._started)
        return await super().complete(messages, max_tokens, temperature, stop)

    async def window(self) -> int | None:
        await asyncio.to_thread(self._started)
        return await super().window()

    def _started(self) -> None:
        """Start the engine where it does not run: for the first time, or after it died.

        Raises:
            EngineError: it does not start; for a while nobody tries again.
        """
        if self._running is None:
            return
        with self._starting:
            if self._closed:
                raise EngineError(CLOSED)
            if self._engine is not None and self._engine.poll() is None:
                return
            if self._failed is not None and time.monotonic() - self._failed[0] < AGAIN_SECONDS:
                raise EngineError(self._failed[1])
            self._start(self._running)

    def _start(self, how: Running) -> None:
        if self._engine is not None:
            self._engine.stop()  # what is left of it
        self._engine = None
        engine = Engine(how, for_engines())
        try:
            engine.spawn(how.port)
            ready = self._wait(engine)
        except EngineError as error:
            engine.stop()
            self._failed = (time.monotonic(), str(error))
            raise
        self._engine, self._url, self._key = engine, ready.url, engine.key

    def _wait(self, engine: Engine) -> Ready:
        """What it says when it is ready.

        Raises:
            EngineError: it does not start, not in time, or nobody needs it any more.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not engine.wait(LOOK_SECONDS):
            if self._closed:
                raise EngineError(CLOSED)
            if time.monotonic() > deadline:
                raise EngineError(f"the engine of {engine.name} was not ready within {PATIENCE_SECONDS:.0f} s")
        assert engine.ready is not None
        return engine.ready

    @property
    def pid(self) -> int | None:
        """Of the engine that we started; None: none runs."""
        return self._engine.pid if self._engine is not None and self._engine.poll() is None else None

    def close(self) -> None:
        """End the engine that we started. It is never started again."""
        self._closed = True
        with self._starting:
            if self._engine is not None:
                self._engine.stop()


def asked_for(slm: Slm, there: AtHand | None, whichever: bool) -> AtHand | None:
    """What a server runs, if that is the model that is meant."""
    known = find(slm.model)
    is_right = there is not None and (whichever or there.model == (known.name if known else slm.model))
    return there if is_right else None


def running(slm: Slm, data_dir: Path) -> Running:
    """How the model would be run here.

    Raises:
        InvalidRequest, MissingWeights, EngineError, BadWeights: as `OwnModel`.
    """
    backend = backend_of(slm)
    home = data_dir / "models"
    try:
        weights: Weights = locate(slm.model, home, READS[backend])
    except MissingWeights as error:
        if find(slm.model) is None:
            raise InvalidRequest(
                f"slm_model_name {slm.model!r:.100}: {error}. {listing()}", "slm_model_name"
            ) from error
        raise
    return Running(
        backend,
        weights,
        home,
        threads=slm.threads,
        window=slm.window,
        quantization=slm.quantization,
        adapters=data_dir / "adapters" if lends(backend, slm.learning.enabled) else None,
    )


def backend_of(slm: Slm) -> Backend:
    """Who runs it: whom the settings name, else llama.cpp, else transformers.

    Raises:
        EngineError: it is not installed.
    """
    wanted: tuple[Backend, ...] = ("llamacpp", "transformers")
    if slm.backend == "llamacpp" or slm.backend == "transformers":
        wanted = (slm.backend,)
    for backend in wanted:
        if find_spec(LIBRARIES[backend]) is not None:
            return backend
    library, extra = LIBRARIES[wanted[0]], EXTRAS[wanted[0]]
    raise EngineError(
        f"a local model needs {library}, which is not installed: `pip install 'infold[{extra}]'` brings it"
    )


def listing() -> str:
    return f"We know {', '.join(model.name for model in MODELS)}"
