"""A child process that runs the embedded PostgreSQL for whoever holds the other end of its standard input.

PostgreSQL ends with the thread that started it, so it wants to be started by a main thread that lives as long as it:
that of a process of its own. A pipe ends with the process that holds it, even after a `kill -9`; then the server is
shut down.

    python -c "from memory.keeper import main; main()" <data directory> <temporary folder>

It says one line of JSON, `{"ready": true}` or `{"error": "...", "held": false}`, and then nothing more.
"""

import json
import os
import select
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from memory.errors import LLMMemoryError
from memory.postgres import DataDirectoryHeld, EmbeddedPostgres, start

LOOK_MS = 200  # how often it looks whether the server still lives


def main() -> int:
    """Exit code 0 when the pipe has ended, 3 when the directory is another's, 1 when the server does not start."""
    data_dir, tempfile.tempdir = Path(sys.argv[1]), sys.argv[2]
    try:
        server = start(data_dir)
    except LLMMemoryError as error:
        held = isinstance(error, DataDirectoryHeld)
        say({"error": str(error), "held": held})
        return 3 if held else 1
    say({"ready": True})
    try:
        keep(server, data_dir)
    except LLMMemoryError:  # it died and does not start again: another process may try
        return 1
    return 0


def say(words: dict[str, object]) -> None:
    with suppress(BrokenPipeError):  # whoever asked has gone; the end of the pipe is noticed next
        os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


def keep(server: EmbeddedPostgres, data_dir: Path) -> None:
    """Start the server again when it dies; stop it when nobody holds our pipe any more."""
    pipe = select.poll()
    pipe.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    try:
        while not (pipe.poll(LOOK_MS) and os.read(sys.stdin.fileno(), 1) == b""):
            if server.poll() is not None:
                server = start(data_dir)
    finally:
        server.stop()
