"""One suite for what the coordinator stands on: SQLite and a real PostgreSQL, a local folder and fsspec's memory."""

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, func, insert, inspect, select, text

from contract import limits, tensors
from contract.errors import TooLargeError, TopicError
from coordinator import migrate, pki
from coordinator.errors import NotFoundError, SetupError
from coordinator.fleet.tables import certificates, devices
from coordinator.jobs.service import Jobs
from coordinator.jobs.tables import jobs
from coordinator.jobs.worker import Record
from coordinator.registry.service import Registry
from coordinator.registry.tables import models
from coordinator.sql import insert_once
from coordinator.storage import Blobs, Storage, open_engine
from tests.fakes.broker_process import device_key_and_csr


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.sqlite'}"
    folder = request.getfixturevalue("postgresql_server")
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    admin = create_engine(f"postgresql+psycopg://fieldfare@/postgres?host={folder}", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"postgresql+psycopg://fieldfare@/{name}?host={folder}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A database with every table."""
    opened = open_engine(url)
    migrate.upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path / 'blobs'}" if request.param == "file" else f"memory://{tmp_path.name}")


def row(name: str) -> dict[str, object]:
    return {"name": name, "created_at": 1.5, "last_version": 0}


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(engine: Engine) -> None:
    with engine.begin() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), migrate.tables())
    assert differences == []
    assert set(inspect(engine).get_table_names()) == {*migrate.tables().tables, "alembic_version"}


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(models).values(**row("digits")))
    migrate.upgrade(engine)
    with engine.begin() as connection:
        assert connection.execute(select(func.count()).select_from(models)).scalar_one() == 1


def test_devices_that_enrolled_before_certificates_had_rows_get_them(url: str, tmp_path: Path) -> None:
    pki.create(tmp_path)
    _, csr = device_key_and_csr("meter-1")
    pem = pki.Authority.load(tmp_path).sign_csr(csr, "meter-1", days=30, now=datetime.now(UTC))
    engine = open_engine(url)
    with engine.begin() as connection:
        alembic = migrate.configuration()
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "0001")
        connection.execute(
            text(
                "INSERT INTO devices (name, hardware_class, tags, created_at, token_expires_at, certificate_pem, "
                "enrolled_at, connected, boot, desired_revision, published_revision) "
                "VALUES ('meter-1', '', '{}', 1.0, 0.0, :pem, 2.0, :no, '', 0, 0)"
            ),
            {"pem": pem.decode(), "no": False},
        )
    migrate.upgrade(engine)
    with engine.begin() as connection:
        kept = connection.execute(select(certificates)).one()
        device = connection.execute(select(devices)).one()
    engine.dispose()
    assert (int(kept.serial, 16), kept.device, kept.issued_at) == (pki.serial(pem), "meter-1", 2.0)
    assert (kept.expires_at, kept.revoked_at) == (pki.validity(pem)[1], None)
    assert (device.token_used_at, device.revoked_at, device.kicks_left) == (2.0, None, 0)


def test_a_database_of_a_newer_version_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="9999"):
        migrate.upgrade(engine)


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    def fail() -> None:
        with engine.begin() as connection:
            connection.execute(insert(models).values(**row("digits")))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with engine.begin() as connection:
        assert connection.execute(select(models)).first() is None


def test_a_row_is_inserted_once(engine: Engine) -> None:
    with engine.begin() as connection:
        assert insert_once(connection, models, row("digits"))
        assert not insert_once(connection, models, {**row("digits"), "last_version": 7})
        assert connection.execute(select(models.c.last_version)).scalar_one() == 0


def test_json_and_times_come_back_as_they_went(engine: Engine, tmp_path: Path) -> None:
    spec = {"b": [1, 2.5, None, True], "a": {"ü": "\u2028"}, "big": 2**53}
    made = Jobs(Storage(engine, Blobs(f"file://{tmp_path}/b")), tmp_path, clock=lambda: 1795443769.123456)
    job = made.create("train", spec)
    assert job.spec == spec
    assert job.created_at == 1795443769.123456
    assert job.result is None


def test_two_at_once_get_two_version_numbers(engine: Engine, tmp_path: Path) -> None:
    storage = Storage(engine, Blobs(f"file://{tmp_path}/b"))
    registry = Registry(storage, lambda _connection, **_request: None)
    weights = [storage.blobs.put(tensors.dump({"w": np.full(3, i, np.float32)})).sha256 for i in range(4)]
    made, same = [], []

    def register(index: int) -> None:
        version = registry.create_version("digits", task="digits", weights_sha256=weights[index], metrics={})
        (made if index < 3 else same).append(version.version)

    threads = [threading.Thread(target=register, args=(index,)) for index in [0, 1, 2, 3, 3, 3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(same)) == 1
    assert sorted([*made, same[0]]) == [1, 2, 3, 4]


def test_of_two_workers_one_gets_the_job(engine: Engine, tmp_path: Path) -> None:
    Jobs(Storage(engine, Blobs(f"file://{tmp_path}/b")), tmp_path).create("train", {"n": 1}, id="one")
    claims: list[object] = []
    threads = [threading.Thread(target=lambda: claims.append(Record(engine, "one").claim(5.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [claim for claim in claims if claim is not None] == [("train", {"n": 1}, False)]
    with engine.begin() as connection:
        assert connection.execute(select(jobs.c.attempt, jobs.c.started_at)).one() == (1, 5.0)


@given(data=st.binary(max_size=300))
def test_a_blob_comes_back_by_its_digest(data: bytes) -> None:
    blobs = Blobs("memory://property")
    ref = blobs.put(data)
    assert blobs.put(data) == ref
    assert ref.size == len(data)
    assert blobs.get(ref.sha256) == data


def test_blocks_of_a_blob_join_to_the_whole(blobs: Blobs) -> None:
    data = os.urandom(2 * limits.BLOCK_BYTES + 5)
    ref = blobs.put(data)
    parts = [blobs.block(ref.sha256, index) for index in range(4)]
    assert [len(part) for part in parts] == [limits.BLOCK_BYTES, limits.BLOCK_BYTES, 5, 0]
    assert b"".join(parts) == data


def test_a_blob_that_is_not_there_is_named(blobs: Blobs) -> None:
    missing = "0" * 64
    assert not blobs.exists(missing)
    for ask in (blobs.get, lambda digest: blobs.block(digest, 0)):
        with pytest.raises(NotFoundError, match=missing):
            ask(missing)


def test_a_name_that_is_no_digest_opens_no_file(blobs: Blobs) -> None:
    for name in ("../../etc/passwd", "A" * 64, ""):
        with pytest.raises(TopicError):
            blobs.get(name)


def test_a_blob_over_the_limit_is_refused(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARTIFACT_BYTES", 10)
    with pytest.raises(TooLargeError):
        blobs.put(b"x" * 11)


def test_records_of_both_databases_are_equal_types(engine: Engine, tmp_path: Path) -> None:
    job = Jobs(Storage(engine, Blobs(f"file://{tmp_path}/b")), tmp_path, clock=lambda: 3.0).create("k", {}, id="j")
    assert msgspec.to_builtins(job) == {
        "id": "j",
        "kind": "k",
        "spec": {},
        "state": "queued",
        "attempt": 0,
        "progress": 0.0,
        "message": "",
        "result": None,
        "error": None,
        "created_at": 3.0,
        "started_at": None,
        "finished_at": None,
    }
