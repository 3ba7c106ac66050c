"""Enrolment against a real HTTPS server, and the command line around it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contract import signatures
from coordinator import pki
from edge_agent import config, signing, status
from edge_agent.cli import main
from edge_agent.enrol import enrol, enrol_again
from edge_agent.errors import ConfigError, EnrolmentError
from edge_agent.identity import Identity
from tests.fakes.enrolment_api import TOKEN, Api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    running = Api(tmp_path_factory.mktemp("api"))
    yield running
    running.stop()


def _enrol(api: Api, root: Path, **change: object) -> config.Config:
    options = {"device": "meter-1", "url": api.url, "ca": api.ca, "token": TOKEN, "hardware_class": "x86-64"}
    return enrol(root, **(options | change))  # type: ignore[arg-type]  # the options of one call


def test_enrolment_writes_a_folder_that_an_agent_can_run_from(api: Api, tmp_path: Path) -> None:
    made = _enrol(api, tmp_path / "agent")
    folder = config.Folder(tmp_path / "agent")
    assert config.load(folder) == made
    assert (made.device, made.broker_port, made.hardware_class) == ("meter-1", 8883, "x86-64")
    assert made.url == api.url
    assert folder.tuf_root.read_bytes() == b'{"signed": {}}'
    assert folder.source(made).is_dir()
    for secret in (folder.key, folder.enrolment):
        assert secret.stat().st_mode & 0o077 == 0
    signatures.verify(folder.certificate.read_bytes(), b"payload", signing.sign(folder.key, b"payload"))
    claim, *signed = signatures.read_token(signing.token(folder, "blobs"))
    signatures.verify(folder.certificate.read_bytes(), *signed)
    assert (claim.device, claim.audience) == ("meter-1", "blobs")
    assert 0 < claim.not_after - time.time() <= signing.TOKEN_S
    assert "PRIVATE" not in json.dumps(api.requests)
    assert TOKEN not in "".join(path.read_text() for path in folder.root.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="enrolled already"):
        _enrol(api, tmp_path / "agent")


def test_a_refusal_is_told_in_the_coordinators_words_and_a_second_try_uses_the_same_key(
    api: Api, tmp_path: Path
) -> None:
    with pytest.raises(EnrolmentError, match=r"refused \(403\): this enrolment token is unknown"):
        _enrol(api, tmp_path, token="wrong")
    key = config.Folder(tmp_path).key.read_bytes()
    _enrol(api, tmp_path)
    assert config.Folder(tmp_path).key.read_bytes() == key


def test_a_server_of_another_authority_is_not_given_the_token(api: Api, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    before = len(api.requests)
    with pytest.raises(EnrolmentError, match="cannot reach the coordinator"):
        _enrol(api, tmp_path / "agent", ca=tmp_path / "other" / "pki" / "ca.crt")
    assert len(api.requests) == before


def test_a_certificate_for_somebody_else_is_not_taken(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _enrol(api, tmp_path / "first")
    stolen = config.Folder(tmp_path / "first").certificate.read_text()
    assert other.device == "meter-1"
    honest = api.answer
    monkeypatch.setattr(api, "answer", lambda path, request: (201, honest(path, request)[1] | {"certificate": stolen}))
    with pytest.raises(EnrolmentError, match="not for this device's key"):
        _enrol(api, tmp_path / "second")
    assert not config.Folder(tmp_path / "second").config.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"device": "Meter 1"}, ConfigError),
        ({"device": "coordinator"}, ConfigError),
        ({"url": "http://127.0.0.1:1"}, ConfigError),
        ({"url": "https://127.0.0.1:port"}, ConfigError),
        ({"url": "https://[::1"}, ConfigError),
        ({"url": "https://127.0.0.1:1"}, EnrolmentError),
        ({"ca": Path("/nowhere/ca.crt")}, ConfigError),
    ],
)
def test_options_that_cannot_work_get_a_sentence(
    api: Api, tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        _enrol(api, tmp_path / "agent", **change)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\x00"])
def test_a_key_that_cannot_be_read_gets_a_sentence(api: Api, tmp_path: Path, content: bytes) -> None:
    key = config.Folder(tmp_path).key
    key.parent.mkdir()
    key.write_bytes(content)
    with pytest.raises(ConfigError, match=r"device\.key cannot be read as a key"):
        _enrol(api, tmp_path)


def test_a_token_file_that_is_no_text_is_an_unknown_token(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00")
    command = ["enrol", "--state", str(tmp_path / "agent"), "--device", "meter-1", "--url", api.url]
    assert main([*command, "--ca", str(api.ca), "--token-file", str(tmp_path / "token")]) == 1
    assert "refused (403)" in capsys.readouterr().err


def test_the_command_enrols_and_status_speaks_before_the_first_run(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "agent")
    command = ["enrol", "--state", root, "--device", "meter-1", "--url", api.url, "--ca", str(api.ca), "--json"]
    monkeypatch.delenv("FIELDFARE_TOKEN", raising=False)
    assert main(command) == 1
    assert "no token" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "FIELDFARE_TOKEN", TOKEN)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"device": "meter-1", "broker": "127.0.0.1:8883"}
    assert main(["status", "--state", root, "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out, type=status.Status)
    assert (told.device, told.running, told.models, told.pending_reports) == ("meter-1", False, {}, 0)
    assert main(["status", "--state", root]) == 0
    assert "serves           nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("device = 3", "device"),
        ("not toml", "agent.toml"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\ncolour = "red"', "colour"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\nhello_s = 0.0', "hello_s must be greater than 0"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\npoll_s = inf', "poll_s must be greater than 0 and finite"),
        (
            'device = "a"\nbroker_host = "h"\nbroker_port = 1\nretry_s = nan',
            "retry_s must be greater than 0 and finite",
        ),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 0', "from 1 to 65535"),
        ('device = "Meter 1"\nbroker_host = "h"\nbroker_port = 1', "device name 'Meter 1'"),
    ],
)
def test_a_configuration_that_makes_no_sense_names_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    folder = config.Folder(tmp_path)
    folder.config.write_text(content)
    with pytest.raises(ConfigError, match=message):
        config.load(folder)


def test_a_device_is_enrolled_anew_and_keeps_everything_but_its_certificate(api: Api, tmp_path: Path) -> None:
    made = _enrol(api, tmp_path)
    folder = config.Folder(tmp_path)
    with folder.config.open("a") as file:
        file.write("\n# the owner's own words\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert enrol_again(tmp_path, token=TOKEN) == made
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == {"device.crt"}
    assert after.keys() == before.keys()
    enrol_again(tmp_path, token=TOKEN, new_key=True)
    assert folder.key.read_bytes() != before[folder.key]
    Identity("meter-1", folder).tls()  # they belong together
    assert not folder.new_key.exists()


def test_enrolling_anew_that_fails_leaves_everything_as_it_was(api: Api, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no agent here"):
        enrol_again(tmp_path, token=TOKEN)
    _enrol(api, tmp_path)
    folder = config.Folder(tmp_path)
    before = folder.key.read_bytes(), folder.certificate.read_bytes()
    with pytest.raises(EnrolmentError, match="403"):
        enrol_again(tmp_path, token="wrong", new_key=True)
    with pytest.raises(EnrolmentError, match="cannot reach"):
        enrol_again(tmp_path, token=TOKEN, url="https://127.0.0.1:1")
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="stop it first"):
            enrol_again(tmp_path, token=TOKEN)
    Identity("meter-1", folder).tls()
    assert (folder.key.read_bytes(), folder.certificate.read_bytes()) == before


def test_a_new_key_of_a_try_that_failed_does_not_take_the_place_of_the_one_that_is_kept(
    api: Api, tmp_path: Path
) -> None:
    _enrol(api, tmp_path)
    folder = config.Folder(tmp_path)
    key = folder.key.read_bytes()
    with pytest.raises(EnrolmentError, match="403"):
        enrol_again(tmp_path, token="wrong", new_key=True)
    enrol_again(tmp_path, token=TOKEN)
    Identity("meter-1", folder).tls()
    assert folder.key.read_bytes() == key
    assert not folder.new_key.exists()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_a_new_key_takes_its_place_leaves_a_pair_that_belongs_together(
    api: Api, tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _enrol(api, tmp_path)
    folder = config.Folder(tmp_path)
    left = [moves]
    move = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target in {folder.key, folder.certificate} and self in {folder.new_key, folder.new_certificate}:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return move(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        if moves < 2:
            with pytest.raises(KeyboardInterrupt):
                enrol_again(tmp_path, token=TOKEN, new_key=True)
        else:
            enrol_again(tmp_path, token=TOKEN, new_key=True)
    Identity("meter-1", folder).tls()
    assert sorted(path.name for path in folder.key.parent.iterdir()) == ["ca.crt", "device.crt", "device.key"]


def test_the_command_says_what_does_not_go_together(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDFARE_TOKEN", TOKEN)
    state = ["enrol", "--state", str(tmp_path / "agent")]
    first = ["--device", "meter-1", "--url", api.url, "--ca", str(api.ca)]
    for options, sentence in (
        ([], "give --device, --url, --ca"),
        (["--again"], "no agent here"),
        (["--again", "--device", "meter-1"], "--again keeps"),
        ([*first, "--new-key"], "goes with --again"),
        ([*first, "--key", "tpm"], "URI of a key in a token"),
        ([*first, "--key", "pkcs11:object=a;pin-value=1"], "pin-source"),
        ([*first, "--key", "pkcs11:token=none"], "the key in the token cannot be used"),
        (["--again", "--new-key", "--key", "pkcs11:token=none"], "leave it away"),
    ):
        assert main([*state, *options]) == 1
        assert sentence in capsys.readouterr().err
    assert main([*state, *first]) == 0
    assert main([*state, "--again", "--new-key"]) == 0
    assert "meter-1 is enrolled" in capsys.readouterr().out
    assert main(["status", *state[1:]]) == 0
    assert "certificate      good until" in capsys.readouterr().out


def test_status_says_that_a_certificate_has_expired_and_what_to_do(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _enrol(api, tmp_path)
    folder = config.Folder(tmp_path)
    past = datetime.now(UTC) - timedelta(days=40)
    folder.certificate.write_bytes(api.authority.renew(folder.certificate.read_bytes(), "meter-1", days=30, now=past))
    assert main(["status", "--state", str(tmp_path)]) == 0
    assert "EXPIRED" in (said := capsys.readouterr().out)
    assert "edge-agent enrol --again" in said
    folder.certificate.write_bytes(b"")
    assert main(["status", "--state", str(tmp_path)]) == 0
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_root_leaves_no_file_in_another_users_folder_that_its_agent_could_not_read(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDFARE_TOKEN", TOKEN)
    _enrol(api, tmp_path)
    os.chown(tmp_path, 65534, 65534)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    state = ["--state", str(tmp_path)]
    for command in (
        ["enrol", *state, "--again"],
        ["run", *state],
        ["rollback", *state],
        ["samples", *state, "--forget"],
    ):
        assert main(command) == 1
        assert "belongs to nobody, and what root writes there its agent cannot read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
