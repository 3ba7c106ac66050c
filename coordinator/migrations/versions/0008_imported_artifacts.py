"""Versions that are an artifact which was brought in."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("model_versions", sa.Column("artifact_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("model_versions", "artifact_sha256")
