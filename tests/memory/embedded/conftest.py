"""Data directories, servers in them and processes that own these.

Every test that depends on who runs it runs as the user of this process and, if that is root, as `nobody` too.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory.postgres import (
    EmbeddedPostgres,
    start,
)
from memory.postgres_home import make_socket_directory, may_enter, open_home, server_lives
from tests.owners import (
    AS_ROOT,
    PLACE,
    PROGRAM,
    Owner,
    wait_until,
)


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
    wait_until(lambda: is_cleared(path), 60)


def is_cleared(path: Path) -> bool:
    """Remove a directory; False where somebody who was killed a moment ago has still written into it."""
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


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
    wait_until(lambda: not any(map(server_lives, used)), 60)
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
