"""Devices measure bundles."""

import sqlalchemy as sa
from alembic import op

from coordinator.storage import Json

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("device_commands", sa.Column("bundle", Json, nullable=True))
    op.create_table(
        "measurements",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("hardware_class", sa.String(length=63), nullable=False),
        sa.Column("bundle_sha256", sa.String(length=64), nullable=False),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=False),
        sa.Column("measured", Json, nullable=False),
        sa.Column("measured_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurements")),
    )
    op.create_index(op.f("ix_measurements_artifact_sha256"), "measurements", ["artifact_sha256"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index(op.f("ix_measurements_artifact_sha256"), table_name="measurements")
    op.drop_table("measurements")
    op.drop_column("device_commands", "bundle")
