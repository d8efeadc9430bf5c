"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "commands",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("done_at", sa.Float(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index(op.f("ix_commands_done_at"), "commands", ["done_at"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "devices",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("verify_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("seal_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("machine", sa.LargeBinary(length=16), nullable=False),
        sa.Column("broker_password", sa.String(length=120), nullable=False),
        sa.Column("token", sa.String(length=48), nullable=False),
        sa.Column("enrolled_at", sa.Float(), nullable=False),
        sa.Column("last_seen_at", sa.Float(), nullable=True),
        sa.Column("agent_version", sa.String(length=120), nullable=False),
        sa.Column("engine", sa.String(length=120), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("verify_key"),
    )
    op.create_index(op.f("ix_devices_machine"), "devices", ["machine"], unique=False)
    op.create_table(
        "events",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("task", sa.String(length=48), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("device", sa.String(length=48), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("ix_events_task_round", "events", ["task", "round"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("settings", sa.LargeBinary(), nullable=False),
        sa.Column("bundle", sa.LargeBinary(length=32), nullable=False),
        sa.Column("bundle_signature", sa.LargeBinary(length=64), nullable=False),
        sa.Column("model", sa.LargeBinary(length=32), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("secret", sa.LargeBinary(length=64), nullable=False),
        sa.Column("uses_max", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("task", sa.String(length=48), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("keyframe", sa.LargeBinary(length=32), nullable=False),
        sa.Column("delta", sa.LargeBinary(length=32), nullable=True),
        sa.Column("state", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.name"],
        ),
        sa.PrimaryKeyConstraint("task", "version"),
    )
    op.create_table(
        "rounds",
        sa.Column("task", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("transition_count", sa.Integer(), nullable=False),
        sa.Column("base_version", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("report_count", sa.Integer(), nullable=False),
        sa.Column("example_count", sa.BigInteger(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("assignment_count", sa.Integer(), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.Column("bytes_keyframe", sa.BigInteger(), nullable=False),
        sa.Column("bytes_bundle", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.name"],
        ),
        sa.PrimaryKeyConstraint("task", "number"),
    )
    op.create_index(op.f("ix_rounds_phase"), "rounds", ["phase"], unique=False)


def downgrade() -> None:
    """Undo this step."""
    op.drop_index(op.f("ix_rounds_phase"), table_name="rounds")
    op.drop_table("rounds")
    op.drop_table("checkpoints")
    op.drop_table("tokens")
    op.drop_table("tasks")
    op.drop_index("ix_events_task_round", table_name="events")
    op.drop_table("events")
    op.drop_index(op.f("ix_devices_machine"), table_name="devices")
    op.drop_table("devices")
    op.drop_table("counters")
    op.drop_index(op.f("ix_commands_done_at"), table_name="commands")
    op.drop_table("commands")
