"""Tables of the signing service."""

from sqlalchemy import BigInteger, Column, Float, LargeBinary, String, Table, Text

from coordinator.storage import Json, metadata

# The files of the TUF repository, so that they change together in one transaction.
tuf_metadata = Table(
    "tuf_metadata",
    metadata,
    Column("name", String(128), primary_key=True),  # as a client asks for it, for example `3.targets.json`
    Column("content", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
)

signing_requests = Table(
    "signing_requests",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("bundle_sha256", String(64), nullable=False, unique=True),
    Column("target", String(512), nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),  # bytes
    Column("custom", Json, nullable=False),
    Column("state", String(16), nullable=False, index=True),  # pending | signed | refused
    Column("reason", Text, nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("answered_at", Float, nullable=True),
)
