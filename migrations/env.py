"""Alembic's environment: memory/store/migrate.py brings the connection, files beside the revisions the SQL."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="infold")
with context.begin_transaction():
    context.run_migrations()
