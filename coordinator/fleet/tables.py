"""Tables of the fleet."""

from sqlalchemy import Boolean, Column, Float, Index, Integer, String, Table, Text

from coordinator.storage import Json, metadata

devices = Table(
    "devices",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("hardware_class", String(63), nullable=False, default=""),
    Column("tags", Json, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("token_sha256", String(64), nullable=True, unique=True),  # of the token that enrols it, or did
    Column("token_expires_at", Float, nullable=False, default=0.0),
    Column("token_used_at", Float, nullable=True),
    Column("certificate_pem", Text, nullable=True),  # the newest; null until it enrolled
    Column("enrolled_at", Float, nullable=True),
    Column("connected", Boolean, nullable=False, default=False),
    Column("boot", String(128), nullable=False, default=""),
    Column("last_seen", Float, nullable=True),
    Column("hello", Json, nullable=True),  # contract.messages.Hello, as it came
    Column("desired", Json, nullable=True),  # contract.messages.Desired
    Column("desired_revision", Integer, nullable=False, default=0),
    Column("published_revision", Integer, nullable=False, default=0),
    Column("revoked_at", Float, nullable=True),
    Column("revoked_reason", Text, nullable=False, default=""),
    Column("kicks_left", Integer, nullable=False, default=0),  # how often the broker is still told to cut it off
)

# One row for each certificate until it has expired, so that all of a device's can be revoked.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),  # hexadecimal
    Column("device", String(63), nullable=False, index=True),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True, index=True),
)

# One row for each report whose effect is committed; (device, outbox, seq) names a report for ever.
received = Table(
    "received",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("outbox", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("received_at", Float, nullable=False),
    Column("dropped", Text, nullable=False, default=""),  # why it had no effect, if it had none
)

# What devices said that their owners should know; the newest of each device.
device_alerts = Table(
    "device_alerts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),  # order of arrival
    Column("device", String(63), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("text", Text, nullable=False),
    Column("model", String(128), nullable=False),
    Column("at", Float, nullable=False),  # device clock
    Column("received_at", Float, nullable=False),  # coordinator clock
    Index(None, "device", "id"),
)

# What an operator asked of a device, and its answer.
device_commands = Table(
    "device_commands",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(63), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # contract.messages.Command.kind
    Column("level", String(8), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("sent_at", Float, nullable=True),
    Column("answered_at", Float, nullable=True, index=True),
    Column("error", Text, nullable=False, default=""),
    Column("sha256", String(64), nullable=True),  # blob of the archive
    Column("size", Integer, nullable=False, default=0),
    Column("bundle", Json, nullable=True),  # contract.messages.BundleRef, of `bench`
)

# What devices measured.
measurements = Table(
    "measurements",
    metadata,
    Column("id", String(32), primary_key=True),  # of the command
    Column("device", String(63), nullable=False),
    Column("hardware_class", String(63), nullable=False),
    Column("bundle_sha256", String(64), nullable=False),
    Column("artifact_sha256", String(64), nullable=False, index=True),
    Column("measured", Json, nullable=False),  # contract.messages.Measured
    Column("measured_at", Float, nullable=False),  # coordinator clock
)
