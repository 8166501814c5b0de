"""The way to PostgreSQL: one pool, a bound on every wait, and a gate that shuts while the database is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog
from pgvector.asyncpg import register_vector

from memory.errors import StoreBusy, StoreError, StoreRefused, StoreUnavailable

log = structlog.get_logger()

WAIT_SECONDS = 0.25  # a request waits no longer than this for the database
LOCK_SHARE = 0.4  # of it for a lock: two groups of turns that wait for each other give up before their waits end
PROBE_SECONDS = 0.5  # how often the gate tries again
CONNECT_SECONDS = 5.0

SETTINGS = {
    "role": "infold_app",
    "application_name": "infold",
    "jit": "off",
}

AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what 0.32 raises when the server dies in the middle of a query
    asyncpg.OperatorInterventionError,  # shutdowns
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.ReadOnlySQLTransactionError,
)

BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)  # it answers, and the next try may go through

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.CardinalityViolationError)


class Pool:
    """Connections that run as `infold_app`. While the gate is shut every call fails at once instead of waiting."""

    def __init__(self, dsn: str, size: int = 8, wait_seconds: float = WAIT_SECONDS) -> None:
        """`wait_seconds`: how long whoever has a request to answer waits for the database."""
        self._dsn = dsn
        self._size = size
        self.wait_seconds = wait_seconds
        self._settings = SETTINGS | {"lock_timeout": f"{LOCK_SHARE * wait_seconds * 1000:.0f}ms"}
        self._pool: asyncpg.Pool | None = None
        self._probe: asyncio.Task[None] | None = None
        self._on_change: Callable[[bool], None] = lambda available: None

    @property
    def available(self) -> bool:
        return self._pool is not None and self._probe is None

    def on_change(self, call: Callable[[bool], None]) -> None:
        """Call with True when the database has come back, with False when it has gone."""
        self._on_change = call

    async def open(self) -> None:
        """Connect once; raises StoreUnavailable."""
        try:
            self._pool = await asyncpg.create_pool(
                self._dsn, min_size=1, max_size=self._size, server_settings=self._settings, init=know_vectors,
                reset=keep, timeout=CONNECT_SECONDS,
            )  # fmt: skip
        except AWAY as error:
            raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        if self._probe:
            self._probe.cancel()
        if self._pool:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self, wait_seconds: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection for some queries, all of them within `wait_seconds`; None: as long as a request waits.

        The timeout stands outside because asyncpg's own also waits for its cancel to be answered; for the same reason
        a connection whose query did not end is terminated before it goes back.

        Raises:
            StoreUnavailable: the database is away, too slow, or all connections are in use.
            StoreBusy: a lock was not to be had; the gate stays open.
            StoreRefused: it will never take this record.
            StoreError: it refused for another reason.
        """
        pool = self._pool
        if pool is None or self._probe is not None:
            raise StoreUnavailable
        wait_seconds = self.wait_seconds if wait_seconds is None else wait_seconds
        connection = await self._acquire(pool, wait_seconds)
        try:
            async with asyncio.timeout(wait_seconds):
                yield connection
        except AWAY as error:
            give_up(connection)
            self._shut(error)
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        except BUSY as error:
            raise StoreBusy(f"{type(error).__name__}: {error}") from error
        except REFUSED as error:
            raise StoreRefused(f"{type(error).__name__}: {error}") from error
        except asyncpg.PostgresError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
        except asyncio.CancelledError:
            give_up(connection)
            raise
        finally:
            with suppress(asyncpg.InterfaceError):
                await pool.release(connection)

    async def _acquire(self, pool: asyncpg.Pool, wait_seconds: float) -> asyncpg.Connection:
        try:
            async with asyncio.timeout(wait_seconds):
                return await pool.acquire()
        except TimeoutError as error:
            if pool.get_size() == pool.get_max_size() and pool.get_idle_size() == 0:  # busy, not away
                raise StoreUnavailable("all database connections are in use") from error
            self._shut(error)
            raise StoreUnavailable("the database did not take a connection in time") from error
        except (*AWAY, asyncpg.PostgresError) as error:  # refused at the door: to us it is away
            self._shut(error)
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    @asynccontextmanager
    async def tenant(self, tenant: bytes, wait_seconds: float = 30) -> AsyncIterator[asyncpg.Connection]:
        """A transaction in which row-level security shows one tenant's rows."""
        async with self.connection(wait_seconds) as connection, connection.transaction():
            await show(connection, tenant)
            yield connection

    @asynccontextmanager
    async def reader(self, tenant: bytes) -> AsyncIterator[asyncpg.Connection]:
        """Like `tenant`, on a connection of its own: whoever reads for long takes none from the others."""
        if not self.available:
            raise StoreUnavailable
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await asyncpg.connect(self._dsn, server_settings=self._settings)
        except (*AWAY, asyncpg.PostgresError) as error:
            raise StoreUnavailable(str(error)) from error
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await show(connection, tenant)
                yield connection
        except AWAY as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        finally:
            connection.terminate()

    def _shut(self, error: BaseException) -> None:
        if self._probe is None:
            log.warning("database away", reason=f"{type(error).__name__}: {error}")
            self._on_change(False)
            self._probe = asyncio.create_task(self._knock())

    async def _knock(self) -> None:
        while not await self._answers():
            await asyncio.sleep(PROBE_SECONDS)
        self._probe = None
        log.info("database back")
        self._on_change(True)

    async def _answers(self) -> bool:
        """Ask on a connection of its own: those of the pool may be in use or hang."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await asyncpg.connect(self._dsn, server_settings=self._settings)
        except (*AWAY, asyncpg.PostgresError):
            return False
        connection.terminate()
        return True


def give_up(connection: asyncpg.Connection) -> None:
    """Close a connection whose query did not end, without a word to the server."""
    with suppress(asyncpg.InterfaceError):  # the server was faster, and asyncpg has put it away
        connection.terminate()


async def show(connection: asyncpg.Connection, tenant: bytes) -> None:
    await connection.execute("select set_config('infold.tenant', $1, true)", tenant.hex())


async def know_vectors(connection: asyncpg.Connection) -> None:
    try:
        await register_vector(connection)
    except ValueError as error:  # somebody has dropped the extension, or the whole database
        raise asyncpg.InterfaceError(str(error)) from error


async def keep(connection: asyncpg.Connection) -> None:
    """Instead of asyncpg's RESET ALL, a round trip: every setting of ours ends with its transaction."""
