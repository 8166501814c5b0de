"""What all tests share: a PostgreSQL for each process that runs them, one migrated template in it, and a copy of that
for each test."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import openai
import pytest
from hypothesis import settings

from memory.postgres import EmbeddedPostgres, start
from memory.store.migrate import migrate
from memory.store.pool import Pool
from tests.proxied import PATIENT, Provider, Proxy, proxying
from tests.scripted import ScriptedUpstream

PLACE = tempfile.gettempdir() if shutil.disk_usage("/dev/shm").free < 2**30 else "/dev/shm"  # a disk is slow to copy on

NewDatabase = Callable[[], "contextlib.AbstractContextManager[str]"]

# Hypothesis draws the same cases in each run, and no clock judges them: what fails here fails for everybody.
# `pytest --hypothesis-profile=new` draws others.
settings.load_profile("ci")
settings.register_profile("new", settings.get_profile("ci"), derandomize=False)


MOST_PROCESSES = 4  # that run tests: each has a PostgreSQL of its own


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n logical`, the default. A file or two are sooner done without; real clients are driven one by one."""
    asked = [Path(str(arg).partition("::")[0]) for arg in config.args]
    is_little = all(path.is_file() for path in asked) and len(asked) <= 2
    is_clients = config.option.markexpr == "clients"
    return 0 if is_little or is_clients else min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a long test begin first, then what is slow by its nature, so that none runs alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: (item.path not in long, "slm" not in item.path.parts))


def named(dsn: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run something to its end, also where a loop runs already."""
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, work).result()


def run_sql(dsn: str, *commands: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for command in commands:
                await connection.execute(command)
        finally:
            await connection.close()

    finish(run())


@contextlib.contextmanager
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that a test may freeze and kill; end it by `stop`, whoever runs by then."""
    with tempfile.TemporaryDirectory(dir=PLACE, prefix="infold-test-") as folder:
        os.chmod(folder, 0o711)
        server = start(Path(folder) / "data", shared_buffers_mb=16)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres) -> Iterator[NewDatabase]:
    """Makes databases that are migrated and empty: `with new_database() as dsn`."""
    server, template = postgres.address.dsn, named(postgres.address.dsn, "template_infold")
    run_sql(server, "create database template_infold")
    finish(migrate(template))

    @contextlib.contextmanager
    def make() -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex}"
        run_sql(server, f"create database {name} template template_infold strategy file_copy")
        try:
            yield named(server, name)
        finally:
            run_sql(server, f"drop database {name} with (force)")

    return make


@pytest.fixture
def dsn(new_database: NewDatabase) -> Iterator[str]:
    """A database of the test's own, as its owner."""
    with new_database() as made:
        yield made


@contextlib.asynccontextmanager
async def open_pool(dsn: str, size: int = 8, wait_seconds: float = PATIENT.database_seconds) -> AsyncIterator[Pool]:
    made = Pool(dsn, size, wait_seconds)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
        await asyncio.sleep(0.01)  # aborted connections are gone a moment later


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    """The way to it that the product takes: as `infold_app`."""
    async with open_pool(dsn) as made:
        yield made


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that sees every row: a superuser's."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
def provider() -> Provider:
    """Answers chats as strictly as a real provider, with a window of 8,192 tokens."""
    return Provider()


@pytest.fixture(scope="module")
def house(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Provider]]:
    """A proxy and its provider that all tests of a file share."""
    provider = Provider()
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("house")) as proxy,
    ):
        yield proxy, provider


@pytest.fixture
def upstream(provider: Provider) -> Iterator[ScriptedUpstream]:
    with provider.serving() as serving:
        yield serving


@pytest.fixture
def proxy(upstream: ScriptedUpstream, dsn: str, tmp_path: Path) -> Iterator[Proxy]:
    """Our application before the provider."""
    with proxying(upstream.url, dsn, tmp_path) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    """The OpenAI SDK, pointed at the proxy."""
    with proxy.client() as sdk:
        yield sdk
