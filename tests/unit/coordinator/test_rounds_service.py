from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from contract.messages import BlobRef, RoundReply, UploadBlock
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.jobs.tables import jobs
from coordinator.rounds.mailbox import SqlMailbox
from coordinator.rounds.mqtt_grid import MqttGrid
from coordinator.rounds.tables import uploads
from coordinator.storage import Storage
from tests.fakes import round_state
from tests.fakes.round_state import MODEL, add_devices, register, rounds

NOW = 1_000.0
BLOCK = 128 * 1024


@pytest.fixture
def storage(tmp_path: Path, database: str) -> Iterator[Storage]:
    opened = round_state.open_storage(tmp_path, database)
    yield opened
    opened.engine.dispose()


def launch(storage: Storage, cohort: str = "a,b,c", *, smallest: int = 1, **settings):
    with storage.engine.begin() as connection:
        return rounds(storage, smallest=smallest).launch_query(
            connection, model=MODEL, cohort=cohort, settings=settings, now=NOW
        )


def instruct(storage: Storage, run, *devices: str, size: int = 300_000, kind: str = "train") -> dict[str, str]:
    """Send one instruction to each device by the grid's own words; device to id."""
    from coordinator.rounds.grid import Task

    mailbox = SqlMailbox(storage, clock=lambda: NOW)
    grid = MqttGrid(
        mailbox,
        list(devices),
        run=run.id,
        bundle_sha256=run.bundle_sha256,
        seed=0,
        now=lambda: NOW,
        like={},
        max_examples=1,
    )
    import numpy as np

    weights = {"w": np.zeros(size // 4, np.float32)}
    tasks = [Task(name, 1, kind, weights, {}) for name in devices]
    return dict(zip(devices, grid.send(tasks, 60.0), strict=True))


def reply(instruction: str, *, weights: BlobRef | None = None, error: str = "") -> RoundReply:
    metrics = {"loss": 1.0, "accuracy": 0.5}
    return RoundReply(instruction=instruction, error=error, examples=5, metrics=metrics, weights=weights, counts=None)


def blocks(data: bytes) -> list[UploadBlock]:
    ref = BlobRef(round_state.digest(data), len(data))
    parts = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    return [UploadBlock(blob=ref, index=i, count=len(parts), data=part) for i, part in enumerate(parts)]


def upload(storage: Storage, device: str, *parts: UploadBlock, now: float = NOW) -> None:
    for part in parts:
        with storage.engine.begin() as connection:
            rounds(storage).on_upload_block(connection, device, part, now)


def answer(storage: Storage, device: str, body: RoundReply, now: float = NOW) -> None:
    with storage.engine.begin() as connection:
        rounds(storage).on_round_reply(connection, device, body, now)


@pytest.fixture
def run(storage: Storage):
    add_devices(storage, register(storage), "a", "b", "c")
    return launch(storage)


def test_a_launched_run_is_a_queued_job_on_the_devices_that_serve_the_model(storage, run):
    with storage.engine.begin() as connection:
        job = connection.execute(select(jobs.c.kind, jobs.c.spec).where(jobs.c.id == run.job)).one()
    assert tuple(job) == ("rounds", {"run": run.id})
    assert (run.version, run.cohort, run.state) == (1, ["a", "b", "c"], "queued")


def test_a_run_starts_from_the_newest_version_that_the_cohort_serves(storage):
    add_devices(storage, register(storage), "a", "b")
    add_devices(storage, register(storage, version=2, now=1.0), "c", version=2)
    assert launch(storage, "a,b,c").cohort == ["c"]
    assert launch(storage, "a,b").version == 1


def test_a_second_run_on_the_same_bundle_must_wait(storage, run):
    with pytest.raises(ConflictError, match=run.id):
        launch(storage)
    with storage.engine.begin() as connection:
        rounds(storage).cancel(connection, run.id, NOW)
    assert launch(storage).id != run.id


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"rounds": 0}, "rounds = 0"), ({"epoch": 1}, "epoch"), ({"learning_rate": "fast"}, "learning_rate")],
)
def test_settings_that_make_no_sense_are_named(storage, settings, said):
    add_devices(storage, register(storage), "a")
    with pytest.raises(InvalidError, match=said):
        launch(storage, "a", **settings)


def test_too_small_a_cohort_is_refused(storage):
    add_devices(storage, register(storage), "a", "b")
    with pytest.raises(InvalidError, match="fewer than 3"):
        launch(storage, "a,b", smallest=3)


def test_a_cohort_that_does_not_serve_the_model_is_refused(storage):
    register(storage)
    with pytest.raises(NotFoundError, match="roll it out first"):
        launch(storage, "a")


def test_an_update_comes_in_any_order_before_or_after_its_reply(storage, run):
    data = bytes(range(256)) * 1100  # three blocks
    ids = instruct(storage, run, "a", "b")
    parts = blocks(data)
    upload(storage, "a", parts[2], parts[0], parts[0], parts[1])
    answer(storage, "a", reply(ids["a"], weights=parts[0].blob))
    mailbox = SqlMailbox(storage)
    assert mailbox.collect([ids["a"]])[ids["a"]].weights == data
    answer(storage, "b", reply(ids["b"], weights=parts[0].blob))
    assert mailbox.collect([ids["b"]]) == {}
    upload(storage, "b", *parts)
    assert mailbox.collect([ids["b"]])[ids["b"]].weights == data
    with storage.engine.begin() as connection:
        assert connection.execute(select(uploads.c.block)).all() == []


def test_naming_the_update_of_another_device_is_not_enough(storage, run):
    ids = instruct(storage, run, "a", "b")
    (part,) = blocks(b"update of a")
    upload(storage, "a", part)
    answer(storage, "b", reply(ids["b"], weights=part.blob))
    assert SqlMailbox(storage).collect([ids["b"]]) == {}


