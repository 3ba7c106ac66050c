"""What rounds keep in the database."""

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from coordinator.storage import Json, metadata

runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("version", Integer, nullable=False),  # the base: where the run starts
    Column("bundle_sha256", String(64), nullable=False),
    Column("cohort", Json, nullable=False),  # names of the devices, sorted
    Column("config", Json, nullable=False),  # RunConfig
    Column("alert", String(32), nullable=True),  # what it answers
    Column("job", String(64), nullable=True),
    Column("state", String(16), nullable=False),  # queued, running, succeeded, failed, cancelled
    Column("result_version", Integer, nullable=True),
    Column("error", Text, nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float, nullable=True),
)

run_rounds = Table(
    "run_rounds",
    metadata,
    Column("run", String(32), ForeignKey("runs.id"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("kind", String(16), primary_key=True),  # train, evaluate
    Column("weights_sha256", String(64), nullable=False),  # train: the result; evaluate: what was measured
    Column("metrics", Json, nullable=False),
    Column("replies", Integer, nullable=False),
    Column("failures", Json, nullable=False),  # device to reason
    Column("counts", Json, nullable=True),  # evaluate: profile counts of the cohort
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
)

instructions = Table(
    "instructions",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("run", String(32), ForeignKey("runs.id"), nullable=False),
    Column("round", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("device", String(63), nullable=False),
    Column("message", LargeBinary, nullable=False),  # an encoded Instruction
    Column("input_sha256", String(64), nullable=False),  # the weights that the device pulls
    Column("input_size", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # queued, sent, answered, expired
    Column("expires_at", Float, nullable=False),
    Column("sent_at", Float, nullable=True),
    Column("answered_at", Float, nullable=True),
    Column("reply", LargeBinary, nullable=True),  # an encoded RoundReply; still `sent` while its weights are missing
    Column("weights_sha256", String(64), nullable=True),  # the update, as the reply names it
    Column("error", Text, nullable=False, default=""),
    Index(None, "device", "state"),
    Index(None, "run", "round", "kind"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("block", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

# Updates that a device has sent whole: naming someone else's blob in a reply is not enough.
updates = Table(
    "updates",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("received_at", Float, nullable=False),
)
