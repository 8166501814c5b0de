"""Quarantine without gaps: what is written beside an isolation, and what comes after it."""

from pathlib import Path

from alembic import op
from sqlalchemy.util import await_only

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # SQLAlchemy's asyncpg dialect prepares every statement, and a prepared statement holds one command.
    raw = op.get_bind().connection.driver_connection
    await_only(raw.execute(Path(__file__).with_suffix(".sql").read_text()))
