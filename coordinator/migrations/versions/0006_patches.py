"""Patches between bundles."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "patches",
        sa.Column("base_sha256", sa.String(length=64), nullable=False),
        sa.Column("target_sha256", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blocks", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("base_sha256", "target_sha256", name=op.f("pk_patches")),
    )
    op.create_index(op.f("ix_patches_sha256"), "patches", ["sha256"], unique=False)
    op.create_index(op.f("ix_patches_blocks"), "patches", ["blocks"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index(op.f("ix_patches_blocks"), table_name="patches")
    op.drop_index(op.f("ix_patches_sha256"), table_name="patches")
    op.drop_table("patches")
