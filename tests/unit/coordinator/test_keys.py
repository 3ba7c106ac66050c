"""Ceremonies as people hold them: `fieldfare keys` against a coordinator in production, and devices that follow."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from contract import bundle, targets
from coordinator import api, app, config, setup, supervisor
from coordinator.client import Client
from coordinator.errors import InvalidError, SetupError
from coordinator.files import read_token, write_private
from coordinator.roles import signer as signer_role
from coordinator.signing import ceremony, cli, keys, repository, signer, tokens
from coordinator.signing.secrets import asking
from coordinator.signing.signer import Policy, Signer
from edge_agent import trust
from edge_agent.errors import TrustError
from tests.fakes.api_server import serving
from tests.fakes.broker_process import eventually
from tests.fakes.fleet_site import make_bundle

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"


class Production:
    """A coordinator in production, with its API on a socket, and the folders of the people around it.

    Attributes:
        stick: the ceremony's folder, which travels.
        signer: the signer's folder, on its own machine.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.stick, self.signer = root / "stick", root / "signer"
        self.config = setup.init(self.state, overrides={"mode": "production"}, signer_state=self.state / "signer")
        self.services = app.compose(self.state)
        self.web = app.web(self.services, api.Tokens.load(self.state), started_at=5.0)
        url, ca = f"https://127.0.0.1:{self.config.api_port}", self.state / "pki" / "ca.crt"
        self.there = ["--url", url, "--ca", str(ca), "--token-file", str(self.state / "tokens" / "signer")]
        self.client = Client(url, ca, read_token(self.state / "tokens" / "signer"), retry_s=5.0)

    def run(self, *arguments: object, fails: bool = False) -> Result:
        done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert (done.exit_code != 0) is fails, f"{done.output} {done.exception!r}"
        return done

    def person(self, name: str) -> Path:
        """A holder's own folder, with a key of that name."""
        self.run("new", name, "--keys", self.root / name)
        return self.root / name

    def public(self, name: str) -> Path:
        return self.root / name / f"{name}.pub"

    def online(self, *options: str) -> list[object]:
        self.run("online", "--state", self.state, "--out", self.root / "online", *options)
        return [
            part
            for role in ("snapshot", "timestamp")
            for part in ("--online", f"{role}={self.root / 'online' / f'{role}.pub'}")
        ]

    def begin(self) -> None:
        """Alice and Bob hold root and targets, two of two."""
        for name in ("alice", "bob"):
            self.person(name)
        self.run("new", "signer", "--keys", self.signer / "keys")
        both = [part for name in ("alice", "bob") for part in ("--root-key", self.public(name))]
        both += [part for name in ("alice", "bob") for part in ("--targets-key", self.public(name))]
        bundles = ["--bundles-key", self.signer / "keys" / "signer.pub"]
        self.run("init", "--folder", self.stick, *both, *bundles, *self.online())

    def sign(self, *names: str) -> None:
        for name in names:
            self.run("sign", "--folder", self.stick, "--keys", self.root / name, "--yes")

    def publish(self, **options: Any) -> Result:
        return self.run("publish", "--folder", self.stick, "--signer-state", self.signer, *self.there, **options)

    def register(self, version: int) -> str:
        """A bundle that waits; its path in the repository."""
        content = make_bundle(version)
        blob = self.services.storage.blobs.put(content)
        path = bundle.target_path("digits", version, "int8", blob.sha256)
        custom = msgspec.to_builtins(targets.custom(bundle.unpack(content).manifest))
        with self.services.storage.engine.begin() as connection:
            self.services.signing.request(
                connection, sha256=blob.sha256, target=path, size=blob.size, custom=custom, now=time.time()
            )
        return path

    def approve(self) -> Result:
        (waiting,) = json.loads(self.run("waiting", *self.there, "--json").stdout)
        return self.run("approve", waiting["id"], "--signer-state", self.signer, "--yes", *self.there)

    @contextmanager
    def served(self) -> Iterator[None]:
        with serving(self.web, self.state, self.config.api_port):
            try:
                yield
            finally:
                self.client.close()
        self.services.storage.engine.dispose()

    def device(self, name: str) -> "Device":
        with self.services.storage.engine.begin() as connection:
            return Device(self, self.root / name, self.services.signing.root(connection))


