import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.messages import BundleRef
from edge_agent import logs
from tests.fakes.agent_folder import Datagrams

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"
LOG = logging.getLogger("edge_agent.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Datagrams]:
    made = Datagrams(str(tmp_path / "journal"))
    yield made
    made.close()


def log_failure(text: str) -> None:
    try:
        int(text)
    except ValueError:
        LOG.exception("failed")


def taken_apart(datagram: bytes) -> dict[str, str]:
    """The journal's own reading of an entry."""
    fields = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        key, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        fields[key.decode()] = value.decode()
    return fields


def test_the_journal_gets_native_fields(journal, tmp_path):
    logs.configure("journal", "info", journal=str(tmp_path / "journal"))
    LOG.warning("slot %s is lost", "a", extra={"fields": {"slot": "a", "bytes": 7}})
    LOG.debug("not said at this level")
    (entry,) = journal.read()
    fields = taken_apart(entry)
    assert fields["MESSAGE"] == "slot a is lost"
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("4", "edge-agent")
    assert (fields["LOGGER"], fields["FIELDFARE_SLOT"], fields["FIELDFARE_BYTES"]) == ("edge_agent.test", "a", "7")
    assert fields["CODE_FILE"] == __file__


def test_an_exception_of_many_lines_stays_one_entry(journal, tmp_path):
    logs.configure("journal", "info", journal=str(tmp_path / "journal"))
    log_failure("to mend")
    fields = taken_apart(journal.read()[0])
    assert fields["MESSAGE"].startswith("failed\nTraceback")
    assert "to mend" in fields["MESSAGE"]
    assert fields["PRIORITY"] == "3"


def test_an_event_is_an_entry_with_its_fields(journal, tmp_path):
    logs.configure("journal", "info", journal=str(tmp_path / "journal"))
    ref = BundleRef(model="thirds", version=3, variant="int8", target="t", sha256="s")
    logs.told("refused", bundle=ref, rollout=None, reason="too large")
    fields = taken_apart(journal.read()[0])
    assert fields["MESSAGE"] == "refused: bundle thirds:3 int8, rollout null, reason too large"
    assert fields["FIELDFARE_EVENT"] == "refused"
    assert json.loads(fields["FIELDFARE_BUNDLE"])["version"] == 3


def test_an_entry_larger_than_a_datagram_is_cut_and_arrives(journal, tmp_path):
    logs.configure("journal", "info", journal=str(tmp_path / "journal"))
    LOG.error("x" * 1_000_000)
    assert len(taken_apart(journal.read()[0])["MESSAGE"]) == 32 * 1024


def test_without_a_journal_the_entry_goes_to_standard_error(tmp_path, capsys):
    logs.configure("journal", "info", journal=str(tmp_path / "none"))
    LOG.error("said all the same")
    assert json.loads(capsys.readouterr().err)["message"] == "said all the same"


def test_auto_is_the_journal_only_where_standard_error_leads_there(journal, tmp_path, monkeypatch):
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        logs.configure("auto", "info", stream=stream, journal=str(tmp_path / "journal"))
        LOG.info("to the journal")
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        logs.configure("auto", "info", stream=stream, journal=str(tmp_path / "journal"))
        LOG.info("to the stream")
    assert len(journal.read()) == 1
    assert "to the stream" in (tmp_path / "stream").read_text()


def test_json_lines_hold_the_fields_and_no_field_may_pass_for_another():
    stream = io.StringIO()
    logs.configure("json", "info", stream=stream)
    LOG.info("hello", extra={"fields": {"size": 3, "level": "forged", "path": Path("x")}})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["size"], line["level"], line["path"]) == ("hello", 3, "info", "x")


@pytest.mark.parametrize("style", ["text", "json", "journal"])
def test_a_key_or_a_bearer_token_is_never_logged(style, journal, tmp_path):
    stream = io.StringIO()
    ring = logs.configure(style, "info", stream=stream, journal=str(tmp_path / "journal"))
    LOG.error("got %s", KEY, extra={"fields": {"header": "Authorization: Fieldfare-Device abc.def"}})
    LOG.error("sent Authorization: Bearer s3cr3t")
    log_failure(f"-{KEY}")
    everything = stream.getvalue() + ring.text() + b"".join(journal.read()).decode(errors="replace")
    assert "***" in everything
    assert "MHcCAQEE" not in everything
    assert "abc.def" not in everything
    assert "s3cr3t" not in everything
    assert json.loads(ring.text().splitlines()[0])["header"] == "Authorization: Fieldfare-Device ***"


def test_the_level_can_change_while_it_runs():
    stream = io.StringIO()
    logs.configure("text", "warning", stream=stream)
    LOG.debug("one")
    logs.set_level("debug")
    LOG.debug("two")
    assert "one" not in stream.getvalue()
    assert "DEBUG edge_agent.test: two" in stream.getvalue()


def test_the_memory_of_the_log_is_bounded_and_starts_with_the_oldest_it_has():
    ring = logs.Ring(lines=3, line_bytes=60)
    for index in range(5):
        ring.handle(logging.LogRecord("n", logging.INFO, "f", 1, "entry %d " + "x" * 500, (index,), None))
    lines = ring.text().splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 60 for line in lines)
    ring = logs.Ring()
    ring.handle(logging.LogRecord("n", logging.INFO, "f", 1, "entry", (), None))
    assert json.loads(ring.text())["message"] == "entry"


def test_a_log_call_that_cannot_be_written_raises_nothing(journal, tmp_path, monkeypatch):
    logs.configure("journal", "info", journal=str(tmp_path / "journal"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    LOG.info("%d", "no number")
    journal.close()
    LOG.info("the journal went away")
    assert "the journal went away" in sys.stderr.getvalue()  # type: ignore[attr-defined]
