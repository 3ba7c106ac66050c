"""What a device should serve is said by model, and a rollout may wait for the health of its devices."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_devices = sa.table(
    "devices", sa.column("name", sa.String()), sa.column("desired", sa.JSON()), sa.column("hello", sa.JSON())
)


def upgrade() -> None:
    """Apply."""
    op.add_column("rollouts", sa.Column("health_timeout_s", sa.Float(), nullable=False, server_default="0"))
    connection = op.get_bind()
    for name, desired in connection.execute(sa.select(_devices.c.name, _devices.c.desired)).all():
        if desired is not None and "models" not in desired:
            bundle, revision_ = desired.get("bundle"), desired["revision"]
            wanted = {"revision": revision_, "rollout": desired.get("rollout"), "bundle": bundle}
            models = {bundle["model"]: wanted} if bundle else {}
            values = {"desired": {"type": "desired", "revision": revision_, "models": models}, "hello": sa.null()}
            connection.execute(sa.update(_devices).where(_devices.c.name == name).values(**values))


def downgrade() -> None:
    """Take back the column; what a device should serve stays as it is said now."""
    op.drop_column("rollouts", "health_timeout_s")
