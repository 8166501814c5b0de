"""The servers of a run: the scripted provider and `infold serve`, on free ports.

Each run has a data directory of its own that is thrown away, so nothing of the user's is touched.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from common import HERE, console
from processes import inodes, kill, lines, program, sockets, tree, words

READY_SECONDS = 60.0
PORTS = (20_000, 32_000)  # below the ports that outgoing connections take


def free_port() -> int:
    rng = random.SystemRandom()
    while True:
        port = rng.randrange(*PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass(slots=True)
class Server:
    """A process that serves HTTP, and how to start it again."""

    name: str
    command: list[str]
    port: int
    log: Path
    ready_path: str
    environment: dict[str, str] = field(default_factory=dict)
    core: int | None = None  # the CPU core it and its children run on; None: any
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start and wait until it is ready; seconds from start to ready."""
        began = time.perf_counter()
        with self.log.open("ab") as log:
            command = self.command if self.core is None else ["taskset", "-c", str(self.core), *self.command]
            self.process = subprocess.Popen(
                command, cwd=HERE.parent, env=os.environ | self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.wait_ready()
        return time.perf_counter() - began

    def wait_ready(self, seconds: float = READY_SECONDS) -> float:
        """Seconds until it answers 200 and does not call itself degraded.

        Raises:
            SystemExit: it ended or is not ready in time; the end of its log is shown.
        """
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            if self.process is not None and self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with code {self.process.returncode}\n{self.tail()}")
            try:
                answer = httpx.get(self.url + self.ready_path, timeout=2, trust_env=False)
                if answer.status_code == 200 and b"degraded" not in answer.content:
                    return time.perf_counter() - began
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        raise SystemExit(f"{self.name} is not ready after {seconds:.0f} s\n{self.tail()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever is left of it after ten seconds."""
        if self.process is None:
            return
        family = tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in family:
                kill(pid)
            self.process.wait(10)

    def tail(self) -> str:
        return "\n".join(lines(self.log)[-25:])


@dataclass(frozen=True, slots=True)
class Family:
    """The processes of `infold serve` by what they do. Empty: not there."""

    parent: tuple[int, ...]
    web: tuple[int, ...]
    worker: tuple[int, ...]
    postgres: tuple[int, ...]  # the postmaster first


def family(server: Server) -> Family:
    """Tell the processes apart: the web worker is the youngest that holds the listening socket, PostgreSQL goes by its
    program, and of the Python processes left the job worker is the one with work to do."""
    assert server.process is not None
    pids = tree(server.process.pid)
    postgres = [pid for pid in pids if "postgres" in os.path.basename(program(pid))]
    rest = [pid for pid in pids[1:] if pid not in postgres and "resource_tracker" not in words(pid)]
    listening = sockets(server.port)
    web = [pid for pid in rest if listening & inodes(pid)]
    if len(web) > 1:
        web = [pid for pid in web if "worker" not in words(pid).split()] or web
    others = [pid for pid in rest if pid not in web]
    worker = [pid for pid in others if "worker" in words(pid)] or others
    return Family((pids[0],), tuple(web) or (pids[0],), tuple(worker[:1]), tuple(postgres))


def provider_server(workspace: Path, windows: Sequence[int] = (), core: int | None = None) -> Server:
    port = free_port()
    command = [sys.executable, str(HERE / "provider.py"), "--port", str(port), "--windows", ",".join(map(str, windows))]
    return Server("provider", command, port, workspace / "provider.log", "/__asked", core=core)


def bare_server(workspace: Path, upstream: str, core: int | None = None) -> Server:
    """The least that a proxy in Python can be, as a measure of the machine."""
    port = free_port()
    command = [sys.executable, str(HERE / "bare.py"), "--port", str(port), "--upstream", upstream]
    return Server("bare", command, port, workspace / "bare.log", "/__asked", core=core)


def infold_server(
    workspace: Path, upstream: str, serve: str = "", core: int | None = None, settings: Mapping[str, str] | None = None
) -> Server:
    """`infold serve` with a data directory under `workspace`; `serve` replaces the command.

    `settings`: more of the environment.
    """
    script = Path(sys.executable).parent / "infold"
    found = (
        [str(script)]
        if script.exists()
        else [path]
        if (path := shutil.which("infold"))
        else [sys.executable, "-m", "proxy.cli"]
    )
    command = serve.split() if serve else [*found, "serve"]
    port, folder = free_port(), workspace / "data"
    command += ["--host", "127.0.0.1", "--port", str(port), "--upstream", f"{upstream}/v1", "--data-dir", str(folder)]
    environment = {"INFOLD_UPSTREAM": f"{upstream}/v1", "INFOLD_DATA_DIR": str(folder), **(settings or {})}
    return Server("infold", command, port, workspace / "infold.log", "/readyz", environment, core)


def leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def workspace(keep: bool = False) -> Iterator[Path]:
    """A folder for this run's data and logs."""
    signal.signal(signal.SIGTERM, leave)  # so that whoever stops a benchmark stops its servers, too
    folder = Path(tempfile.mkdtemp(prefix="infold-bench-"))
    folder.chmod(0o755)  # the embedded PostgreSQL may run as another user
    try:
        yield folder
    finally:
        if keep:
            console.print(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def servers(
    given: argparse.Namespace, windows: Sequence[int] = (), pin: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, Server | None]]:
    """The provider and, unless `--direct`, the proxy before it, ready.

    Args:
        pin: the proxy alone on one core.
        settings: of the proxy, as variables of its environment.
    """
    cores = sorted(os.sched_getaffinity(0))
    pin = pin and len(cores) > 1
    with workspace(given.keep) as folder:
        provider = provider_server(folder, windows, cores[1] if pin else None)
        infold = infold_server(folder, provider.url, given.serve, cores[0] if pin else None, settings)
        try:
            provider.start()
            if not given.direct:
                infold.start()
            yield provider, None if given.direct else infold
        finally:
            infold.stop()
            provider.stop()
