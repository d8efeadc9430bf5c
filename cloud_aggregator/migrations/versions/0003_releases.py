"""Releases, and what devices do with them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "releases",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("family", sa.String(length=48), nullable=False),
        sa.Column("task", sa.String(length=48), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("policy", sa.LargeBinary(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("bundle", sa.LargeBinary(length=32), nullable=False),
        sa.Column("checkpoint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("replaces", sa.Integer(), nullable=True),
        sa.Column("restricted_to", sa.Integer(), nullable=True),
        sa.Column("way_back", sa.LargeBinary(), nullable=True),
        sa.Column("way_back_number", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("member_count", sa.Integer(), nullable=False),
        sa.Column("committed_count", sa.Integer(), nullable=False),
        sa.Column("failed_count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index(op.f("ix_releases_family"), "releases", ["family"], unique=False)
    op.create_index(op.f("ix_releases_phase"), "releases", ["phase"], unique=False)
    op.create_table(
        "device_releases",
        sa.Column("release", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=48), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=48), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("offered_at", sa.Float(), nullable=True),
        sa.Column("concluded_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.name"]),
        sa.ForeignKeyConstraint(["release"], ["releases.number"]),
        sa.PrimaryKeyConstraint("release", "device"),
    )
    op.create_index(op.f("ix_device_releases_device"), "device_releases", ["device"], unique=False)
    op.create_index(op.f("ix_device_releases_state"), "device_releases", ["state"], unique=False)
    op.create_table(
        "running_releases",
        sa.Column("device", sa.String(length=48), nullable=False),
        sa.Column("family", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("reported_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"]),
        sa.PrimaryKeyConstraint("device", "family"),
    )
    op.create_index(op.f("ix_running_releases_number"), "running_releases", ["number"], unique=False)


def downgrade() -> None:
    """Undo this step."""
    op.drop_index(op.f("ix_running_releases_number"), table_name="running_releases")
    op.drop_table("running_releases")
    op.drop_index(op.f("ix_device_releases_state"), table_name="device_releases")
    op.drop_index(op.f("ix_device_releases_device"), table_name="device_releases")
    op.drop_table("device_releases")
    op.drop_index(op.f("ix_releases_phase"), table_name="releases")
    op.drop_index(op.f("ix_releases_family"), table_name="releases")
    op.drop_table("releases")
