"""The processes of `infold serve`: this parent, the embedded PostgreSQL, web workers, one job worker, and where there
is a local model, its engine.

The parent serves no request. It starts the others, starts again what dies, and stops them in order: web workers first,
which let their streams finish, then the job worker, then the database. Where jobs run elsewhere, the job worker's place
is taken by a process that only embeds, or by none.
"""

import asyncio
import ctypes
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from memory.errors import StoreError
from memory.postgres import EmbeddedPostgres, attach, start
from memory.slm.engine import Engine
from proxy.config import Config, bare_environment, child_environment
from proxy.local import Tended, findable, settled, spawned

log = structlog.get_logger()

POLL_SECONDS = 0.1
RESTART_SECONDS = 0.5  # between a death and the next start of the same child
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
PROVIDERS_SOCKET = "providers.sock"


@asynccontextmanager
async def database(config: Config) -> AsyncIterator[str]:
    """The DSN to use: the user's own server, one that another process runs on our data directory, or a new one."""
    if config.database_url is not None:
        yield config.database_url.get_secret_value()
        return
    found = attach(config.data_dir)
    if found is not None:
        yield found.dsn
        return
    server = start(config.data_dir)
    try:
        yield server.address.dsn
    finally:
        server.stop()


@asynccontextmanager
async def job_worker(config: Config, dsn: str) -> AsyncIterator[Config]:
    """A job worker beside a web process that nobody supervises; gives the settings with the way to its embedder."""
    command = beside_web(config)
    if config.supervised or command is None:
        yield config
        return
    with private_folder() as folder:
        path = folder / "embed.sock"
        worker = Child(command, [command], child_environment(config, dsn, path))
        worker.start()
        try:
            yield config.model_copy(update={"embed_socket": path})
        finally:
            worker.stop(5)


@asynccontextmanager
async def providers(config: Config) -> AsyncIterator[Config]:
    """litellm's process beside a web process that nobody supervises, once somebody asks for it; gives the settings
    with the way to it."""
    if config.providers_socket is not None:
        yield config
        return
    with private_folder() as folder, on_demand(folder / PROVIDERS_SOCKET) as waiting:
        task = asyncio.create_task(tend(waiting))
        try:
            yield config.model_copy(update={"providers_socket": folder / PROVIDERS_SOCKET})
        finally:
            task.cancel()
            waiting.child.stop(5)


async def tend(waiting: "OnDemand") -> None:
    while True:
        waiting.tend()
        await asyncio.sleep(POLL_SECONDS)


def beside_web(config: Config) -> str | None:
    """The command that runs beside the web workers; each of them serves embeddings on the socket they ask."""
    if config.job_worker:
        return "worker"
    return "embed" if config.embedder == "builtin" else None


@dataclass(slots=True)
class Child:
    """A process of ours that is started again when it dies."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    fds: Sequence[int] = ()
    process: "subprocess.Popen[bytes] | None" = None
    died: float = field(default=0.0)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "proxy.cli", *self.arguments],
            env=self.environment,
            pass_fds=self.fds,
            preexec_fn=dies_with_parent(),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which stops us in order
        )

    def revive(self) -> None:
        """Start again after a death, not faster than RESTART_SECONDS."""
        assert self.process is not None
        if self.process.poll() is None:
            return
        if not self.died:
            self.died = time.monotonic()
            log.warning("child died", child=self.name, code=self.process.returncode)
        if time.monotonic() - self.died >= RESTART_SECONDS:
            self.died = 0.0
            self.start()

    def stop(self, wait_seconds: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class OnDemand:
    """A child that starts when somebody connects to its socket, and again after a death when somebody does.

    We hold the socket and never read from it, so whoever connects waits until the child does.
    """

    child: Child
    listener: socket.socket

    def tend(self) -> None:
        process = self.child.process
        if process is not None and process.poll() is None:
            return
        if select.select([self.listener], [], [], 0)[0]:
            log.info("starting", child=self.child.name)
            self.child.start() if process is None else self.child.revive()


@contextmanager
def on_demand(path: Path) -> Iterator[OnDemand]:
    """litellm's process, not started yet: it takes seconds and 200 MB, and few need it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        listener.set_inheritable(True)
        number = listener.fileno()
        yield OnDemand(Child("providers", ["providers", "--fd", str(number)], bare_environment(), [number]), listener)


