"""A coordinator for the agent's integration tests: real MQTT and real TUF metadata, everything else in memory."""

import hashlib
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract import blocks, codec, delta, limits, messages, signatures, tensors, topics
from edge_agent.config import Config, Folder, save
from tests.fakes import agent_bundles
from tests.fakes.agent_repository import Repository
from tests.fakes.broker_process import BrokerProcess, Client, eventually


class Coordinator:
    """Answers an agent as the real one does, and writes everything down.

    Attributes:
        hellos, gone: as they came.
        reports: bodies by (outbox, seq): what comes twice counts once.
        blobs: what may be pulled, by digest.
        served: blocks that were asked for and sent, by digest and index.
        mute_from: requests for blocks from this one on get no answer; None answers all.
        lose: blocks whose next answer is lost, by digest and index.
        asked_patches: by digests of base and target.
        spoil_patches: where set, patches are broken.
        deaf: where set, reports are neither kept nor acknowledged.
    """

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.repository = Repository()
        self.hellos: list[messages.Hello] = []
        self.gone: list[messages.Gone] = []
        self.reports: dict[tuple[str, int], Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.served: list[tuple[str, int]] = []
        self.mute_from: int | None = None
        self.asked_patches: list[tuple[str, str]] = []
        self.spoil_patches = False
        self.lose: set[tuple[str, int]] = set()
        self.deaf = False
        self.revision = 0
        self.wanted: dict[str, messages.Wanted] = {}
        self._lock = threading.Lock()
        self.client = Client(broker, "coordinator", clean=False)
        self.client._client.on_message = lambda _c, _d, message: self._on_message(message.topic, message.payload)
        self.client.subscribe(topics.all_up())

    def stop(self) -> None:
        self.client.stop()

    def publish(self, bundle: bytes, *, content: bytes | None = None) -> messages.BundleRef:
        """Sign a bundle; `content` is what is served in its place."""
        ref = agent_bundles.ref(bundle)
        self.repository.add(ref.target, bundle, blocks=self.keep_list(bundle))
        self.blobs[ref.sha256] = bundle if content is None else content
        return ref

    def desire(self, device: str, ref: messages.BundleRef, rollout: str = "r1") -> None:
        self._desire(device, ref.model, ref, rollout)

    def remove(self, device: str, model: str) -> None:
        self._desire(device, model, None, None)

    def _desire(self, device: str, model: str, ref: messages.BundleRef | None, rollout: str | None) -> None:
        self.revision += 1
        self.wanted[model] = messages.Wanted(revision=self.revision, rollout=rollout, bundle=ref)
        desired = messages.Desired(revision=self.revision, models=self.wanted)
        self._send(topics.down(device, "desired"), codec.encode_json(desired), retain=True)

    def instruct(self, device: str, bundle_sha256: str, weights: tensors.Arrays, **fields: Any) -> messages.Instruction:
        data = tensors.dump(weights)
        blob = messages.BlobRef(hashlib.sha256(data).hexdigest(), len(data), self.keep_list(data) or "")
        self.blobs[blob.sha256] = data
        instruction = messages.Instruction(
            **{
                "id": f"i{len(self.blobs)}",
                "run": "run",
                "round": 1,
                "kind": "train",
                "bundle_sha256": bundle_sha256,
                "weights": blob,
                "expires_at": datetime.now(UTC).timestamp() + 60,
                **fields,
            }
        )
        self._send(topics.down(device, "round"), codec.encode(instruction))
        return instruction

    def command(self, device: str, **fields: Any) -> messages.Command:
        """Ask a device for something, as an operator does."""
        expires_at = datetime.now(UTC).timestamp() + 600
        command = messages.Command(**{"id": uuid.uuid4().hex, "expires_at": expires_at, **fields})
        self._send(topics.down(device, "command"), codec.encode(command))
        return command

    def bodies(self, kind: type) -> list[Any]:
        with self._lock:
            return [body for _, body in sorted(self.reports.items()) if isinstance(body, kind)]

    def receipts(self, certificate: bytes) -> list[messages.Receipt]:
        """Receipts whose signature holds."""
        found = []
        for signed in self.bodies(messages.SignedReceipt):
            signatures.verify(certificate, signed.payload, signed.signature)
            found.append(codec.decode(signed.payload, messages.Receipt))
        return found

    def samples(self) -> int:
        """Inferences in all profile windows."""
        return sum(window.counts.samples for window in self.bodies(messages.ProfileWindow))

    def keep_list(self, data: bytes) -> str | None:
        """Serve an artifact's list of blocks; its digest."""
        digest = blocks.list_digest(data)
        if digest is not None:
            self.blobs[digest] = blocks.digests(data)
        return digest

    def _patch(self, base: str, target: str) -> messages.BlobRef | None:
        if target not in self.blobs or (base and base not in self.blobs):
            return None
        patch = delta.make(self.blobs[base] if base else b"", self.blobs[target])
        if self.spoil_patches:
            patch = patch[:-50] + bytes(50)
        sha256 = hashlib.sha256(patch).hexdigest()
        self.blobs[sha256] = patch
        return messages.BlobRef(sha256, len(patch), self.keep_list(patch) or "")

    def _send(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        self.client._client.publish(topic, payload, qos, retain)

    def _on_message(self, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        assert isinstance(parsed, topics.DeviceTopic)
        message = codec.decode(payload, messages.UP[parsed.channel])
        match message:
            case messages.Hello():
                self.hellos.append(message)
            case messages.Gone():
                self.gone.append(message)
            case messages.MetadataRequest(name=name, offset=offset):
                file = self.repository.files.get(name)
                whole = codec.deflate(file) if file is not None else None
                page = whole[offset:][: limits.METADATA_PAGE_BYTES] if whole is not None else None
                reply = messages.MetadataReply(name=name, content=page, offset=offset, size=len(whole or b""))
                self._send(topics.down(parsed.device, "metadata"), codec.encode(reply))
            case messages.BlockRequest(sha256=sha256, blocks=asked):
                for index in asked:
                    if self.mute_from is not None and index >= self.mute_from:
                        continue
                    self.served.append((sha256, index))
                    if (sha256, index) in self.lose:
                        self.lose.discard((sha256, index))
                        continue
                    data = self.blobs[sha256][index * limits.BLOCK_BYTES : (index + 1) * limits.BLOCK_BYTES]
                    self._send(topics.blob(sha256, index), data, qos=0)
            case messages.DeltaRequest(base=base, target=target):
                self.asked_patches.append((base, target))
                reply = messages.DeltaReply(base=base, target=target, blob=self._patch(base, target))
                self._send(topics.down(parsed.device, "delta"), codec.encode(reply))
            case messages.Report(outbox=outbox, seq=seq, body=body) if not self.deaf:
                with self._lock:
                    self.reports.setdefault((outbox, seq), body)
                ack = messages.Ack(outbox=outbox, seqs=[seq])
                self._send(topics.down(parsed.device, "ack"), codec.encode(ack))


class AgentProcess:
    """A real `edge-agent run` on its own folder, enrolled by hand.

    Attributes:
        python: the interpreter that runs it.
        options: of its process, as Popen takes them.
    """

    def __init__(self, coordinator: Coordinator, folder: Path, device: str, **settings: Any) -> None:
        self.device = device
        self.folder = Folder(folder)
        certificate, key = coordinator.broker.certificate(device)
        self.certificate = certificate.read_bytes()
        for path, content in (
            (self.folder.key, key.read_bytes()),
            (self.folder.certificate, self.certificate),
            (self.folder.ca, (coordinator.broker.state / "pki" / "ca.crt").read_bytes()),
            (self.folder.tuf_root, coordinator.repository.bootstrap),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        config = Config(
            device=device,
            broker_host="127.0.0.1",
            **{
                "broker_port": coordinator.broker.port,
                "window_samples": 50,
                "window_idle_s": 0.3,
                "hello_s": 1.0,
                "poll_s": 0.05,
                "retry_s": 1.0,
                **settings,
            },
        )
        save(self.folder, config)
        self.source = self.folder.source(config)
        self.log, self.told = folder / "log", folder / "events"
        self.process: subprocess.Popen[bytes] | None = None
        self.python: list[str] = [sys.executable]
        self.options: dict[str, Any] = {}

    def start(self) -> None:
        self._started_before = self._starts()
        with self.log.open("ab") as log, self.told.open("ab") as told:
            command = [*self.python, "-m", "edge_agent", "run", "--state", str(self.folder.root), "--verbose"]
            self.process = subprocess.Popen([*command, "--json"], stdout=told, stderr=log, **self.options)

    def _starts(self) -> int:
        return self.told.read_text().count('"event":"started"') if self.told.exists() else 0

    def has_started(self) -> bool:
        """Since the last `start`, it has come so far that it hears SIGTERM."""
        return self._starts() > self._started_before

    def events(self) -> list[dict[str, Any]]:
        """What it told a script."""
        return [json.loads(line) for line in self.told.read_text().splitlines()]

    def kill(self) -> None:
        """As the power would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)

    def feed(self, name: str, x: Any, y: Any = None) -> None:
        """Put a sample file into the source as a camera would: written beside, renamed in."""
        self.source.mkdir(parents=True, exist_ok=True)
        beside = self.source / f".{name}"
        beside.write_bytes(tensors.dump({"x": x} if y is None else {"x": x, "y": y}))
        beside.rename(self.source / f"{name}.safetensors")

    def wait(self, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        """Wait for something; where it does not come, fail with the agent's log."""
        value = eventually(condition, timeout)
        assert value, self.log.read_text()
        return value
