from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from contract import codec, limits
from contract.errors import WireError
from contract.messages import BundleRef, Command, CommandReply
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet.device_commands import Commands
from coordinator.fleet.tables import devices
from coordinator.registry.tables import bundles, model_versions, models, variants
from coordinator.signing.tables import signing_requests
from tests.fakes.fleet_site import Site
from tests.fakes.measurements import MEASURED


class Stage(Site):
    def __init__(self, state: Path, database: str) -> None:
        super().__init__(state, database=database)
        self.commands = Commands(self.storage, clock=lambda: self.now)
        self.enrol("meter-1")
        self.enrol("meter-2")

    def due(self) -> list[tuple[str, Command]]:
        with self.engine.begin() as connection:
            return self.commands.due(connection, self.now)

    def unanswered(self, device: str = "meter-1") -> list[Command]:
        with self.engine.begin() as connection:
            return self.commands.unanswered(connection, device, self.now)

    def answer(self, command: str, error: str = "", content: bytes = b"", device: str = "meter-1") -> None:
        with self.engine.begin() as connection:
            body = CommandReply(command=command, error=error, content=content)
            self.commands.on_reply(connection, device, body, self.now)


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Iterator[Stage]:
    made = Stage(tmp_path, database)
    yield made
    made.close()


def test_a_command_is_sent_until_it_is_answered(stage):
    made = stage.commands.set_log_level("meter-1", "debug", 60.0)
    ((device, command),) = stage.due()
    assert (device, command.kind, command.level, command.seconds) == ("meter-1", "log-level", "debug", 60.0)
    with stage.engine.begin() as connection:
        stage.commands.sent(connection, [command.id], stage.now)
    assert stage.due() == []
    assert stage.unanswered() == [command]
    assert stage.unanswered("meter-2") == []
    stage.answer(made.id, "cannot")
    assert stage.unanswered() == []
    (found,) = stage.commands.history("meter-1")
    assert (found.error, found.answered_at) == ("cannot", stage.now)


def test_a_command_that_nobody_answers_expires(stage):
    stage.commands.diagnose("meter-1")
    stage.now += 3601
    assert stage.due() == []
    assert stage.unanswered() == []


def test_an_archive_is_a_blob_and_a_second_answer_changes_nothing(stage):
    made = stage.commands.diagnose("meter-1")
    with pytest.raises(NotFoundError, match="no archive"):
        stage.commands.archive("meter-1", made.id)
    stage.answer(made.id, content=b"zip")
    stage.answer(made.id, content=b"another")
    assert stage.commands.archive("meter-1", made.id) == b"zip"
    assert stage.commands.get("meter-1", made.id).size == 3
    with pytest.raises(NotFoundError):
        stage.commands.archive("meter-2", made.id)


def test_answers_that_do_not_fit_are_refused(stage):
    level, archive = stage.commands.set_log_level("meter-1", "debug", 1.0), stage.commands.diagnose("meter-1")
    with pytest.raises(NotFoundError, match="never given"):
        stage.answer("made up")
    with pytest.raises(DeniedError, match="another device"):
        stage.answer(level.id, device="meter-2")
    with pytest.raises(InvalidError, match="1 bytes in answer to log-level"):
        stage.answer(level.id, content=b"x")
    with pytest.raises(InvalidError, match="bytes in answer"):
        stage.answer(archive.id, content=b"x" * (limits.DIAGNOSTICS_BYTES + 1))


def test_only_enrolled_devices_are_asked_and_only_for_what_there_is(stage):
    stage.fleet.add("meter-3")
    with pytest.raises(NotFoundError):
        stage.commands.diagnose("meter-3")
    stage.fleet.revoke("meter-2", "lost")
    with pytest.raises(NotFoundError):
        stage.commands.diagnose("meter-2")
    for level, seconds in (("loud", 1.0), ("debug", 0.0), ("debug", float("nan")), ("debug", 1e9)):
        with pytest.raises(InvalidError):
            stage.commands.set_log_level("meter-1", level, seconds)


def test_a_device_that_is_away_does_not_collect_commands_without_end(stage):
    for _ in range(16):
        stage.commands.diagnose("meter-1")
    with pytest.raises(ConflictError, match="is it connected"):
        stage.commands.diagnose("meter-1")


BUNDLE = BundleRef(model="m", version=1, variant="int8", target="bundles/m/1/int8", sha256="b" * 64)


