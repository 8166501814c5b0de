"""What the database could not take yet, on disk: append now, drain when it is back.

A record is bytes; what they mean is the writer's business. An append returns once the record would survive a power
cut. Several processes may append to one spool; one at a time drains it, in the order of the appends.

    <name>             the file that grows
    <name>.000001 ...  full turns of it, sealed: waiting to be drained, oldest first
    <name>.torn-1 ...  bytes that are no whole record, set aside for a person
    <name>.refused-1   records that the writer will never take, set aside for a person
    <name>.lock        held while a file grows or is sealed
    <name>.drain       held while a drain runs

A file is a head and frames. Every frame begins with a mark of 8 random bytes drawn for its file, so that reading can
go on behind a damaged frame, and no text that a user sends can pass for a frame. Drained frames are marked in place.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from memory.errors import InvalidRequest, SpoolError, StoreError

log = structlog.get_logger()

MAGIC = b"spool-1\n"
HEAD = struct.Struct("<8s8sI")  # magic, mark, CRC-32 of both
FRAME = struct.Struct("<8s4sII")  # mark, state, bytes in the record, CRC-32 of that number and the record
PENDING, DRAINED = b"wait", b"done"  # all but a whole "done" is pending: rather twice than never
STATE_AT = 8  # where in a frame its state is
SEARCH_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 30
DISK_SECONDS = 0.25  # whoever has a request to answer waits no longer than this for the disk


class Spool:
    """A durable queue of records in one folder."""

    def __init__(
        self, path: Path, *, timeout_seconds: float = DISK_SECONDS, fsync: Callable[[int], None] = os.fsync
    ) -> None:
        """`path` names the file that grows; its folder is made at the first append. `fsync` is for tests."""
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._file = _Growing(path, fsync)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._guard = Lock()  # of the two below
        self._waiting: list[tuple[bytes, Future[None]]] = []
        self._writing = False

    def append(self, record: bytes) -> None:
        """Keep a record: it is on disk when this returns.

        Raises:
            SpoolError: it is not known to be on disk. (It may be there all the same, and be replayed.)
        """
        self._enter(record).result()

    async def append_async(self, record: bytes) -> None:
        """`append`, without stalling the event loop, and for `timeout_seconds` at most."""
        done = self._enter(record)
        try:
            await asyncio.wait_for(asyncio.wrap_future(done), self._timeout_seconds)
        except TimeoutError as error:
            raise SpoolError(f"the disk did not take the record within {self._timeout_seconds:g} s") from error
        finally:
            self._forget(done)

    async def drain(self, write: Callable[[bytes], Awaitable[None]]) -> int:
        """Hand the records to `write`, oldest first, and remove what it took; returns how many those were.

        Stops at the first record that `write` refuses with a StoreError, and keeps it and all behind it. A record
        refused with InvalidRequest would be refused for ever: it is set aside and the drain goes on. Any other error
        of `write` stops the drain and is the caller's to see. After a crash a record can come a second time, so
        `write` must be idempotent. If another drain runs, here or in another process, returns 0 at once.

        Raises:
            SpoolError: the disk failed.
        """
        taken = 0
        with _drain_lock(self._path) as alone:
            for path in await asyncio.to_thread(self._sealed_now) if alone else []:
                count, emptied = await _drain_file(path, self._path, write)
                taken += count
                if not emptied:
                    break
        return taken

    def depth(self) -> int:
        """How many records wait; reads the head of each, some 3 ms for 1,000."""
        with _translated("be read"):
            while True:
                sealed = _sealed(self._path)
                depth = sum(_pending(path) for path in [*sealed, self._path])
                if _sealed(self._path) == sealed:  # else one was sealed meanwhile, and so seen twice or not at all
                    return depth

    def close(self) -> None:
        """Finish the appends that have begun and close the file."""
        self._writer.shutdown()
        self._file.close()

    # Appends of many tasks share an fsync: while the one writing thread waits for the disk, the next ones gather.

    def _enter(self, record: bytes) -> Future[None]:
        if len(record) > MAX_RECORD_BYTES:
            raise SpoolError(f"a record has at most 1 GiB, got {len(record):,} bytes")
        done: Future[None] = Future()
        with self._guard:
            self._waiting.append((record, done))
            if not self._writing:
                self._writing = True
                self._writer.submit(self._write_waiting)
        return done

    def _forget(self, done: Future[None]) -> None:
        """Nobody waits any more. Behind a disk that hangs, records nobody waits for would fill the memory."""
        with self._guard:
            self._waiting = [entry for entry in self._waiting if entry[1] is not done]

    def _write_waiting(self) -> None:
        while True:
            with self._guard:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._writing = False
                    return
            batch = [(record, done) for record, done in batch if done.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                with _translated("take a record"):
                    self._file.append([record for record, _ in batch])
            except SpoolError as error:
                for _, done in batch:
                    done.set_exception(error)
            else:
                for _, done in batch:
                    done.set_result(None)

    def _sealed_now(self) -> list[Path]:
        with _translated("be sealed"):
            self._file.seal()
            return _sealed(self._path)


class _Growing:
    """The file that grows. Blocking; a lock on disk keeps threads and processes apart."""

    def __init__(self, path: Path, fsync: Callable[[int], None]) -> None:
        self._path = path
        self._fsync = fsync
        self._fd: int | None = None
        self._mark = b""

    def append(self, records: Sequence[bytes]) -> None:
        """All of them on disk, or OSError and none of them promised."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _lock(self._path.with_name(self._path.name + ".lock")):
            fd = self._open()
            size = os.fstat(fd).st_size
            try:
                _write_all(fd, b"".join(_frame(self._mark, record) for record in records))
            except OSError:
                self._cut_back(fd, size)
                raise
            self._sync(fd)

    def seal(self) -> None:
        """Close the file and give it a number, so that a drain can have it. Nothing, where there is no file."""
        with contextlib.suppress(FileNotFoundError), _lock(self._path.with_name(self._path.name + ".lock")):
            self._seal()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        """The file behind the name, which another process may have sealed since the last append."""
        with contextlib.suppress(FileNotFoundError):
            if self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                return self._fd
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            mark = _read_mark(self._fd)
            if mark is not None:
                self._mark = mark
                return self._fd
            self._seal()  # its head is damaged: the drain will see what is left of it
        return self._create()

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        self._fd = os.open(self._path, flags, 0o600)
        self._mark = secrets.token_bytes(8)
        head = MAGIC + self._mark
        try:
            _write_all(self._fd, head + struct.pack("<I", zlib.crc32(head)))
        except OSError:
            self.close()
            self._path.unlink()
            raise
        self._sync(self._fd)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._sync(folder)
        finally:
            os.close(folder)
        return self._fd

    def _sync(self, fd: int) -> None:
        try:
            self._fsync(fd)
        except OSError:
            # The kernel may now call pages clean that never reached the disk, so a second fsync of this file would
            # promise too much. What it holds can still be drained; the next append begins a new one.
            self._seal()
            raise

    def _cut_back(self, fd: int, size: int) -> None:
        """Take half a frame away again. Where even that fails the file is left to the drain, which reads past it."""
        try:
            os.ftruncate(fd, size)
        except OSError:
            self._seal()

    def _seal(self) -> None:
        self.close()
        numbers = [int(path.name[-6:]) for path in _sealed(self._path)]
        self._path.rename(self._path.with_name(f"{self._path.name}.{max(numbers, default=0) + 1:06d}"))


