"""Alembic's entry point; the connection is handed over by `adapters.database`."""

from alembic import context

from cloud_aggregator.adapters.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
