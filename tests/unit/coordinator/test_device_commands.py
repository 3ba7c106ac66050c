from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import limits
from contract.messages import Command, CommandReply
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet.device_commands import Commands
from tests.fakes.fleet_site import Site


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
