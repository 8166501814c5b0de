"""The embedded PostgreSQL keeps what it was given, belongs to one process and goes away with it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from memory.errors import StoreError, StoreUnavailable
from memory.postgres import (
    Address,
    DataDirectoryHeld,
    EmbeddedPostgres,
    attach,
    start,
)
from memory.postgres_home import LOG_BYTES
from tests.owners import (
    AS_ROOT,
    ENVIRONMENT,
    NOBODY,
    Owner,
    as_every_user,
    ask,
    gone,
    socket_directory,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the embedded PostgreSQL runs on Linux only")

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
    wait_until(lambda: gone(running.pid), 60)
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

    wait_until(lambda: gone(running.pid), 60)
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
    wait_until(lambda: (data / "cluster.new" / "PG_VERSION").exists(), 60)
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