def register(stage: Stage, *, state: str) -> None:
    """A bundle and its signing request, as the registry and the signer leave them."""
    with stage.engine.begin() as connection:
        connection.execute(models.insert().values(name="m", created_at=1.0, last_version=1))
        version = {
            "model": "m",
            "version": 1,
            "created_at": 1.0,
            "task": "t",
            "weights_sha256": "w" * 64,
            "metrics": {},
        }
        version |= {"metrics": {}, "parents": [], "details": {}, "identity": "i"}
        connection.execute(model_versions.insert().values(**version))
        variant = {"model": "m", "version": 1, "name": "int8", "tflite_sha256": "a" * 64, "report": {}, "gate": {}}
        connection.execute(variants.insert().values(**variant, created_at=1.0))
        fields = {name: getattr(BUNDLE, name) for name in BUNDLE.__struct_fields__}
        connection.execute(bundles.insert().values(**fields, size=10, created_at=1.0))
        asked = {"id": "s", "bundle_sha256": BUNDLE.sha256, "target": BUNDLE.target, "size": 10, "custom": {}}
        connection.execute(signing_requests.insert().values(**asked, state=state, reason="", created_at=1.0))


def test_a_measurement_of_a_signed_bundle_is_kept_for_the_device_s_hardware_class(stage: Stage) -> None:
    register(stage, state="signed")
    asked = stage.commands.bench("meter-1", BUNDLE.sha256)
    assert asked.bundle == BUNDLE
    ((device, command),) = stage.due()
    assert (device, command.kind, command.bundle) == ("meter-1", "bench", BUNDLE)
    stage.answer(asked.id, content=codec.encode_json(MEASURED))
    stage.answer(asked.id, content=codec.encode_json(msgspec.structs.replace(MEASURED, p95_us=99.0)))  # again: nothing
    stage.now += 1
    later = stage.commands.bench("meter-2", BUNDLE.sha256)
    stage.answer(later.id, content=codec.encode_json(MEASURED), device="meter-2")
    newest, first = stage.commands.measurements("a" * 64)
    assert (newest.id, newest.device) == (later.id, "meter-2")
    assert (first.id, first.measured, first.artifact_sha256) == (asked.id, MEASURED, "a" * 64)
    assert first.hardware_class == newest.hardware_class != ""
    assert stage.commands.measurements("c" * 64) == []
    assert stage.commands.get("meter-1", asked.id).answered_at is not None


def test_devices_are_asked_for_signed_bundles_only(stage: Stage) -> None:
    with pytest.raises(NotFoundError, match="fieldfare models bundles"):
        stage.commands.bench("meter-1", BUNDLE.sha256)
    register(stage, state="pending")
    with pytest.raises(ConflictError, match="not signed"):
        stage.commands.bench("meter-1", BUNDLE.sha256)
    assert stage.due() == []


def test_a_refusal_to_measure_is_kept_as_an_error_and_is_no_measurement(stage: Stage) -> None:
    register(stage, state="signed")
    asked = stage.commands.bench("meter-1", BUNDLE.sha256)
    stage.answer(asked.id, error="the device is busy with training; ask again later")
    assert "busy" in stage.commands.get("meter-1", asked.id).error
    assert stage.commands.measurements("a" * 64) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"x" * (limits.MEASURED_BYTES + 1),
        codec.encode_json(msgspec.structs.replace(MEASURED, p50_us=-1.0)),
        codec.encode_json(MEASURED).replace(b"12.0", b"1e999"),
    ],
)
def test_an_answer_that_is_no_measurement_is_refused_and_nothing_is_kept(stage: Stage, content: bytes) -> None:
    register(stage, state="signed")
    asked = stage.commands.bench("meter-1", BUNDLE.sha256)
    with pytest.raises((InvalidError, WireError)):
        stage.answer(asked.id, content=content)
    assert stage.commands.measurements("a" * 64) == []


def test_a_device_of_no_class_measures_for_the_generic_one(stage: Stage) -> None:
    register(stage, state="signed")
    asked = stage.commands.bench("meter-1", BUNDLE.sha256)
    with stage.engine.begin() as connection:
        connection.execute(devices.update().values(hardware_class=""))
    stage.answer(asked.id, content=codec.encode_json(MEASURED))
    assert [each.hardware_class for each in stage.commands.measurements("a" * 64)] == ["generic"]
