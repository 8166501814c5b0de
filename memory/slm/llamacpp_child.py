"""llama.cpp in a process behind us, with the adapters that it was started with; with others it is started anew."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory.errors import EngineError
from memory.slm import gguf_lora
from memory.slm.adapters import Adapter, BadAdapter
from memory.slm.engine import PATIENCE_SECONDS, Engine, Ready, Running
from memory.slm.header import Header
from memory.slm.weights import Weights


def running_of(told: Mapping[str, Any]) -> Running:
    """llama.cpp behind us."""
    return Running(
        "llamacpp",
        Weights(Path(told["path"]), told["kind"], None, told["name"]),
        Path(told["home"]),
        threads=told["threads"],
        window=told["window"],
        quantization=told["quantization"],
        template=told["template"],
    )


class Llama:
    """llama.cpp with the adapters that it was started with. For one thread at a time."""

    def __init__(self, running: Running, base: Header) -> None:
        self._running = running
        self._base = base
        self._engine: Engine | None = None
        self.held: tuple[str, ...] = ()  # names, in llama.cpp's order
        self.url, self.key = "", ""  # the former without /v1

    def start(self, adapters: Mapping[str, Adapter], wanted: str | None = None) -> Ready:
        """Start it anew. An adapter that has been taken away meanwhile is left out.

        Args:
            wanted: the one that may not be left out.

        Raises:
            BadAdapter: the wanted one cannot be converted; what ran goes on.
            EngineError: it does not start; nothing runs now.
        """
        with ExitStack() as stack:
            files: dict[str, Path] = {}
            for name, adapter in adapters.items():
                try:
                    files[name] = stack.enter_context(converted(adapter, self._base))
                except BadAdapter:
                    if name == wanted:
                        raise
            self.stop()
            self._engine = self._spawned(tuple(files.values()))
        ready = self._engine.ready
        assert ready is not None
        self.url, self.key, self.held = ready.url.removesuffix("/v1"), self._engine.key, tuple(files)
        return ready

    def _spawned(self, files: tuple[Path, ...]) -> Engine:
        """
        Raises:
            EngineError
        """
        engine = Engine(replace(self._running, loras=files))
        with ExitStack() as undo:
            undo.callback(engine.stop)
            engine.spawn(0)
            if not engine.wait(PATIENCE_SECONDS):
                raise EngineError(f"the engine of {engine.name} was not ready within {PATIENCE_SECONDS:.0f} s")
            undo.pop_all()
        return engine

    def stop(self) -> None:
        engine, self._engine, self.held = self._engine, None, ()
        if engine is not None:
            engine.stop()

    def has_died(self) -> bool:
        """By itself."""
        engine = self._engine
        return engine is not None and engine.poll() is not None and engine is self._engine


@contextmanager
def converted(adapter: Adapter, base: Header) -> Iterator[Path]:
    """An adapter as llama.cpp reads it, in memory, under a name that our children can open.

    Raises:
        BadAdapter
    """
    with os.fdopen(os.memfd_create("lora"), "wb") as file:
        gguf_lora.write(adapter, base, file)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
