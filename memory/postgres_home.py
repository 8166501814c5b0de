"""A data directory of the embedded PostgreSQL: whose it is, who holds it, and the small files in it.

What lies in one, readable by its owner alone:

    owner.lock      held by the process that started the server; says its pid and since when
    server.lock     held by the server and all its children, for as long as one of them lives
    password        of the role `infold`, 256 random bits
    postgres.log    what the server says, and postgres.log.1 before that
    cluster/        PostgreSQL's own directory

The two locks decide who runs, because the kernel drops them with the last process that has them; a pid in a file may be
anybody's by now. How the server is made and run is in `postgres.py`.
"""

import hashlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from memory.errors import LLMMemoryError, StoreError

if sys.platform != "win32":  # so that the import works everywhere and `postgres.start` can say what to do instead
    import fcntl
    import pwd

NAME = "infold"  # of the database and of its owner
LOG_BYTES = 8 * 2**20
LEAVING_SECONDS = 15.0  # how long a start waits for the last processes of an earlier server
SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without its closing zero


class DataDirectoryHeld(LLMMemoryError):
    """Another process already runs PostgreSQL in this data directory."""

    def __init__(self, data_dir: Path, pid: int | None = None, since: datetime | None = None) -> None:
        who = f"process {pid}" if pid else "another process"
        when = f", since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
        super().__init__(f"{data_dir} is held by {who}{when}; stop that one, or choose another data directory")
        self.pid = pid
        self.since = since


@dataclass(frozen=True, slots=True)
class Home:
    """A data directory that exists, and the user whose processes work in it."""

    path: Path  # without symbolic links
    owner: tuple[int, int]  # uid and gid of the directory; what root makes in it goes to them
    user: "pwd.struct_passwd"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster"

    @property
    def drops_to_user(self) -> bool:
        return os.geteuid() != self.user.pw_uid

    def open(self, name: str, flags: int) -> int:
        """A file of ours, 0600. A symbolic link in its place is an error: as root we would write anywhere."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.path / name, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(self.path / name, flags)
        if self.drops_to_user:
            os.fchown(descriptor, *self.owner)
        return descriptor


def open_home(data_dir: Path) -> Home:
    """The directory, made 0700 when it is not there; one that exists keeps its mode.

    Raises:
        StoreError: it cannot be made or written, it is another user's, or PostgreSQL's user has no name.
    """
    path = data_dir.expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve(strict=True)
        owner = path.stat()
    except OSError as error:
        raise StoreError(f"cannot use {data_dir} as data directory: {error.strerror}") from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise _belongs_to(path, owner.st_uid)
    home = Home(path, (owner.st_uid, owner.st_gid), _server_user(owner.st_uid))
    if home.cluster.exists() and home.cluster.stat().st_uid != home.user.pw_uid:
        raise _belongs_to(home.cluster, home.cluster.stat().st_uid)
    return home


def close_cluster(home: Home) -> None:
    """Take group and others out of the cluster: PostgreSQL refuses one that they may enter or write.

    Kubernetes lets them in: a volume with an `fsGroup` is opened to that group, file by file, when it is mounted.
    """
    mode = stat.S_IMODE(home.cluster.stat().st_mode)
    if mode & 0o027:
        home.cluster.chmod(0o700)


def _belongs_to(path: Path, uid: int) -> StoreError:
    return StoreError(f"{path} belongs to uid {uid}; run as that user, or choose another data directory")


def _server_user(owner_uid: int) -> "pwd.struct_passwd":
    """Ourselves; for root, who may not run PostgreSQL, the directory's owner or `nobody`."""
    uid = os.geteuid() or owner_uid
    try:
        return pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    except KeyError as error:
        who = f"uid {uid}" if uid else "nobody"
        line = f"infold:x:{uid}:{os.getegid() or uid}::/:/bin/false" if uid else "nobody:x:65534:65534::/:/bin/false"
        raise StoreError(
            f"PostgreSQL needs a user with a name, and {who} has no line in /etc/passwd; "
            f"add `{line}` to it, run as a user who has one, or set DATABASE_URL"
        ) from error


def may_enter(path: Path, uid: int, gid: int) -> bool:
    """Whether mode bits let a user without other groups execute this file, or enter this directory, and all above."""
    path = path.resolve()
    for step in (path, *path.parents):
        try:
            found = step.stat()
        except OSError:
            return False
        bit = stat.S_IXUSR if found.st_uid == uid else stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH
        if not found.st_mode & bit:
            return False
    return True


# Who holds it


def hold_owner_lock(home: Home, held: ExitStack) -> None:
    """Become the one who runs this directory, until `held` closes or we die.

    Raises:
        DataDirectoryHeld: another one does.
    """
    lock = home.open("owner.lock", os.O_RDWR)
    held.callback(os.close, lock)
    if not _take(lock, fcntl.LOCK_EX):
        raise _held_by(home.path, os.read(lock, 200))
    held.callback(fcntl.flock, lock, fcntl.LOCK_UN)  # closing alone is not enough: a fork of ours may have a copy
    os.ftruncate(lock, 0)
    os.write(lock, json.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat()}).encode())


