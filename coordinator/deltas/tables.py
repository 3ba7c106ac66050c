"""Which patches were made."""

from sqlalchemy import BigInteger, Column, Float, String, Table

from coordinator.storage import metadata

patches = Table(
    "patches",
    metadata,
    Column("base_sha256", String(64), primary_key=True),  # empty: from nothing
    Column("target_sha256", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False, index=True),  # of the patch; empty where it would not be smaller
    Column("size", BigInteger, nullable=False),  # bytes
    Column("blocks", String(64), nullable=False, index=True),  # digest of its list of blocks; empty for a single block
    Column("created_at", Float, nullable=False),
)