def dies_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork

    def bind() -> None:
        prctl(DIES_WITH_PARENT, int(signal.SIGTERM), 0, 0, 0)

    return bind


class Household:
    """The parent of `infold serve`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopping = False
        self._hurry = False

    def run(self, ready: Callable[[str, Engine | None], None]) -> None:
        """Start everything, watch over it, stop it on SIGINT or SIGTERM. A second signal cuts streams.

        Raises:
            LLMMemoryError: the embedded database did not start, somebody else holds the data directory, or the local
                model that chats are to go to does not run.
            OSError: the port is taken.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        with ExitStack() as stack:
            listener = stack.enter_context(listening(self._config.host, self._config.port))
            engine = self._engine(stack)
            server = self._database(stack)
            self._config = settled(self._config, engine, lambda: self._stopping)
            stack.enter_context(findable(self._config, engine))
            dsn = server.address.dsn if server else None
            sockets = stack.enter_context(private_folder())
            waiting = stack.enter_context(on_demand(sockets / PROVIDERS_SOCKET))
            stack.callback(waiting.child.stop, 5)  # the web workers, whose streams come from it, end before
            web, beside = self._children(dsn, listener, sockets)
            if self._stopping:
                return
            for child in (*web, *beside):
                child.start()
            ready(address(listener), engine)
            tended = [Tended(engine)] if engine is not None and engine.ready is not None else []
            while not self._stopping:
                time.sleep(POLL_SECONDS)
                server = self._revive_database(server)
                for child in (*web, *beside):
                    child.revive()
                waiting.tend()
                for one in tended:
                    one.tend()
            log.info("stopping", note="running streams finish first; another Ctrl-C cuts them")
            self._end(web, beside, listener, server)

    def _engine(self, stack: ExitStack) -> Engine | None:
        """The local model's, begun to start: it loads while the database starts."""
        engine = spawned(self._config)
        if engine is not None:
            stack.callback(engine.stop)  # after the web workers, whose streams come from it
        return engine

    def _database(self, stack: ExitStack) -> EmbeddedPostgres | None:
        if self._config.database_url is not None:
            return None
        server = start(self._config.data_dir)
        stack.callback(lambda: server.stop())
        return server

    def _children(
        self, dsn: str | None, listener: socket.socket, sockets: Path
    ) -> tuple[Sequence[Child], Sequence[Child]]:
        """The web workers, and what runs beside them."""
        environment = child_environment(self._config, dsn, sockets / "embed.sock", sockets / PROVIDERS_SOCKET)
        web = [
            Child(f"web {n + 1}", ["web", "--fd", str(listener.fileno())], environment, [listener.fileno()])
            for n in range(self._config.workers)
        ]
        command = beside_web(self._config)
        return web, [Child(command, [command], environment)] if command else []

    def _revive_database(self, server: EmbeddedPostgres | None) -> EmbeddedPostgres | None:
        if server is None or server.poll() is None:
            return server
        log.warning("database died", code=server.poll())
        server.stop()
        try:
            return start(self._config.data_dir)
        except StoreError as error:
            log.error("database does not start", reason=str(error))
            time.sleep(RESTART_SECONDS)
            return server

    def _stop(self, number: int, frame: object) -> None:
        self._hurry = self._stopping
        self._stopping = True

    def _end(
        self,
        web: Sequence[Child],
        beside: Sequence[Child],
        listener: socket.socket,
        server: EmbeddedPostgres | None,
    ) -> None:
        """Let streams finish, then end the job worker and the database."""
        for child in web:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        listener.close()  # with the children's own, so that who comes now is refused and does not wait in vain
        deadline = time.monotonic() + self._config.drain_seconds
        while any(child.process and child.process.poll() is None for child in web):
            if self._hurry or time.monotonic() > deadline:
                for child in web:
                    child.stop(0.5)
            time.sleep(POLL_SECONDS)
        for child in beside:
            child.stop(5)
        if server is not None:
            server.stop()


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket that children inherit: no request is refused while a web worker starts again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listener.listen(2048)
        listener.set_inheritable(True)
        yield listener
    finally:
        listener.close()


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A short folder of our own for unix sockets: a path of one has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="infold-", dir=short_temporary()) as folder:
        yield Path(folder)


def short_temporary() -> str:
    temporary = tempfile.gettempdir()
    return temporary if len(temporary) < 60 else "/tmp"
