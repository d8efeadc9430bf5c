from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from cloud_aggregator.adapters import console_schema
from cloud_aggregator.adapters.database import migrate, open_engine


def test_the_migrations_bring_a_database_to_what_the_tables_say(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'aggregator.db'}")
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, console_schema.UserRow.metadata) == []
    engine.dispose()