@dataclass(frozen=True, slots=True)
class _Frame:
    at: int  # of its first byte in the file
    stop: int  # behind its last one
    pending: bool
    length: int


def _frame(mark: bytes, record: bytes) -> bytes:
    return FRAME.pack(mark, PENDING, len(record), _crc(record)) + record


def _crc(record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(struct.pack("<I", len(record))))


def _read_mark(fd: int) -> bytes | None:
    head = os.pread(fd, HEAD.size, 0)
    if len(head) < HEAD.size:
        return None
    magic, mark, crc = HEAD.unpack(head)
    return mark if magic == MAGIC and crc == zlib.crc32(head[:-4]) else None


def _frames(fd: int, check: bool) -> Iterator[_Frame | tuple[int, int]]:
    """The frames of a file in order; between them, as (start, stop), the bytes that are no whole frame.

    Without `check` a record's own bytes are not looked at.
    """
    size = os.fstat(fd).st_size
    mark, at = _read_mark(fd), HEAD.size
    if mark is None:
        mark = os.pread(fd, 8, HEAD.size)  # a sound first frame has the mark, too
        if _frame_at(fd, HEAD.size, size, mark, check=True) is None:
            yield 0, size
            return
        yield 0, HEAD.size
    while at < size:
        frame = _frame_at(fd, at, size, mark, check)
        if frame is None:
            following = _find(fd, mark, at + 1, size)
            yield at, following
            at = following
        else:
            yield frame
            at = frame.stop