def _held_by(path: Path, note: bytes) -> DataDirectoryHeld:
    try:
        who = json.loads(note)
    except ValueError:  # taken this very moment, and not yet signed
        return DataDirectoryHeld(path)
    return DataDirectoryHeld(path, who["pid"], datetime.fromisoformat(who["since"]))


@contextmanager
def server_lock(home: Home) -> Iterator[int]:
    """The lock that the server inherits, as a file descriptor; our own hold ends with the block.

    Processes of an earlier server may still be leaving, after a `kill -9` of its owner or of its postmaster: wait.
    """
    lock = home.open("server.lock", os.O_RDWR)
    try:
        deadline = time.monotonic() + LEAVING_SECONDS
        while not _take(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                found = read_postmaster(home.cluster)
                raise DataDirectoryHeld(home.path, found.pid if found else None)
            time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)


def server_lives(path: Path) -> bool:
    """Whether a process of the server in this data directory holds its lock."""
    with open(path / "server.lock", "rb") as lock:
        return not _take(lock.fileno(), fcntl.LOCK_SH)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# What the postmaster says of itself


@dataclass(frozen=True, slots=True)
class Postmaster:
    pid: int
    port: int
    sockets: str  # directory of the unix socket
    ready: bool  # takes connections

    def works_in(self, directory: Path) -> bool:
        """Whether a living process has this pid and works in this directory. A zombie works nowhere."""
        try:
            return os.path.samefile(f"/proc/{self.pid}/cwd", directory)
        except OSError:
            return False


def read_postmaster(cluster: Path) -> Postmaster | None:
    """`postmaster.pid`: pid, directory, start time, port, socket directory, address, shared memory, state."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(lines[0]), int(lines[3]), lines[4], len(lines) > 7 and lines[7].strip() == "ready")
    except (FileNotFoundError, IndexError, ValueError):  # not there, or half written
        return None


def forget_dead_postmaster(home: Home) -> None:
    """Remove the note of a server that was killed: PostgreSQL refuses to start when its pid is another's by now."""
    found = read_postmaster(home.cluster)
    if found and found.works_in(home.cluster):  # somebody started it by hand, without our lock
        raise DataDirectoryHeld(home.path, found.pid)
    (home.cluster / "postmaster.pid").unlink(missing_ok=True)


# Password, log and socket


def write_password(home: Home, password: bytes) -> None:
    """Keep it, on disk when this returns."""
    file = home.open("password", os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(file, password)
        os.fsync(file)
    finally:
        os.close(file)


def dsn(path: Path, server: Postmaster) -> str:
    """The server's socket and our password, as asyncpg reads them."""
    password = (path / "password").read_text()
    return f"postgresql://{NAME}:{password}@/{NAME}?host={quote(server.sockets)}&port={server.port}"


def open_log(home: Home) -> int:
    """A file descriptor that appends to postgres.log; a long one is put aside first."""
    log = home.path / "postgres.log"
    with suppress(FileNotFoundError):
        if log.lstat().st_size > LOG_BYTES:
            log.replace(log.with_name("postgres.log.1"))
    return home.open(log.name, os.O_WRONLY | os.O_APPEND)


def log_tail(home: Home, begin: int) -> str:
    """The last eight lines since byte `begin`, with a word of introduction."""
    log = home.path / "postgres.log"
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read(LOG_BYTES).decode(errors="replace").splitlines()[-8:]
    return f"; the last lines of {log}:\n" + "\n".join(lines)


def make_socket_directory(home: Home) -> Path:
    """`<tmp>/infold-<uid>-<hash of the data directory>`, 0700, the server's user's.

    The user's runtime directory would be short, too, but it goes away with the login session.

    Raises:
        StoreError: somebody else has put something there, or no place is short enough.
    """
    name = f"infold-{home.user.pw_uid}-{hashlib.sha256(os.fsencode(home.path)).hexdigest()[:12]}"
    path = _short_place(home, name) / name
    try:
        path.mkdir(mode=0o700)
        os.chown(path, home.user.pw_uid, home.user.pw_gid, follow_symlinks=False)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != home.user.pw_uid or found.st_mode & 0o077:
            raise StoreError(f"{path} is there and not ours (uid {found.st_uid}); remove it, or set TMPDIR") from None
    return path


def _short_place(home: Home, name: str) -> Path:
    for place in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), home.path):
        short = len(os.fsencode(place / name / ".s.PGSQL.65535")) <= SOCKET_PATH_BYTES
        open_to_us = os.access(place, os.W_OK | os.X_OK)
        open_to_it = not home.drops_to_user or may_enter(place, home.user.pw_uid, home.user.pw_gid)
        if short and open_to_us and open_to_it:
            return place
    raise StoreError(f"no place for PostgreSQL's socket: TMPDIR must be short, and open to user {home.user.pw_name}")
