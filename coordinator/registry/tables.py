"""Tables of the registry. A bundle is signed when its signing request is, so it has no column for that."""

from sqlalchemy import Column, Float, ForeignKey, ForeignKeyConstraint, Integer, String, Table, Text, UniqueConstraint

from coordinator.storage import Json, metadata

models = Table(
    "models",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("last_version", Integer, nullable=False),  # numbers are given once, in order
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the manifest as canonical JSON
    Column("task", String(255), nullable=False),
    Column("manifest", Json, nullable=False),
    Column("created_at", Float, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", ForeignKey(models.c.name), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("task", String(255), nullable=False),
    Column("weights_sha256", String(64), nullable=False),  # empty where the artifact was brought in
    Column("artifact_sha256", String(64), nullable=True),
    Column("metrics", Json, nullable=False),
    Column("snapshot_sha256", ForeignKey(snapshots.c.sha256), nullable=True),
    Column("parents", Json, nullable=False),
    Column("run", String(64), nullable=True),
    Column("job", String(64), nullable=True),
    Column("reference_sha256", String(64), nullable=True),
    Column("details", Json, nullable=False),
    Column("identity", String(64), nullable=False),  # what makes two requests the same version
    UniqueConstraint("model", "identity"),
)

variants = Table(
    "variants",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("tflite_sha256", String(64), nullable=False),
    Column("report", Json, nullable=False),
    Column("gate", Json, nullable=False),  # records.Gate
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["model", "version"], [model_versions.c.model, model_versions.c.version]),
)

model_gates = Table(
    "model_gates",
    metadata,
    Column("model", ForeignKey(models.c.name), primary_key=True),
    Column("gates", Json, nullable=False),  # registry.gates.Gates
    Column("set_at", Float, nullable=False),
)

gate_overrides = Table(
    "gate_overrides",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the statement
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("variant", String(63), nullable=False),
    Column("statement", Text, nullable=False),  # as it was signed, byte for byte
    Column("keyid", String(64), nullable=False),
    Column("signature", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["model", "version"], [model_versions.c.model, model_versions.c.version]),
)

bundles = Table(
    "bundles",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("variant", String(63), nullable=False),
    Column("target", String(255), nullable=False, unique=True),
    Column("size", Integer, nullable=False),  # bytes
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["model", "version", "variant"], [variants.c.model, variants.c.version, variants.c.name]),
)
