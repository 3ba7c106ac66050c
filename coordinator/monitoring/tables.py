"""What monitoring keeps in the database."""

from sqlalchemy import Column, Float, Index, Integer, String, Table

from coordinator.storage import Json, metadata

profile_windows = Table(
    "profile_windows",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),  # order of arrival, which is a device's own order
    Column("device", String(63), nullable=False),
    Column("bundle_sha256", String(64), nullable=False),
    Column("profile_digest", String(64), nullable=False),
    Column("started_at", Float, nullable=False),  # device clock
    Column("ended_at", Float, nullable=False),
    Column("received_at", Float, nullable=False),  # coordinator clock
    Column("samples", Integer, nullable=False),
    Column("counts", Json, nullable=False),
    Index(None, "bundle_sha256", "device", "id"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("bundle_sha256", String(64), nullable=False, index=True),
    Column("cohort", Json, nullable=False),  # names of the devices, sorted
    Column("feature", String(128), nullable=False),
    Column("statistic", Float, nullable=False),  # population stability index, pooled over the cohort
    Column("p_value", Float, nullable=False),
    Column("details", Json, nullable=False),
    Column("state", String(16), nullable=False),  # open, answered
    Column("run", String(32), nullable=True),
)
