"""Alembic's environment: the connection comes from memory/store/migrate.py, the SQL from the files beside the revisions."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="infold")
with context.begin_transaction():
    context.run_migrations()
