"""The memory, open for as long as a command takes. What is heavy is imported when a command runs, not for `--help`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory.errors import ModelError, StoreUnavailable
from proxy.commands.shown import fail

if TYPE_CHECKING:
    from memory.embed import Embedder
    from memory.nouns import Place, Principal
    from memory.settings import Slm
    from memory.slm.bases import Bases
    from memory.whole import Memory
    from proxy.config import Config

POOL_SIZE = 2  # connections
OPEN_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class At:
    """The memory, and where in it a command works."""

    memory: "Memory"
    principal: "Principal"
    place: "Place"
    model: str  # against whose window a session is measured
    embedder: "Embedder | None"
    config: "Config"
    names_session: bool = False

    @property
    def named_place(self) -> "Place | None":
        """The session, where the command names one."""
        return self.place if self.names_session else None

    @property
    def home(self) -> Path:
        """The data directory."""
        return self.config.data_dir

    @property
    def slm(self) -> "Slm":
        return self.config.slm_settings

    @property
    def bases(self) -> "Bases":
        """The model that adapters are made for."""
        from memory.slm.bases import Bases
        from proxy.config import engine_environment

        return Bases(self.slm, self.config.models_home, engine_environment())

    @property
    def tenant(self) -> bytes:
        return self.principal.tenant

    async def warm(self) -> None:
        """Load the embedder, which takes about a second: longer than a search waits for it."""
        with suppress(ModelError):
            if self.embedder is not None:
                await self.embedder.embed(["ready"])


def read(path: Path | None, **given: Any) -> "Config":
    """The settings; a wrong one ends the program."""
    from proxy.config import ConfigError, load

    try:
        return load(path, **given)
    except ConfigError as error:
        fail(str(error))


@contextmanager
def served(config: "Config") -> Iterator[str]:
    """The DSN of the operator's own server, of the one that runs on our data directory, or of one started for now.

    Raises:
        StoreError: it does not start; the message says what to change.
    """
    if config.database_url is not None:
        yield config.database_url.get_secret_value()
        return
    from memory.house import enter

    house = enter(config.data_dir)
    try:
        yield house.serve()
    finally:
        house.leave()


@asynccontextmanager
async def opened(config: "Config", dsn: str, key: str | None, session: str | None) -> AsyncIterator[At]:
    """The memory of the tenant that a key names, as it is for the proxy and over REST; without one the local tenant's.

    Raises:
        StoreError: the database cannot be reached, or may not be used.
        InvalidRequest: a session name of another shape.
    """
    from memory.embed import embedder
    from memory.identify import key_tenant, place
    from memory.models import ModelTable
    from memory.nouns import Principal
    from memory.store.pool import Pool
    from memory.tokens import Counter
    from memory.whole import memory
    from proxy.local import nearby

    pool, embedding = Pool(dsn, POOL_SIZE), embedder(config.embedder)
    try:
        pepper = await reach(dsn, pool)
        if config.pepper is not None:
            pepper = config.pepper.get_secret_value().encode()
        tenant = key_tenant(pepper, key)
        settings = replace(config.settings, slm=await asyncio.to_thread(nearby, config))
        whole = memory(pool, dsn, Counter(), ModelTable(config.overrides), settings, embedder=embedding)
        who = Principal(tenant, "cli", is_person=True)
        yield At(whole, who, place(tenant, session), config.primary_model, embedding, config, session is not None)
    finally:
        await pool.close()
        if embedding is not None:
            await embedding.close()


async def reach(dsn: str, pool: "Any") -> bytes:
    """Bring the schema up, open the pool, read the pepper."""
    import asyncpg

    from memory.store.migrate import migrate
    from memory.store.pool import AWAY
    from memory.store.secrets import load_pepper

    try:
        await migrate(dsn)
        await pool.open()
    except (*AWAY, asyncpg.PostgresError) as error:
        raise StoreUnavailable(f"the database cannot be reached: {error}") from error
    async with pool.connection(OPEN_SECONDS) as connection:
        return await load_pepper(connection)
