"""The embedded PostgreSQL of a data directory, for this process: one that runs already, or one that we keep.

All who use a directory in one process share a `House`. When the server's owner ends, the first process that notices
becomes the owner; the lock in the directory decides between several. The server listens where it listened before, so
nobody has to learn a new address.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import structlog

from memory.errors import StoreError, StoreUnavailable
from memory.postgres import attach

log = structlog.get_logger()

PATIENCE_SECONDS = 30.0  # for a server that another process starts or ends at this moment
LOOK_SECONDS = 0.3
LEAVING_SECONDS = 25.0  # a clean shutdown takes milliseconds, the keeper's own patience 20 s

# The child finds what we found, from wherever we were started.
KEEPER = "import sys; sys.path[:] = {path!r}; from memory.keeper import main; sys.exit(main())"


class House:
    """One data directory in one process; `enter` gives the one to use, and each who entered leaves once."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._temporary = tempfile.gettempdir()  # where the server's socket lies: as before, when we take over
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen[bytes] | None = None
        self.guests = 0
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def serve(self) -> str:
        """The DSN of the running server, which is started when there is none. Blocks.

        Raises:
            StoreError: it cannot run here, or another process holds the directory and its server does not come;
                the message says what to change.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._lock:
            while True:
                found = attach(self._data_dir)
                if found is not None:
                    self._temporary = str(Path(parse_qs(urlsplit(found.dsn).query)["host"][0]).parent)
                    self._begin_to_watch()
                    return found.dsn
                held_by = self._keep()
                if held_by and time.monotonic() > deadline:
                    raise StoreUnavailable(held_by)
                if held_by:
                    time.sleep(0.05 + random.random() * 0.2)

    def _keep(self) -> str:
        """Start a keeper and wait for its server; "" when it takes connections, else who holds the directory."""
        self._let_go()
        keeper = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                KEEPER.format(path=[os.path.abspath(place) for place in sys.path]),
                str(self._data_dir),
                self._temporary,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # a terminal's Ctrl-C is for the program
        )
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        keeper.stdout.close()
        self._keeper = keeper
        answer = json.loads(said or b'{"error": "the process that starts PostgreSQL has died", "held": false}')
        if "error" not in answer:
            return ""
        self._let_go()
        if not answer["held"]:
            raise StoreError(answer["error"])
        return str(answer["error"])

    def _let_go(self) -> None:
        """End our keeper, if there is one; its server is gone when this returns."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def _begin_to_watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="infold house", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """Take the server over when nobody serves the directory any more."""
        while not self._closing.wait(LOOK_SECONDS):
            try:
                if attach(self._data_dir) is None:
                    self._closing.wait(random.random() * 0.2)  # not all at once
                    self.serve()
            except StoreError as error:
                log.warning("the embedded database does not come back", reason=str(error))

    def leave(self) -> None:
        """One user less; the last one ends the server, if it is ours. Processes that are attached take it over."""
        with HOUSES_LOCK:  # held to the end: who enters next finds no server that is just leaving
            self.guests -= 1
            if self.guests:
                return
            HOUSES.pop(self._data_dir, None)
            self._closing.set()
            if self._watcher is not None:
                self._watcher.join()
            with self._lock:
                self._let_go()

    def forget(self) -> None:
        """In a fork of ours: the pipe would outlive us there."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.returncode = 0  # not a child of the fork


HOUSES: dict[Path, House] = {}
HOUSES_LOCK = threading.Lock()


def enter(data_dir: Path) -> House:
    """The house of a data directory; `leave` it in the end."""
    path = data_dir.expanduser().resolve()
    with HOUSES_LOCK:
        house = HOUSES.setdefault(path, House(path))
        house.guests += 1
        return house


def _forget_houses() -> None:
    global HOUSES_LOCK
    HOUSES_LOCK = threading.Lock()
    for house in HOUSES.values():
        house.forget()
    HOUSES.clear()


os.register_at_fork(after_in_child=_forget_houses)
