"""The embedded PostgreSQL comes up with what we need in it, and lets nobody else in."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from memory.errors import InvalidRequest, StoreError
from memory.postgres import (
    EmbeddedPostgres,
    find_programs,
    reachable_programs,
    start,
)
from memory.postgres_home import SOCKET_PATH_BYTES, make_socket_directory, may_enter, open_home
from tests.owners import (
    AS_ROOT,
    NOBODY,
    Owner,
    as_every_user,
    ask,
    free_port,
    mode,
    only_root,
    socket_directory,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the embedded PostgreSQL runs on Linux only")

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
    port = free_port()
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


def test_a_volume_that_was_opened_to_a_group_starts_and_is_closed_again(data_dir: Path) -> None:
    """What Kubernetes does at each mount of a volume with an `fsGroup`; PostgreSQL refused it."""
    start(data_dir, shared_buffers_mb=16).stop()
    for path in (data_dir / "cluster", *(data_dir / "cluster").rglob("*")):
        path.chmod(mode(path) | (0o2770 if path.is_dir() else 0o660))
    start(data_dir, shared_buffers_mb=16).stop()
    assert mode(data_dir / "cluster") == 0o700


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
    wait_until(lambda: running.tell("poll")["code"] is not None, 60)
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
