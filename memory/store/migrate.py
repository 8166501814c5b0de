"""Brings a database's schema up to this release: Alembic revisions with plain SQL, under an advisory lock."""

import secrets
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from memory.errors import StoreError

LOCK = 0x1F01D  # any number of ours: replicas that start together queue here

OWNER_SQL = """\
create schema if not exists infold authorization "{login}";
create extension if not exists vector schema public;
do $$ begin create role infold_app nologin nosuperuser nobypassrls; exception when duplicate_object then null; end $$;
grant infold_app to "{login}";
"""

STEPS = (
    ("select to_regnamespace('infold') is null", "create schema infold"),
    ("select not exists (select from pg_extension where extname = 'vector')", "create extension vector schema public"),
    ("select to_regrole('infold_app') is null", "create role infold_app nologin nosuperuser nobypassrls"),
    ("select not pg_has_role(current_user, 'infold_app', 'member')", "grant infold_app to current_user"),
)

MINIMUM_PGVECTOR = (0, 8, 0)  # iterative index scans; below it a filtered search comes back short


def folder() -> Path:
    """Where the revisions lie: inside the installed package, or at the top of a checkout."""
    package = Path(str(find_spec("memory").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    shipped = package / "_migrations"
    return shipped if shipped.is_dir() else package.parent / "migrations"


def head() -> str:
    """The newest revision of this release, read from the file names."""
    return max(path.name for path in (folder() / "versions").glob("[0-9]*.py")).split("_")[0]


async def migrate(dsn: str) -> None:
    """Make or upgrade the schema, the runtime role and the pepper. Safe to call from many processes at once.

    Raises:
        StoreError: the login role may not make what is missing; the message holds the SQL for an administrator.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("select pg_advisory_lock($1)", LOCK)
        if await current(connection) != head():
            await prepare_owner(connection)
            await upgrade(dsn)
        if not await connection.fetchval("select exists (select from infold.secrets where name = 'pepper')"):
            await make_pepper(connection)  # also after a start that was killed in between
        await check_role(connection)
    finally:
        await connection.close()


async def current(connection: asyncpg.Connection) -> str | None:
    if await connection.fetchval("select to_regclass('infold.alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("select version_num from infold.alembic_version")
    return revision


async def prepare_owner(connection: asyncpg.Connection) -> None:
    """Make what is missing and only that: an administrator may have made it before.

    Raises:
        StoreError: the login role may not; or pgvector is too old.
    """
    try:
        for missing, make in STEPS:
            if await connection.fetchval(missing):
                await connection.execute(make)
    except asyncpg.PostgresError as error:
        raise StoreError(
            f"The database role may not set Infold up ({error}). Let an administrator run:\n\n"
            + OWNER_SQL.format(login=await connection.fetchval("select current_user"))
        ) from error
    version = await connection.fetchval("select extversion from pg_extension where extname = 'vector'")
    if tuple(int(part) for part in version.split(".")) < MINIMUM_PGVECTOR:
        raise StoreError(f"pgvector {version} is too old: Infold needs 0.8.0, better 0.8.6.")


async def upgrade(dsn: str) -> None:
    from alembic import command  # 0.4 s of imports that only a new schema needs
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(folder()))

    def run(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(dsn)  # the DSN as the user wrote it: SQLAlchemy reads another dialect of it

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


async def make_pepper(connection: asyncpg.Connection) -> None:
    """The key of all keyed hashes, one per database, so that replicas agree on tenants."""
    await connection.execute(
        "insert into infold.secrets (name, value) values ('pepper', $1) on conflict do nothing", secrets.token_bytes(32)
    )


async def check_role(connection: asyncpg.Connection) -> None:
    """Refuse to run where row-level security would not hold: a superuser ignores even FORCE."""
    row = await connection.fetchrow(
        "select rolsuper or rolbypassrls as bypasses, pg_has_role(current_user, 'infold_app', 'member') as member"
        " from pg_roles where rolname = 'infold_app'"
    )
    if row is None or row["bypasses"] or not row["member"]:
        raise StoreError(
            "Infold runs as the role infold_app, which must exist, be granted to the login role and have neither"
            " SUPERUSER nor BYPASSRLS. Let an administrator run:\n\n"
            + OWNER_SQL.format(login=await connection.fetchval("select current_user"))
            + "alter role infold_app nosuperuser nobypassrls;"
        )
