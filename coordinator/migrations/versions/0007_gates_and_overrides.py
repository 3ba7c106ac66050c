"""Gates of models, and signed overrides."""

import sqlalchemy as sa
from alembic import op

from coordinator.storage import Json

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "model_gates",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("gates", Json, nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_model_gates_model_models")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_model_gates")),
    )
    op.create_table(
        "gate_overrides",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("variant", sa.String(length=63), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("keyid", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["model_versions.model", "model_versions.version"],
            name=op.f("fk_gate_overrides_model_model_versions"),
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_gate_overrides")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("gate_overrides")
    op.drop_table("model_gates")