def test_an_update_that_is_not_what_its_digest_says_becomes_an_error(storage, run):
    ids = instruct(storage, run, "a")
    forged = UploadBlock(blob=BlobRef("0" * 64, 5), index=0, count=1, data=b"wrong")
    answer(storage, "a", reply(ids["a"], weights=forged.blob))
    upload(storage, "a", forged)
    letter = SqlMailbox(storage).collect([ids["a"]])[ids["a"]]
    assert "digest" in letter.error
    assert letter.weights is None


def test_an_abandoned_update_gives_way_to_the_next(storage, run):
    instruct(storage, run, "a")
    upload(storage, "a", blocks(b"x" * 200_000)[0])
    upload(storage, "a", blocks(b"y" * 200_000)[0])
    with storage.engine.begin() as connection:
        kept = connection.execute(select(uploads.c.sha256)).scalars().all()
    assert kept == [round_state.digest(b"y" * 200_000)]


def test_blocks_that_do_not_fit_are_refused(storage, run):
    instruct(storage, run, "a")
    good = blocks(b"x" * 200_000)[0]
    for bad in (
        msgspec.structs.replace(good, index=2),
        msgspec.structs.replace(good, count=3),
        msgspec.structs.replace(good, data=b"short"),
        blocks(b"x" * 500_000)[0],
    ):
        with pytest.raises(InvalidError):
            upload(storage, "a", bad)


def test_an_update_that_nobody_waits_for_is_refused(storage, run):
    with pytest.raises(DeniedError):
        upload(storage, "a", *blocks(b"x"))
    instruct(storage, run, "a")
    with pytest.raises(DeniedError):
        upload(storage, "b", *blocks(b"x"))
    with pytest.raises(DeniedError):
        upload(storage, "a", *blocks(b"x"), now=NOW + 61)


def test_a_device_cannot_fill_the_disk_with_updates(storage, run):
    instruct(storage, run, "a")
    deliver(storage)
    for number in range(3):
        upload(storage, "a", *blocks(bytes([number])))
    with pytest.raises(DeniedError, match="updates"):
        upload(storage, "a", *blocks(b"again"))
    upload(storage, "a", *blocks(bytes([0])))  # what it has sent already changes nothing


def deliver(storage: Storage, now: float = NOW) -> None:
    with storage.engine.begin() as connection:
        service = rounds(storage)
        service.sent(connection, [instruction.id for _, instruction in service.due(connection, now)], now)


def test_replies_to_what_was_never_given_or_to_another_or_too_late_do_not_count(storage, run):
    ids = instruct(storage, run, "a", "b", kind="evaluate")
    with pytest.raises(NotFoundError):
        answer(storage, "a", reply("nothing"))
    with pytest.raises(DeniedError):
        answer(storage, "b", reply(ids["a"]))
    with pytest.raises(ConflictError):
        answer(storage, "a", reply(ids["a"]), now=NOW + 61)
    answer(storage, "b", reply(ids["b"], error="first"))
    answer(storage, "b", reply(ids["b"], error="second"))
    assert SqlMailbox(storage).collect([ids["b"]])[ids["b"]].error == "first"


def test_hello_brings_again_what_was_sent_and_not_answered(storage, run):
    ids = instruct(storage, run, "a", "b", kind="evaluate")
    service = rounds(storage)
    with storage.engine.begin() as connection:
        assert service.unanswered(connection, "a", NOW) == []
        service.sent(connection, ids.values(), NOW)
        assert service.due(connection, NOW) == []
        assert [each.id for each in service.unanswered(connection, "a", NOW)] == [ids["a"]]
        assert service.unanswered(connection, "a", NOW + 61) == []
    answer(storage, "a", reply(ids["a"]))
    with storage.engine.begin() as connection:
        assert service.unanswered(connection, "a", NOW) == []


def test_a_device_may_fetch_only_the_weights_of_its_own_open_instructions(storage, run):
    ids = instruct(storage, run, "a", kind="evaluate")
    service = rounds(storage)
    with storage.engine.begin() as connection:
        ((_, given),) = service.due(connection, NOW)
        sha256 = given.weights.sha256
        assert service.may_fetch(connection, "a", sha256, NOW)
        assert not service.may_fetch(connection, "b", sha256, NOW)
        assert not service.may_fetch(connection, "a", "0" * 64, NOW)
        assert not service.may_fetch(connection, "a", sha256, NOW + 61)
    answer(storage, "a", reply(ids["a"]))
    with storage.engine.begin() as connection:
        assert not service.may_fetch(connection, "a", sha256, NOW)


def test_cancelling_ends_the_run_its_job_and_its_instructions(storage, run):
    ids = instruct(storage, run, "a")
    service = rounds(storage)
    with storage.engine.begin() as connection:
        assert service.cancel(connection, run.id, NOW).state == "cancelled"
        assert service.due(connection, NOW) == []
        assert connection.execute(select(jobs.c.cancelled_at)).scalar() == NOW
        with pytest.raises(ConflictError, match="ended"):
            service.cancel(connection, run.id, NOW)
    with pytest.raises(ConflictError):
        answer(storage, "a", reply(ids["a"], error="late"))


def test_a_run_whose_job_was_killed_too_often_fails(storage, run):
    with storage.engine.begin() as connection:
        connection.execute(jobs.update().values(state="failed", error="started 3 times"))
    service = rounds(storage)
    service.tick(NOW)
    with storage.engine.begin() as connection:
        found = service.status(connection, run.id).run
    assert (found.state, found.error) == ("failed", "started 3 times")
