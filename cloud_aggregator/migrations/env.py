"""Alembic's entry point; the connection is handed over by `adapters.database`."""

from alembic import context

from cloud_aggregator.adapters import console_schema, release_schema
from cloud_aggregator.adapters.schema import Base

TABLES = (console_schema, release_schema)  # Imported for what they add to `Base`.

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
