"""A local model that runs in a process of its own and speaks the OpenAI API at a URL.

The process is `transformers_server.py` or `llamacpp.py`; where llama.cpp lends adapters, `llamacpp_server.py` stands
before it. What loads models is imported there and nowhere else. It gets its settings as a line of JSON on standard
input, answers with a line when it is ready, and lives as long as somebody holds the pipe.
"""

import json
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from memory.environment import variables
from memory.errors import EngineError
from memory.slm.registry import TEMPLATES
from memory.slm.weights import Kind, Weights

Backend = Literal["llamacpp", "transformers"]
Quantization = Literal["none", "8bit", "4bit"]

MODULES: Mapping[Backend, str] = {"llamacpp": "memory.slm.llamacpp", "transformers": "memory.slm.transformers_server"}
LENDING = "memory.slm.llamacpp_server"  # before llama.cpp, which takes adapters only at its start
READS: Mapping[Backend, tuple[Kind, ...]] = {"llamacpp": ("gguf",), "transformers": ("folder", "gguf")}
PATIENCE_SECONDS = 600.0  # for large models on slow disks
LEAVING_SECONDS = 5.0
MOST_LINE_BYTES = 64 * 1024

# The child finds what we found, from wherever we were started.
CHILD = "import sys; sys.path[:] = {path!r}; from {module} import main; sys.exit(main())"


@dataclass(frozen=True, slots=True)
class Running:
    """What runs, and how."""

    backend: Backend
    weights: Weights
    home: Path  # where what is made of weights is kept: `<data directory>/models`
    threads: int = 1
    window: int | None = None  # tokens; None: the model's own
    quantization: Quantization = "none"
    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    adapter: Path | None = None  # a .gguf file, for llamacpp alone
    adapters: Path | None = None  # below which adapters lie that are loaded while it runs; None: none are
    loras: tuple[Path, ...] | None = None  # llama.cpp's own, for requests that name them; then who asks needs the key
    template: str | None = None  # for files that have none inside; None: the registry's


@dataclass(frozen=True, slots=True)
class Ready:
    """What an engine says of itself when it is."""

    url: str  # ends in /v1
    window: int  # tokens
    counts: Sequence[int]  # tokens of each of `probes.PROBES`
    message_tokens: int | None  # that its chat template puts around a message, at most; None: it has none
    reply_tokens: int | None  # that it adds once to a conversation, at most


class Engine:
    """A model in a child process. Not for several threads."""

    def __init__(self, running: Running, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: of the child; None: ours."""
        self.running = running
        self._environment = variables(None) if environment is None else environment
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self.key = secrets.token_urlsafe(32)  # of who may load and use adapters there
        self.ready: Ready | None = None  # what it said first; a restart does not change it

    @property
    def name(self) -> str:
        """Of the model, as clients name it."""
        return self.running.weights.name

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def poll(self) -> int | None:
        """How it ended; None: it lives."""
        assert self._process is not None
        return self._process.poll()

    def spawn(self, port: int) -> None:
        """Start the process; `wait` tells when it is ready."""
        self.stop()  # what is left of the one before
        module = module_of(self.running)
        path = [str(Path(place).absolute()) for place in sys.path]
        self._said = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD.format(path=path, module=module)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**self._environment, **calm(self.running.threads)},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; `wait` says so
            self._process.stdin.write(json.dumps(settings(self.running, port, self.key)).encode() + b"\n")

    def wait(self, seconds: float) -> bool:
        """Whether it said within so many seconds that it is ready.

        Raises:
            EngineError: it cannot run; the message says what to do.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        deadline, pipe = time.monotonic() + seconds, select.poll()
        pipe.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._said:
            if not pipe.poll(max(0.0, deadline - time.monotonic()) * 1_000):
                return False
            said = self._process.stdout.read(MOST_LINE_BYTES)
            if not said:
                raise EngineError(f"the engine of {self.name} has died {ending(self._process.wait())}")
            self._said += said
        answer: dict[str, Any] = json.loads(self._said)
        if "error" in answer:
            self._process.wait()
            raise EngineError(answer["error"])
        if self.ready is None:
            self.ready = Ready(**{name: answer[name] for name in Ready.__slots__})
        return True

    def stop(self) -> None:
        """End it, with whatever still runs there."""
        process = self._process
        if process is None:
            return
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()
        try:
            process.wait(LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(
    running: Running, environment: Mapping[str, str] | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> Engine:
    """An engine that is ready. Blocks; whoever starts it stops it.

    Raises:
        EngineError: it cannot run, or is not ready in time; the message says what to do.
    """
    with ExitStack() as stack:
        engine = Engine(running, environment)
        engine.spawn(running.port)
        stack.callback(engine.stop)
        if not engine.wait(patience_seconds):
            raise EngineError(f"the engine of {engine.name} was not ready within {patience_seconds:.0f} s")
        stack.pop_all()
    return engine


def calm(threads: int) -> Mapping[str, str]:
    """The environment in which libraries compute with so many threads, wait without burning, and fetch nothing."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(counts, str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",  # bars of libraries, which would stand among our lines
        "TOKENIZERS_PARALLELISM": "false",
    }


def module_of(running: Running) -> str:
    return LENDING if running.backend == "llamacpp" and running.adapters is not None else MODULES[running.backend]


def settings(running: Running, port: int, key: str) -> dict[str, Any]:
    """What the child is told."""
    told = {name: value for name, value in asdict(running).items() if name != "weights"}
    weights = running.weights
    known = weights.model.template if weights.model is not None else None
    told |= {"path": weights.path, "kind": weights.kind, "name": weights.name, "port": port, "key": key}
    told["template"] = running.template or TEMPLATES.get(known or "")
    told["loras"] = running.loras and [str(path) for path in running.loras]
    return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def ending(code: int) -> str:
    """
    >>> ending(1), ending(-9)
    ('with the exit code 1', 'by SIGKILL; is there enough memory? `infold slm check` tells what a model needs')
    """
    if code >= 0:
        return f"with the exit code {code}"
    died = f"by {signal.Signals(-code).name}"
    hint = "; is there enough memory? `infold slm check` tells what a model needs"
    return died + hint if -code == signal.SIGKILL else died