class Device:
    """Asks its real child, over the coordinator's own store."""

    def __init__(self, site: Production, folder: Path, root: bytes) -> None:
        self.site, self.folder, self.root = site, folder, root

    def trusts(self, path: str) -> trust.Target:
        def fetch(name: str, _limit: int) -> bytes | None:
            with self.site.services.storage.engine.begin() as connection:
                return self.site.services.signing.metadata(connection, name)

        return trust.lookup(self.root, self.folder, path, fetch)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Production]:
    made = Production(tmp_path)
    with made.served():
        yield made


def test_a_root_of_two_people_is_published_when_both_have_signed_and_a_device_follows(site: Production) -> None:
    site.begin()
    site.sign("alice")
    refused = site.publish(fails=True)
    assert isinstance(refused.exception, InvalidError)
    assert "1.root.json needs 1 more signature(s) by root 1: bob" in str(refused.exception)
    assert not site.client.get("/v1/signing/repository", dict[str, Any])["initialised"]
    site.sign("bob")
    assert "1.bundles.json, 1.root.json, 1.targets.json" in site.publish().stdout
    path = site.register(1)
    device = site.device("device")
    with pytest.raises(TrustError, match="names no target"):
        device.trusts(path)
    approved = site.approve()
    assert "model" in approved.stdout
    assert f"signed {path}" in approved.stdout
    assert device.trusts(path).size == len(make_bundle(1))


def test_the_status_says_who_has_signed_and_who_is_missing(site: Production) -> None:
    site.begin()
    site.sign("bob")
    (root, targets_) = json.loads(site.run("status", "--folder", site.stick, "--json").stdout)
    assert (root["role"], root["version"], root["state"]) == ("root", 1, "staged")
    assert root["needs"] == [{"by": "root 1", "threshold": 2, "signed": ["bob"], "unsigned": ["alice"], "missing": 1}]
    assert 364 * 86400 < targets_["expires_at"] - time.time() <= 365 * 86400
    shown = site.run("status", "--folder", site.stick).stdout
    assert "1 of alice" in shown
    site.sign("alice")
    site.publish()
    states = [file["state"] for file in json.loads(site.run("status", "--folder", site.stick, "--json").stdout)]
    assert states == ["published", "published"]


