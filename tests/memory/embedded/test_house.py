"""Programs on one data directory share its server; it goes with the last of them and changes hands in between."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from memory.errors import StoreError
from memory.house import House, enter
from memory.postgres import attach
from memory.postgres_home import server_lives
from tests.owners import ENVIRONMENT, Owner, ask, gone, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the embedded PostgreSQL runs on Linux only")

GUEST = """
import sys
from pathlib import Path
from memory.house import enter

house = enter(Path(sys.argv[1]))
print(house.serve(), flush=True)
for command in sys.stdin:
    match command.strip():
        case "leave":
            house.leave()
        case "fork":
            import os
            print(os.fork() or os.read(0, 1) and 0, flush=True)
    print("done", flush=True)
"""


class Guest:
    """Another process that uses the directory."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", GUEST, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT | environment,
            cwd="/",
            text=True,
        )
        assert self.process.stdout
        self.dsn = self.process.stdout.readline().strip()

    def tell(self, command: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def guest(data_dir: Path) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def begin(**environment: str) -> Guest:
        guests.append(Guest(data_dir, **environment))
        return guests[-1]

    yield begin
    for one in guests:
        one.kill()
    wait_until(lambda: not server_lives(data_dir), 60)


@pytest.fixture
def house(data_dir: Path) -> Iterator[House]:
    entered = enter(data_dir)
    yield entered
    entered.leave()


def serves(data_dir: Path) -> bool:
    return attach(data_dir) is not None


def answers(dsn: str) -> bool:
    """Whether somebody serves there at this moment."""
    try:
        return bool(asyncio.run(ask(dsn, "select 1")))
    except (OSError, asyncpg.PostgresError):
        return False


def test_the_server_starts_with_the_first_and_ends_with_the_last(data_dir):
    first, second = enter(data_dir), enter(data_dir / ".." / data_dir.name)
    assert first is second
    assert first.serve() == second.serve()
    first.leave()
    assert answers(second.serve())
    second.leave()
    assert not server_lives(data_dir)


def test_one_can_come_back(data_dir):
    for _ in range(2):
        house = enter(data_dir)
        assert answers(house.serve())
        house.leave()


def test_kill_9_of_the_holder_ends_the_server(data_dir, guest):
    holder = guest()
    assert serves(data_dir)
    holder.kill()
    wait_until(lambda: not server_lives(data_dir), 60)


def test_a_second_process_attaches_and_its_end_changes_nothing(data_dir, guest, house):
    dsn = house.serve()
    pid = attach(data_dir).pid
    other = guest()
    assert other.dsn == dsn
    other.kill()
    time.sleep(0.5)
    assert attach(data_dir).pid == pid


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "leave"])
def test_who_is_attached_takes_over_when_the_owner_ends(data_dir, guest, house, end):
    owner = guest()
    dsn = house.serve()
    pid = attach(data_dir).pid
    asyncio.run(ask(dsn, "create table kept as select 42 as n"))
    if end == "leave":
        owner.tell(end)
    else:
        owner.process.send_signal(end)
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)
    assert house.serve() == dsn
    assert asyncio.run(ask(dsn, "select n from kept")) == 42


def test_of_several_one_takes_over_and_all_go_on(data_dir, guest, house):
    owner, others = guest(), [guest() for _ in range(2)]
    house.serve()
    pid = attach(data_dir).pid
    owner.kill()
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)
    assert {house.serve(), *(other.dsn for other in others)} == {house.serve()}
    assert answers(house.serve())


def test_the_server_listens_where_it_did_whatever_the_new_owners_temporary_folder_is(data_dir, guest, room):
    place = room / "t"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    owner = guest()
    other = guest(TMPDIR=str(place))
    pid = attach(data_dir).pid
    owner.kill()
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)
    assert attach(data_dir).dsn == owner.dsn == other.dsn


def test_a_process_that_owns_it_otherwise_is_taken_over_too(data_dir, owner, house):
    first: Owner = owner(data_dir)
    assert house.serve() == first.dsn
    first.process.kill()
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != first.pid, 60)
    assert answers(house.serve())


def test_a_killed_server_is_started_again(data_dir, house):
    house.serve()
    pid = attach(data_dir).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)
    assert gone(pid)


def test_a_killed_keeper_is_replaced(data_dir, house):
    house.serve()
    pid = attach(data_dir).pid
    house._keeper.kill()
    wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)


def test_a_fork_of_the_program_does_not_hold_the_server(data_dir, guest):
    holder = guest()
    fork = int(holder.tell("fork"))
    holder.process.send_signal(signal.SIGKILL)
    wait_until(lambda: not server_lives(data_dir), 60)
    os.kill(fork, signal.SIGKILL)


def test_a_directory_that_cannot_be_used_is_told(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    house = enter(file)
    try:
        with pytest.raises(StoreError, match="cannot use"):
            house.serve()
    finally:
        house.leave()
