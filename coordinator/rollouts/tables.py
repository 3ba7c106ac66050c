"""Tables of the rollouts."""

from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, String, Table, Text

from coordinator.storage import Json, metadata

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("variant", String(255), nullable=False),
    Column("bundle_sha256", String(64), nullable=False, index=True),
    Column("target", String(512), nullable=False),
    Column("cohort", Text, nullable=False),
    Column("waves", Json, nullable=False),  # devices in each wave
    Column("wave", Integer, nullable=False),  # the wave that is being offered; -1 before the first
    Column("state", String(32), nullable=False, index=True),
    Column("max_failures", Integer, nullable=False),
    Column("device_timeout_s", Float, nullable=False),
    Column("health_timeout_s", Float, nullable=False, default=0.0),  # 0: a wave does not wait for its probations
    Column("error", Text, nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float, nullable=True),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout", ForeignKey(rollouts.c.id), primary_key=True),
    Column("device", String(63), primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # one of `waves`: pending, offered, activated, healthy, ...
    Column("reason", Text, nullable=False, default=""),
    Column("offered_at", Float, nullable=True),
    Column("previous", Json, nullable=True),  # the bundle that was desired before, for a device that fails
    Column("updated_at", Float, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False, index=True),
    Column("rollout", String(64), nullable=True, index=True),
    Column("bundle_sha256", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # the bytes that the device signed
    Column("signature", LargeBinary, nullable=False),
    Column("received_at", Float, nullable=False),
)
