"""The bench on which clients are driven, and the book of what came of it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest

from tests.clients.installing import Client, command
from tests.clients.recorder import Recorder
from tests.clients.results import Book
from tests.clients.running import Bench, Driver, Provider
from tests.conftest import NewDatabase
from tests.proxied import proxying
from tests.scripted import ScriptedUpstream

DriverOf = Callable[[Client, str], Driver]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--environments", help="folder of the clients' environments (default: the user's cache)")
    parser.addoption(
        "--recall-tool", default="off", choices=["off", "auto"], help="the setting; the table is told of `off` alone"
    )


@pytest.fixture(scope="session")
def recall_tool(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--recall-tool", "off"))


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Path:
    given = request.config.getoption("--environments", None) or os.environ.get("INFOLD_CLIENTS")
    return Path(given) if given else Path(platformdirs.user_cache_dir("infold")) / "clients"


@pytest.fixture(scope="session")
def bench(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory, recall_tool: str) -> Iterator[Bench]:
    """client -> recorder -> Infold -> recorder -> provider; and client -> recorder -> provider."""
    provider = Provider()
    with (
        new_database() as dsn,
        ScriptedUpstream(provider) as upstream,
        Recorder(upstream.url) as around,
        Recorder(upstream.url) as back,
        proxying(back.url, dsn, tmp_path_factory.mktemp("clients"), recall_tool=recall_tool) as proxy,
        Recorder(proxy.url) as front,
    ):
        yield Bench(provider, around, front, back)


@pytest.fixture(scope="session")
def driver_of(environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverOf]:
    """Starts each client's driver once."""
    logs = tmp_path_factory.mktemp("drivers")
    with contextlib.ExitStack() as running:
        drivers: dict[tuple[str, str], Driver] = {}

        def find(client: Client, dialect: str) -> Driver:
            key = (client.name, dialect)
            if key not in drivers:
                started = command(client, dialect, environments)
                drivers[key] = running.enter_context(Driver(started, logs / f"{client.name}-{dialect}.log"))
            return drivers[key]

        yield find


@pytest.fixture(scope="session")
def book(recall_tool: str) -> Iterator[Book]:
    """What came of each client and scenario; written at the end, so that docs/compatibility.md can tell it."""
    book = Book.load()
    yield book
    if recall_tool == "off":
        book.save()