def test_the_coordinators_machine_has_no_key_that_root_or_targets_or_bundles_trust(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    path = site.register(1)
    site.approve()
    device = site.device("device")
    device.trusts(path)
    chain = site.services.signing.chain()
    assert chain is not None
    trusted = {
        key.keyid
        for delegator, role in ((chain.root, "root"), (chain.root, "targets"), (chain.targets, "bundles"))
        for key in repository.holders(delegator, role).keys
    }
    stolen = [
        CryptoSigner(load_pem_private_key(file.read_bytes(), None))
        for file in (site.state / "pki" / "tuf").rglob("*.pem")
    ]
    assert len(stolen) == 2
    assert trusted.isdisjoint(key.public_key.keyid for key in stolen)
    assert not (site.state / "signer").exists()
    for key in stolen:  # a thief with all that the coordinator has
        evil = repository.add_target(
            chain.bundles, "bundles/evil/1/x", repository.Target(1, "0" * 64), custom={}, signer=key, now=time.time()
        )
        with site.services.storage.engine.begin() as connection:
            site.services.signing._put(connection, "3.bundles.json", evil, time.time())
            chain_ = chain._replace(bundles=evil)
            site.services.signing._publish(connection, chain_, time.time())
        with pytest.raises(TrustError, match="UnsignedMetadataError"):
            device.trusts("bundles/evil/1/x")


def test_a_holder_is_replaced_by_the_holders_before_and_after(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    device = site.device("device")
    site.person("carol")
    carol = ["--remove", "bob", "--add", site.public("carol")]
    site.run("rotate", "root", "--folder", site.stick, "--keys", site.root / "alice", *carol)
    (_, _, staged) = json.loads(site.run("status", "--folder", site.stick, "--json").stdout)
    assert [(need["by"], need["signed"], need["unsigned"]) for need in staged["needs"]] == [
        ("root 1", ["alice"], ["bob"]),
        ("root 2", ["alice"], ["carol"]),
    ]
    carol_id, bob_id = (keys.public(site.public(name)).keyid[:16] for name in ("carol", "bob"))
    told = CliRunner().invoke(
        cli.app, ["sign", "--folder", str(site.stick), "--keys", str(site.root / "carol")], input="n\n"
    )
    assert told.exit_code == 1
    (line,) = [line for line in told.output.splitlines() if line.startswith("  root: ")]
    assert f"carol {carol_id} (was 2 of alice" in line
    assert f"bob {bob_id})" in line
    site.sign("carol")
    assert "by root 1: bob" in str(site.publish(fails=True).exception)
    site.sign("bob")
    site.publish()
    path = site.register(1)
    site.approve()
    assert device.trusts(path).size > 0
    assert site.device("later").trusts(path).size > 0
    # bob is gone: alice and he cannot make the next
    site.run("rotate", "root", "--folder", site.stick, "--keys", site.root / "alice")
    site.sign("bob")
    assert "carol" in str(site.publish(fails=True).exception)


def test_targets_holders_are_replaced_with_a_root_and_targets_that_go_out_together(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    path = site.register(1)
    site.approve()
    device = site.device("device")
    device.trusts(path)
    site.person("carol")
    carol = ["--remove", "bob", "--add", site.public("carol")]
    site.run("rotate", "targets", "--folder", site.stick, "--keys", site.root / "alice", *carol)
    site.sign("bob", "carol")
    assert "2.root.json, 2.targets.json" in site.publish().stdout
    assert device.trusts(path).size > 0


def test_the_signers_key_is_replaced_and_what_was_signed_stays(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    first = site.register(1)
    site.approve()
    device = site.device("device")
    device.trusts(first)
    site.run("new", "second", "--keys", site.root / "other" / "keys")
    second = ["--add", site.root / "other" / "keys" / "second.pub"]
    site.run("rotate", "bundles", "--folder", site.stick, "--keys", site.root / "alice", *second)
    site.sign("bob")
    old, site.signer = site.signer, site.root / "other"
    assert site.publish().stdout == "published 2.targets.json, 3.bundles.json\n"
    assert device.trusts(first).size > 0
    path = site.register(2)
    with pytest.raises(SetupError, match="another signer"):
        Signer(old).begin(site.client, time.time())
    site.approve()
    assert device.trusts(path).size > 0
    assert device.trusts(first).size > 0


def test_stolen_online_keys_are_replaced_and_devices_follow(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    path = site.register(1)
    site.approve()
    device = site.device("device")
    device.trusts(path)
    site.online("--renew")
    for role in ("snapshot", "timestamp"):
        new = ["--add", site.root / "online" / f"{role}.pub"]
        site.run("rotate", role, "--folder", site.stick, "--keys", site.root / "alice", *new)
    told = CliRunner().invoke(cli.app, ["sign", "--folder", str(site.stick)], input="n\n")
    assert re.search(r"snapshot: 1 of snapshot-2 \w+ \(was 1 of snapshot \w+\)", told.output)
    site.sign("alice", "bob")
    site.publish()
    assert device.trusts(path).size > 0
    with site.services.storage.engine.begin() as connection:
        timestamp = site.services.signing.metadata(connection, "timestamp.json")
    assert timestamp is not None
    assert repository.signed_by(timestamp, keys.online(site.state / "pki" / "tuf", "timestamp")[1].public_key)


def test_a_root_for_another_coordinators_online_keys_is_refused(site: Production, tmp_path: Path) -> None:
    for role in ("snapshot", "timestamp"):
        site.run("new", role, "--keys", tmp_path / "foreign")
    online = [
        part for role in ("snapshot", "timestamp") for part in ("--online", f"{role}={tmp_path}/foreign/{role}.pub")
    ]
    site.run("init", "--folder", site.stick, "--keys", site.signer / "keys", *online)
    refused = site.publish(fails=True)
    assert "fieldfare keys online" in str(refused.exception)


def test_keys_made_in_the_ceremony_sign_at_once_two_of_three(site: Production) -> None:
    site.run("init", "--folder", site.stick, "--keys", site.signer / "keys", *site.online())
    status = json.loads(site.run("status", "--folder", site.stick, "--json").stdout)
    assert {(file["state"], file["needs"][0]["threshold"], len(file["needs"][0]["signed"])) for file in status} == {
        ("complete", 2, 3)
    }
    site.publish()


def test_encrypted_keys_need_their_passphrase(site: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFARE_PASSPHRASE", "correct horse")
    options = ["--folder", site.stick, "--keys", site.signer / "keys", "--encrypt"]
    site.run("init", *options, *site.online())
    pem = (site.signer / "keys" / "root-1.pem").read_bytes()
    assert b"ENCRYPTED" in pem
    with pytest.raises(SetupError, match="root-1"):
        keys.load(site.signer / "keys", "root-1")
    monkeypatch.setenv("FIELDFARE_PASSPHRASE", "wrong")
    site.run("rotate", "root", "--folder", site.stick, "--keys", site.signer / "keys", fails=True)
    secret = site.root / "passphrase"
    write_private(secret, b"correct horse\n")
    monkeypatch.delenv("FIELDFARE_PASSPHRASE")
    site.run("publish", "--folder", site.stick, "--signer-state", site.signer, *site.there, fails=True)
    site.run("sign", "--folder", site.stick, "--keys", site.signer / "keys", "--yes", "--passphrase-file", secret)
    done = site.run(
        "publish", "--folder", site.stick, "--signer-state", site.signer, *site.there, "--passphrase-file", secret
    )
    assert "1.bundles.json" in done.stdout
    monkeypatch.setenv("FIELDFARE_PASSPHRASE_FILE", str(secret))
    assert Signer(site.signer, ask=asking()).begin(site.client, time.time())


def test_no_offline_key_is_made_inside_a_coordinator_of_production(site: Production) -> None:
    for command in (
        ["new", "alice", "--keys", site.state / "keys"],
        ["init", "--folder", site.stick, "--keys", site.state / "keys", *site.online()],
    ):
        refused = site.run(*command, fails=True)
        assert isinstance(refused.exception, SetupError)
        assert "in production" in str(refused.exception)
    assert not list(site.state.rglob("root*.pem"))


def test_the_signers_role_does_not_run_beside_a_coordinator_of_production(site: Production) -> None:
    with pytest.raises(SetupError, match="--signer-here"):
        signer_role(site.state, site.signer)
    keys.create(site.state / "signer" / "keys", "root", passphrase=None)
    with pytest.raises(SetupError, match="must not have them"):
        setup.check_no_offline_keys(site.state / "signer")
    setup.check_no_offline_keys(site.signer)


def test_serve_in_production_makes_no_offline_keys_and_starts_no_signer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coordinator", "--state", str(tmp_path / "state")]
    subprocess.run([*command, "--production", "--init-only"], check=True, capture_output=True)
    settings = config.load(tmp_path / "state")
    assert settings.mode == "production"
    assert supervisor._names(settings, signer_here=False) == ["broker", "coordinator"]
    assert supervisor._names(settings, signer_here=True) == ["broker", "coordinator", "signer"]
    found = {path.name for path in tmp_path.rglob("*.pem")}
    assert not {name for name in found if name.startswith(("root", "targets", "bundles"))}
    refused = subprocess.run([*command, "--role", "signer"], check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "--signer-here" in refused.stderr


def test_a_signer_of_production_waits_for_the_ceremony(site: Production) -> None:
    keys.create(site.signer / "keys", "signer", passphrase=None)
    assert not Signer(site.signer).begin(site.client, time.time())
    assert site.services.signing.chain() is None


def test_a_person_signs_where_the_policy_says_so_and_may_refuse(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    assert Policy.load(site.signer).policy == "automatic"
    (site.signer / "signer.toml").write_text('policy = "person"\n')
    assert Policy.load(site.signer).policy == "person"
    (site.signer / "signer.toml").write_text('policy = "robot"\n')
    with pytest.raises(SetupError, match=r"signer\.toml"):
        Policy.load(site.signer)
    path = site.register(1)
    (waiting,) = site.client.signing_requests()
    declined = CliRunner().invoke(
        cli.app, ["approve", waiting.id, "--signer-state", str(site.signer), *site.there], input="n\n"
    )
    assert declined.exit_code == 1
    assert "digits" in declined.stdout
    assert len(site.client.signing_requests()) == 1
    site.run("refuse", waiting.id, "--reason", "not reviewed", *site.there)
    with pytest.raises(TrustError, match="names no target"):
        site.device("device").trusts(path)
    site.run("approve", waiting.id, "--signer-state", site.signer, "--yes", *site.there, fails=True)


@pytest.mark.parametrize("policy", ["automatic", "person"])
def test_the_signers_loop_signs_by_itself_only_where_the_policy_is_automatic(
    site: Production, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    site.begin()
    write_private(site.signer / "signer.toml", f'policy = "{policy}"\n'.encode())
    stop = threading.Event()
    ca, token = site.state / "pki" / "ca.crt", read_token(site.state / "tokens" / "signer")
    arguments = (site.signer, site.client.url, ca, token)
    loop = threading.Thread(target=signer.run, args=arguments, kwargs={"poll_s": 0.02, "stop": stop})
    loop.start()
    try:
        assert eventually(lambda: "has no root metadata yet" in caplog.text, 60)
        site.sign("alice", "bob")
        site.publish()
        path = site.register(1)
        said = "wait for a person" if policy == "person" else f"signed {path}"
        assert eventually(lambda: said in caplog.text, 60)
        assert len(site.client.signing_requests()) == (1 if policy == "person" else 0)
        if policy == "person":
            site.approve()
        assert site.device("device").trusts(path).size > 0
    finally:
        stop.set()
        loop.join()


def test_two_machines_with_the_signers_key_may_take_turns(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    here, there = site.signer, site.root / "there"
    shutil.copytree(here, there)
    paths = []
    for version, folder in enumerate([here, there, there, here], start=1):
        site.signer = folder
        paths.append(site.register(version))
        site.approve()
    # one signs and is killed before it hands in, the other goes on
    paths.append(site.register(5))
    (waiting,) = site.client.signing_requests()
    slow = Signer(here)
    slow.begin(site.client, time.time())
    slow.sign(waiting, site.client.signing_bundle(waiting.bundle_sha256), time.time())
    site.signer = there
    site.approve()
    site.signer = here
    paths.append(site.register(6))
    site.approve()
    device = site.device("device")
    for path in paths:
        assert device.trusts(path).size > 0


def test_a_coordinator_that_shows_an_older_state_does_not_make_the_signer_forget(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    site.register(1)
    site.approve()
    chain = site.services.signing.chain()
    assert chain is not None
    keeper = Signer(site.signer)
    keeper.begin(site.client, time.time())
    newest = (site.signer / "metadata" / "bundles.json").read_bytes()
    keeper._adopt(repository.first_bundles(keeper._signer, time.time()))
    assert (site.signer / "metadata" / "bundles.json").read_bytes() == newest
    with pytest.raises(SetupError, match="did not sign"):
        keeper._adopt(repository.renew_bundles(newest, CryptoSigner.generate_ed25519(), time.time()))
    assert (site.signer / "metadata" / "bundles.json").read_bytes() == newest


def test_the_bundles_metadata_is_renewed_long_before_it_expires(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    half_a_year = time.time() + 183 * 86400
    keeper = Signer(site.signer)
    assert keeper.begin(site.client, half_a_year)
    assert keeper.work(site.client, half_a_year) == 0
    chain = site.services.signing.chain()
    assert chain is not None
    version, expires = repository.version_and_expiry(chain.bundles)
    assert (version, expires > half_a_year + 300 * 86400) == (2, True)


def test_a_threshold_that_cannot_be_met_or_a_key_that_counts_twice_is_refused(site: Production) -> None:
    site.person("alice")
    mine = ["--keys", site.root / "mine"]
    one = ["--root-key", site.public("alice"), *mine]
    site.run("init", "--folder", site.stick, *one, *site.online(), fails=True)
    assert not (site.root / "mine").exists()
    twice = ["--root-key", site.public("alice"), "--root-key", site.public("alice"), *mine]
    done = site.run("init", "--folder", site.stick, *twice, *site.online(), fails=True)
    assert "two public keys have one file name" in " ".join(done.output.replace("│", " ").split())
    copy = site.root / "alice" / "eve.pub"
    shutil.copy(site.public("alice"), copy)
    twice = ["--root-key", site.public("alice"), "--root-key", copy, "--keys", site.root / "others"]
    assert "named twice" in str(
        site.run("init", "--folder", site.root / "s2", *twice, *site.online(), fails=True).exception
    )


def test_what_is_no_public_key_is_named(site: Production, tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text("{}")
    done = site.run(
        "init",
        "--folder",
        site.stick,
        "--root-key",
        tmp_path / "x.pub",
        "--root-threshold",
        1,
        *site.online(),
        fails=True,
    )
    assert "x.pub: no readable public key" in str(done.exception)


def test_a_published_root_cannot_be_exchanged_for_another(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    site.publish()
    site.run("init", "--folder", site.root / "other", "--keys", site.root / "mine", *site.online())
    other = site.run("publish", "--folder", site.root / "other", "--signer-state", site.signer, *site.there, fails=True)
    assert "does not verify" in str(other.exception) or "another" in str(other.exception)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a P-256 key in a SoftHSM token whose PIN is 5678."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    make = ["softhsm2-util", "--init-token", "--free", "--label", "ops", "--so-pin", "1234", "--pin", "5678"]
    subprocess.run(make, check=True, capture_output=True)
    code = """
import sys, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
with pkcs11.lib(sys.argv[1]).get_token(token_label="ops").open(user_pin="5678", rw=True) as session:
    curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    parameters.generate_keypair(id=bytes([2]), label="root", store=True)
"""
    subprocess.run([sys.executable, "-c", code, SOFTHSM], check=True)  # its own process: the module keeps its state
    return f"pkcs11:token=ops;id=%02?module-path={SOFTHSM}"


@pytest.mark.softhsm
def test_a_root_key_in_a_token_signs_and_devices_verify_it(
    site: Production, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.person("bob")
    site.run("new", "signer", "--keys", site.signer / "keys")
    monkeypatch.setenv("FIELDFARE_PIN", "5678")
    site.run("new", "alice", "--keys", site.root / "alice", "--pkcs11", token)
    assert sorted(path.name for path in (site.root / "alice").iterdir()) == ["alice.hsm", "alice.pub"]
    both = [part for name in ("alice", "bob") for part in ("--root-key", site.public(name))]
    both += ["--targets-key", site.public("alice"), "--targets-threshold", "1"]
    bundles = ["--bundles-key", site.signer / "keys" / "signer.pub"]
    site.run("init", "--folder", site.stick, *both, *bundles, *site.online())
    monkeypatch.setenv("FIELDFARE_PIN", "0000")
    wrong = ["sign", "--folder", site.stick, "--keys", site.root / "alice", "--yes"]
    assert "PinIncorrect" in str(site.run(*wrong, fails=True).exception)
    monkeypatch.setenv("FIELDFARE_PIN", "5678")
    site.sign("alice", "bob")
    site.publish()
    path = site.register(1)
    site.approve()
    assert site.device("device").trusts(path).size > 0


@pytest.mark.parametrize(
    "uri", ["hsm:2", "pkcs11:token=a;id=%02", "pkcs11:id=%02?module-path=/x", "pkcs11:token=a?module-path=/x", ""]
)
def test_an_uri_that_names_no_key_is_refused_with_an_example(uri: str) -> None:
    with pytest.raises(SetupError, match="pkcs11:token=LABEL"):
        tokens.parse_uri(uri)


def test_without_the_extra_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11.exceptions", None)
    with pytest.raises(SetupError, match=r"pip install 'fieldfare\[pkcs11\]'"):
        tokens.register(tmp_path, "a", f"pkcs11:token=a;id=%02?module-path={SOFTHSM}", lambda _what: "1")


def test_publishing_twice_changes_nothing(site: Production) -> None:
    site.begin()
    site.sign("alice", "bob")
    copy = site.root / "copy"
    shutil.copytree(site.stick, copy)
    site.publish()
    before = site.services.signing.chain()
    again = ceremony.publish(ceremony.Ceremony(copy), site.client, Signer(site.signer).key_of, time.time())
    assert again == ["1.root.json", "1.targets.json"]  # as after a kill between publishing and tidying up
    assert site.services.signing.chain() == before
    assert not list((copy / "staged").iterdir())


@pytest.mark.parametrize("name", ["../alice", "/tmp/alice", "", "Alice", "a" * 65])
def test_a_key_in_a_token_and_one_in_a_file_lie_in_their_folder_under_names_that_will_do(
    tmp_path: Path, name: str
) -> None:
    uri = "pkcs11:token=ops;id=%02?module-path=/no/such/module.so"
    with pytest.raises(SetupError, match="key name"):
        tokens.register(tmp_path / "keys", name, uri, lambda _: "1234")
    with pytest.raises(SetupError, match="key name"):
        keys.create(tmp_path / "keys", name, passphrase=None)
    assert list(tmp_path.iterdir()) == []
