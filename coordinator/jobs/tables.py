"""Table of the jobs."""

from sqlalchemy import Column, Float, Index, Integer, String, Table, Text

from coordinator.storage import Json, metadata

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("spec", Json, nullable=False),
    Column("state", String(16), nullable=False),  # records.JobState
    Column("pid", Integer, nullable=True),  # leader of its process group
    Column("pid_started", String(64), nullable=True),  # start time of that process, since numbers are used again
    Column("attempt", Integer, nullable=False),
    Column("progress", Float, nullable=False),
    Column("message", Text, nullable=False),
    Column("result", Json, nullable=True),
    Column("error", Text, nullable=True),
    Column("cancelled_at", Float, nullable=True),  # when its end was asked for
    Column("created_at", Float, nullable=False),
    Column("started_at", Float, nullable=True),
    Column("finished_at", Float, nullable=True),
    Index(None, "state", "created_at"),
)
