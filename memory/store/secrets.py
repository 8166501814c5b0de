"""Keys that all replicas share, as rows of the database."""

import asyncpg


async def load_pepper(connection: asyncpg.Connection) -> bytes:
    """The key of tenant hashes, 32 bytes; made with the schema."""
    pepper: bytes = await connection.fetchval("select value from infold.secrets where name = 'pepper'")
    return pepper
