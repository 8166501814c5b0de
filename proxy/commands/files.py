"""Files and standard streams of a command, read and written in pieces."""

import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO

import typer

from memory.errors import InvalidRequest

CHUNK_BYTES = 256 * 1024
STANDARD = Path("-")


async def chunks(file: Path) -> AsyncIterator[bytes]:
    """A file's bytes, those of standard input for `-`; the loop goes on meanwhile, so that Ctrl-C is heard.

    Raises:
        InvalidRequest: it cannot be read.
    """
    if file == STANDARD and sys.stdin.isatty():
        typer.echo("Standard input is read; Ctrl-D ends it.", err=True)
    with opened(file) as stream:
        while True:
            await readable(stream.fileno())
            chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def opened(file: Path) -> FileIO:
    """
    Raises:
        InvalidRequest: it cannot be read.
    """
    if file == STANDARD:
        return FileIO(sys.stdin.fileno(), closefd=False)
    try:
        return FileIO(file)
    except OSError as error:
        hint = "" if file.exists() else f"; a text itself comes by standard input: echo {shlex.quote(str(file))} | ..."
        raise InvalidRequest(f"FILE cannot be read: {error.strerror}: {file}{hint}", "FILE") from None


async def readable(descriptor: int) -> None:
    """Wait until there is something to read, or the end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # epoll's word for a plain file, which is always ready
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def size_of(file: Path) -> int | None:
    """Bytes; None where only the end tells."""
    return file.stat().st_size if file != STANDARD and file.is_file() else None


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """Standard output for `-`; else a file that its owner alone reads, in its place once it is whole."""
    if file == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif file.exists() and not file.is_file():  # a pipe, /dev/null
        with file.open("wb") as stream:
            yield stream
    else:
        if not file.parent.is_dir():
            raise InvalidRequest(f"FILE cannot be written: there is no folder {file.parent}", "FILE")
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream:
            try:
                yield stream
                stream.close()
                os.replace(stream.name, file)
            except BaseException:
                os.unlink(stream.name)
                raise
