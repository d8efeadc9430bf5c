"""Alembic migrations: how a database comes to the shape of `adapters.schema`."""
