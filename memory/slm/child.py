"""The child's side of an engine: told its settings in a line, says in a line where it listens, ends with its parent.

Both lines are JSON; `engine.py` has the parent's side. What loads a model may hold Python's lock for minutes, so it is
the kernel that ends the child: it signals when nobody holds the other end of standard input any more, which is so even
after a `kill -9` of the parent.
"""

import fcntl
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

NICENESS = 10
SAVING_SECONDS = 60


class Refused(Exception):
    """The settings cannot be met; the message says why."""


def told() -> dict[str, Any]:
    """The settings that the parent sends; from then on this process ends when it does."""
    line = sys.stdin.buffer.readline()
    descriptor = sys.stdin.fileno()
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO ends us
    if not line or select.select([descriptor], [], [], 0)[0]:
        os._exit(0)  # it has ended already
    os.nice(max(0, NICENESS - os.nice(0)))  # also for a child of a child
    settings: dict[str, Any] = json.loads(line)
    return settings


def save_first() -> threading.Event:
    """From now on the parent's end sets the event, and there is a minute to save before this process ends."""
    stopping = threading.Event()

    def told_to(number: int, frame: object) -> None:
        stopping.set()
        signal.alarm(SAVING_SECONDS)  # SIGALRM ends us

    signal.signal(signal.SIGIO, told_to)
    if select.select([sys.stdin.fileno()], [], [], 0)[0]:
        stopping.set()
    return stopping


def window(told: Mapping[str, Any], own: int | None) -> int:
    """The tokens to serve.

    Args:
        own: what the model was made for, as its files say.

    Raises:
        Refused: more was asked for, or nobody knows.
    """
    wanted: int | None = told["window"]
    if wanted is None and own is None:
        raise Refused(f"{told['path']} does not say how large the window is; set `slm.window`")
    if wanted is not None and own is not None and wanted > own:
        raise Refused(
            f"{told['name']} has a window of {own:,} tokens; set `slm.window` to that or less, not {wanted:,}"
        )
    return wanted or own or 0


def bound(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: until the model is there whoever comes is refused at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say(**words: object) -> None:
    with suppress(BrokenPipeError):  # whoever asked has gone
        os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


def fail(message: str) -> NoReturn:
    """Say why there is no engine, and end."""
    say(error=message)
    os._exit(1)


def mute() -> None:
    """From now on nothing is printed: what libraries print may hold what people say."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def last() -> NoReturn:
    """Stay until a signal ends us, with whatever still runs."""
    while True:
        signal.pause()
