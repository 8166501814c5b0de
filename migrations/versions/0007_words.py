"""Search: a word costs what it finds, however much a tenant has."""

from pathlib import Path

from alembic import op
from sqlalchemy.util import await_only

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # SQLAlchemy's asyncpg dialect prepares every statement, and a prepared statement holds one command.
    raw = op.get_bind().connection.driver_connection
    await_only(raw.execute(Path(__file__).with_suffix(".sql").read_text()))
