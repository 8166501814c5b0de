"""The engine that a server runs on a data directory, as other programs on the same directory find it.

The server tells it in a file that only its user can read, and takes the file away at its end. One that a killed server
left behind names a process that is gone, and counts for nothing.
"""

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from memory.errors import ModelError
from memory.slm.adapting import listed

FILE = "engine.json"  # in the data directory
MOST_BYTES = 64 * 1024
LOOK_SECONDS = 2.0  # for an engine on this machine to list its models; one that is at work does so, too


@dataclass(frozen=True, slots=True)
class AtHand:
    url: str  # ends in /v1
    model: str  # as the engine calls it
    backend: str
    window: int  # tokens
    quantization: str
    pid: int  # of the server
    key: str | None = field(default=None, repr=False)


@contextmanager
def told(data_dir: Path, engine: AtHand) -> Iterator[None]:
    """As long as the server runs.

    Raises:
        OSError: the file cannot be written.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=data_dir, prefix=f".{FILE}-", delete=False, encoding="utf-8") as file:
        json.dump(asdict(engine), file)  # such a file is its owner's alone
    os.replace(file.name, data_dir / FILE)
    try:
        yield
    finally:
        found = read(data_dir)
        if found is not None and found.pid == engine.pid:  # not of one that came after us
            with suppress(OSError):
                (data_dir / FILE).unlink()


def at_hand(data_dir: Path) -> AtHand | None:
    """The engine, if it answers; takes a moment only where a server told of one."""
    found = read(data_dir)
    return found if found is not None and lives(found.pid) and answers(found) else None


def read(data_dir: Path) -> AtHand | None:
    """What the file says; None: there is none of ours, or it is not to be trusted."""
    try:
        descriptor = os.open(data_dir / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            return None
        try:
            found = AtHand(**json.loads(file.read(MOST_BYTES)))
        except (ValueError, TypeError, RecursionError):
            return None
    words = (found.url, found.model, found.backend, found.quantization)
    numbers = (found.window, found.pid)
    is_right = all(type(word) is str for word in words) and all(type(number) is int for number in numbers)
    return found if is_right and found.pid > 0 else None


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


def answers(engine: AtHand) -> bool:
    """Whether that model is there: somebody else may listen at its address by now."""
    try:
        with httpx.Client(timeout=LOOK_SECONDS, trust_env=False) as client:
            reply = client.get(f"{engine.url}/models")
        return reply.status_code == 200 and engine.model in [id for id, _ in listed(reply.content)]
    except (httpx.HTTPError, httpx.InvalidURL, ModelError):
        return False
