"""The console's tables and indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "console_users",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "console_sessions",
        sa.Column("cookie_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("user", sa.String(length=48), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("notice", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["console_users.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cookie_digest"),
    )
    op.create_index("ix_console_sessions_user", "console_sessions", ["user"])
    op.create_table(
        "console_sign_ins",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("user", sa.String(length=48), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("ix_console_sign_ins_at", "console_sign_ins", ["at"])
    op.create_index("ix_events_device_number", "events", ["device", "number"])
    op.create_index("ix_events_kind_number", "events", ["kind", "number"])
    op.create_index("ix_rounds_opened_at", "rounds", ["opened_at"])


def downgrade() -> None:
    """Undo this step."""
    op.drop_index("ix_rounds_opened_at", table_name="rounds")
    op.drop_index("ix_events_kind_number", table_name="events")
    op.drop_index("ix_events_device_number", table_name="events")
    op.drop_table("console_sign_ins")
    op.drop_table("console_sessions")
    op.drop_table("console_users")