def _frame_at(fd: int, at: int, size: int, mark: bytes, check: bool) -> _Frame | None:
    head = os.pread(fd, FRAME.size, at)
    if len(head) < FRAME.size:
        return None
    found, state, length, crc = FRAME.unpack(head)
    stop = at + FRAME.size + length
    if found != mark or stop > size:
        return None
    frame = _Frame(at, stop, state != DRAINED, length)
    return None if check and _crc(_record(fd, frame)) != crc else frame


def _record(fd: int, frame: _Frame) -> bytes:
    return os.pread(fd, frame.length, frame.at + FRAME.size)


def _find(fd: int, mark: bytes, start: int, size: int) -> int:
    """Where the mark comes next, or the file's end."""
    while window := os.pread(fd, SEARCH_BYTES, start):
        if (found := window.find(mark)) >= 0:
            return start + found
        start += max(len(window) - len(mark) + 1, 1)
    return size


async def _drain_file(path: Path, name: Path, write: Callable[[bytes], Awaitable[None]]) -> tuple[int, bool]:
    """Drain one sealed file; how many records were taken, and whether none are left (the file is gone then)."""
    taken = 0
    fd = await _on_disk(os.open, path, os.O_RDWR | os.O_CLOEXEC)
    try:
        frames = _frames(fd, check=True)
        damaged = b""
        while (frame := await _on_disk(next, frames, None)) is not None:
            if isinstance(frame, tuple):
                damaged += await _on_disk(os.pread, fd, frame[1] - frame[0], frame[0])
            elif frame.pending:
                record = await _on_disk(_record, fd, frame)
                try:
                    await write(record)
                    taken += 1
                except InvalidRequest as error:
                    aside = await _on_disk(_set_aside, name, "refused", record)
                    log.error("a spooled record was refused and set aside", file=aside.name, reason=str(error))
                except StoreError as error:
                    log.info("the spool waits for the database", reason=str(error), drained=taken)
                    return taken, False
                await _on_disk(os.pwrite, fd, DRAINED, frame.at + STATE_AT)
        if damaged:
            aside = await _on_disk(_set_aside, name, "torn", damaged)
            log.error("the spool held bytes that are no whole record", file=aside.name, torn_bytes=len(damaged))
    finally:
        os.close(fd)
    await _on_disk(path.unlink)
    return taken, True


async def _on_disk(step: Callable[..., Any], *arguments: object) -> Any:
    """A blocking step, in a thread: a disk can hang, and the event loop must not.

    Whoever cancels waits for the step, or its file would be closed (and the number given away) under its hands.
    """
    running = asyncio.ensure_future(asyncio.to_thread(step, *arguments))
    try:
        with _translated("be drained"):
            return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _set_aside(name: Path, kind: str, content: bytes) -> Path:
    known = [int(path.name.rpartition("-")[2]) for path in name.parent.glob(f"{name.name}.{kind}-*")]
    path = name.with_name(f"{name.name}.{kind}-{max(known, default=0) + 1}")
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        _write_all(fd, content)
        os.fsync(fd)
    return path


def _sealed(name: Path) -> list[Path]:
    """Sealed files, oldest first."""
    pattern = re.compile(re.escape(name.name) + r"\.\d{6}")
    return sorted(path for path in name.parent.glob(f"{name.name}.*") if pattern.fullmatch(path.name))


def _pending(path: Path) -> int:
    try:
        with _opened(path, os.O_RDONLY) as fd:
            return sum(isinstance(frame, _Frame) and frame.pending for frame in _frames(fd, check=False))
    except FileNotFoundError:
        return 0  # drained in this moment


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(f"the spool could not {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Alone among all processes; waits. Raises FileNotFoundError where there is no folder."""
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _drain_lock(name: Path) -> Iterator[bool]:
    """Whether this is the only drain; does not wait. False also where there is no folder yet, so nothing to drain."""
    with contextlib.ExitStack() as stack:
        alone = False
        with _translated("be drained"), contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = stack.enter_context(_opened(name.with_name(name.name + ".drain"), os.O_RDWR | os.O_CREAT))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        yield alone
