"""The agent's parts without a network: a link that remembers, a clock that is set, and an updater around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contract import codec, signatures
from contract.messages import BlobRef, BundleRef, Desired, Receipt, SignedReceipt, Up, Wanted
from edge_agent import selftest
from edge_agent.config import Config, Folder
from edge_agent.disk import Disk
from edge_agent.errors import RefusedError, TrustError, UnavailableError
from edge_agent.events import silent
from edge_agent.identity import Identity
from edge_agent.recovery import open_state
from edge_agent.serving import Serving
from edge_agent.slots import Slots
from edge_agent.switch import Switch
from edge_agent.trust import Target
from edge_agent.updater import Updater
from tests.fakes import agent_bundles

CONFIG = Config(device="meter-1", broker_host="127.0.0.1", broker_port=1, window_samples=50)


class FakeLink:
    """Remembers what was sent; `answer` may react to it at once."""

    def __init__(self, answer: Callable[[Up], None] = lambda _message: None) -> None:
        self.up = True
        self.connections = 1
        self.quiet: float | None = None
        self.sent: list[Up] = []
        self.patterns: dict[str, int] = {}
        self.answer = answer

    def send(self, message: Up) -> bool:
        if self.up:
            self.sent.append(message)
            self.answer(message)
        return self.up

    def quiet_s(self) -> float | None:
        return self.quiet

    def subscribe(self, pattern: str, *, qos: int = 1) -> None:
        self.patterns[pattern] = qos

    def unsubscribe(self, pattern: str) -> None:
        self.patterns.pop(pattern, None)


class QuickIdentity(Identity):
    """Signs with the device's key in this process: a child for each receipt takes long."""

    def sign(self, receipt: Receipt) -> SignedReceipt:
        key = serialization.load_pem_private_key(self._folder.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        payload = codec.encode(receipt)
        return SignedReceipt(payload=payload, signature=signatures.sign(key, payload))


class Parts:
    """An updater whose trust and transfer are dictionaries; everything behind them is real, but in this process.

    Attributes:
        signed: target path to digest, as the metadata would say.
        content: digest to what a pull of it gives.
        custom: what the metadata says of what a bundle needs.
        now: the clock.
    """

    def __init__(self, root: Path, config: Config = CONFIG) -> None:
        self.folder = Folder(root)
        self.config = config
        self.signed: dict[str, str] = {}
        self.content: dict[str, bytes] = {}
        self.custom: dict[str, Any] = {}
        self.wanted: dict[str, Wanted] = {}
        self.now = 1000.0
        self._write_identity()
        self.state = open_state(self.folder.state, outbox_id="o", bounds=config.outbox)
        self.slots, self.serving = Slots(self.folder.slots), Serving(config.runtime)
        self.switch = Switch(
            config,
            state=self.state,
            slots=self.slots,
            serving=self.serving,
            identity=QuickIdentity(config.device, self.folder),
            clock=lambda: self.now,
            tell=silent,
        )
        self.disk_budget = Disk(config, self.folder, state=self.state, switch=self.switch)
        self.updater = Updater(
            config,
            state=self.state,
            serving=self.serving,
            switch=self.switch,
            trusted=self._trusted,
            pull=self._pull,
            wanted=self.wanted.get,
            make_room=self.disk_budget.make_room,
            self_test=self._self_test,
            runtime_version="ai-edge-litert 2.3.0",
        )

    def _write_identity(self) -> None:
        self.folder.key.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.key.exists():
            self.folder.key.write_bytes(
                ec.generate_private_key(ec.SECP256R1()).private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        for path in (self.folder.certificate, self.folder.ca):
            path.touch()

    def sign(self, bundle: bytes) -> str:
        """Make a bundle known; its target path."""
        ref = agent_bundles.ref(bundle)
        self.signed[ref.target] = ref.sha256
        self.content[ref.sha256] = bundle
        return ref.target

    def receipts(self) -> list[Receipt]:
        """Receipts in the outbox."""
        reports = [self.state.read_report(seq) for seq in self.state.pending(1000)]
        signed = [report.body for report in reports if report and isinstance(report.body, SignedReceipt)]
        return [codec.decode(body.payload, Receipt) for body in signed]

    def _trusted(self, target: str) -> Target:
        if target not in self.signed:
            raise TrustError(f"the signed metadata names no target {target}")
        digest = self.signed[target]
        if digest == "silence":
            raise UnavailableError("nobody answered")
        return Target(len(self.content[digest]), digest, **self.custom)

    def want(self, revision: int, bundle: bytes | BundleRef, rollout: str | None = "r") -> None:
        """Ask the updater for a bundle of a model."""
        ref = bundle if isinstance(bundle, BundleRef) else agent_bundles.ref(bundle)
        self.wanted[ref.model] = Wanted(revision=revision, rollout=rollout, bundle=ref)
        self.updater.apply(Desired(revision=revision, models=self.wanted))

    def settle(self, model: str = "thirds") -> None:
        """The bundle that serves passed its probation."""
        active = self.state.models.get(model).active
        assert active is not None
        self.switch.settle(model, of=active)

    def served(self, model: str = "thirds") -> int | None:
        """Version that serves."""
        found = self.serving.ref(model)
        return found.version if found else None

    def _self_test(self, path: Path, ref: BundleRef) -> int:
        """All that the child does, in this process."""
        outcome = selftest.attempt(selftest.Task(path=str(path), bundle=ref, config=self.config))
        if outcome.refusal:
            raise RefusedError(outcome.refusal)
        return outcome.memory_bytes

    def _pull(self, blob: BlobRef, _give_up: Callable[[], bool]) -> Path:
        path = self.folder.staging / "pulled"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.content[blob.sha256])
        return path
