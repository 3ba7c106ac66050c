"""Everything that reads bytes from others, in one list: the good inputs, and the errors that it may raise."""

import asyncio
import hashlib
import io
import logging
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection

from contract import blocks, bundle, codec, delta, inference, limits, messages, profile, signatures, tensors, topics
from contract import transform as transforms
from contract.errors import ContractError
from coordinator import pki
from coordinator.broker import packets
from coordinator.deltas.service import Deltas
from coordinator.gateway.core import Core
from edge_agent import config, daemon
from edge_agent.errors import RuntimeModelError
from edge_agent.runtime_operations import operations
from edge_agent.session import Message
from tests.fakes import agent_bundles, agent_models
from tests.fakes.broker_process import device_key_and_csr
from tests.fakes.fleet_site import Instructions, NoCommands, Site
from tests.fuzz import apps, owner
from tests.fuzz.mutate import mutate, prefixed
from tests.fuzz.target import Make, Target

GOLDEN = Path(__file__).parents[1] / "golden"
DEVICE = "meter-1"
SHA = "0123456789abcdef" * 4
NOW = 1_700_000_000.0
COMMAND = messages.Command(id="c-1", kind="log-level", level="debug", seconds=60.0, expires_at=9.0)


def golden(*names: str) -> list[bytes]:
    return [(GOLDEN / name).read_bytes() for name in names]


def _all_golden(prefix: str = "") -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(f"{prefix}*.msgpack"))]


def _message(kind: type[Any], limit: int) -> Callable[[bytes], Any]:
    return lambda data: codec.decode(data, kind, limit=limit)


def _wire() -> Iterator[Target]:
    down = [messages.Ack, messages.Instruction, messages.MetadataReply, messages.RenewalReply]
    down += [messages.DeltaReply, messages.Command]
    inner = [messages.Receipt, messages.SignedReceipt]
    others = {messages.SignedReceipt: messages.SignedReceipt(payload=b"payload", signature=b"signature"),
              messages.Command: COMMAND}  # fmt: skip
    for kind in [*messages.UP.values(), *down, *inner]:
        name = str(kind.__struct_config__.tag)
        seeds = _all_golden(name) or [codec.encode(others[kind])]
        yield Target(f"message {name}", _message(kind, limits.MESSAGE_BYTES), seeds, share=0.5)
    names = [topics.up(DEVICE, "hello"), topics.down(DEVICE, "ack"), topics.blob(SHA, 7)]
    yield Target("topic", lambda data: topics.parse(data.decode("utf-8", "replace")), [name.encode() for name in names])
    yield Target("desired state", _desired, golden("desired.json"))
    key, _ = device_key_and_csr(DEVICE)
    token = signatures.issue_token(key, DEVICE, "blobs", NOW).encode()
    yield Target("device token", lambda data: signatures.read_token(data.decode("latin-1")), [token])


def _desired(data: bytes) -> None:
    messages.check_desired(codec.decode_json(data, messages.Desired))


def _contents() -> Iterator[Target]:
    packed = agent_bundles.make()
    parts = bundle.unpack(packed)
    spec = codec.decode_json(parts.files["profile"], profile.Reference, limit=limits.MANIFEST_BYTES).spec
    small = tensors.dump({"x": np.ones((2, 3), np.float32), "y": np.arange(3, dtype=np.int64)})
    yield Target("tensors", lambda data: tensors.load(data, limit=10**6), [small, parts.files["golden"]],
                 make=lambda seeds, rng: prefixed(seeds, rng, "<Q"))  # fmt: skip
    yield Target("bundle", lambda data: bundle.unpack(data, limit=10**7), [packed], make=_zip, share=0.1)
    models = [agent_models.read(name) for name in ("int8", "float")]
    yield Target("operations of a model", operations, models, (RuntimeModelError,), share=0.2)
    yield Target("transform", lambda data: transforms.Transform(transforms.decode(data)), [parts.files["transform"]])
    yield Target("reference profile", _reference, [parts.files["profile"]])
    yield Target("profile window", _window(spec), [_counted(spec)])
    yield Target("block list", lambda data: blocks.check(data, 3 * limits.BLOCK_BYTES + 5), [bytes(range(128))])
    old, new = bytes(range(256)) * 40, bytes(range(1, 256)) * 40 + b"end"
    yield Target("patch", lambda data: _patch(data, old), [delta.make(old, new), delta.make(old, old[:-5] + b"12345")],
                 make=lambda seeds, rng: prefixed(seeds, rng, ">I"))  # fmt: skip
    request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}]}
    binary = {
        "id": "1",
        "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
    }
    head = msgspec.json.encode(binary)
    yield Target("inference request", inference.decode_request, [msgspec.json.encode(request), head])
    with_bytes = struct.pack(">I", len(head)) + head + bytes(8)
    yield Target("inference request with bytes", _binary_request, [with_bytes],
                 make=lambda seeds, rng: prefixed(seeds, rng, ">I"))  # fmt: skip


def _reference(data: bytes) -> None:
    reference = codec.decode_json(data, profile.Reference, limit=limits.MANIFEST_BYTES)
    profile.check_counts(profile.check_spec(reference.spec), reference.counts)


def _counted(spec: profile.ProfileSpec) -> bytes:
    window = messages.ProfileWindow(
        bundle_sha256=SHA, profile_digest=spec.digest(), started_at=1.0, ended_at=2.0, counts=profile.zero(spec)
    )
    return codec.encode(window)


def _window(spec: profile.ProfileSpec) -> Callable[[bytes], Any]:
    def read(data: bytes) -> None:
        profile.check_counts(spec, codec.decode(data, messages.ProfileWindow).counts)

    return read


def _patch(data: bytes, old: bytes) -> None:
    made = sum(
        len(piece)
        for piece in delta.apply(data, lambda at, size: old[at : at + size], base_size=len(old), limit=1 << 20)
    )
    assert made <= 1 << 20


def _binary_request(data: bytes) -> None:
    length = struct.unpack(">I", data[:4])[0] if len(data) >= 4 else 0
    inference.decode_request(data[4:], length)


def _zip(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A bundle with one file changed inside, and a manifest that agrees with it, or not."""
    if rng.random() < 0.4:
        return mutate(seeds, rng)
    with zipfile.ZipFile(io.BytesIO(rng.choice(seeds))) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([*files, bundle.MANIFEST])
    files[name] = mutate([files[name]], rng)
    if name != bundle.MANIFEST and rng.random() < 0.8:
        manifest = msgspec.json.decode(files[bundle.MANIFEST])
        entry = {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
        manifest["files"][name] = entry
        files[bundle.MANIFEST] = msgspec.json.encode(manifest)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for entry_name, content in files.items():
            archive.writestr(entry_name, content)
    return made.getvalue()


def _broker_packets(loop: asyncio.AbstractEventLoop) -> Target:
    def read(data: bytes) -> None:
        reader = asyncio.StreamReader(loop=loop)
        reader.feed_data(data)
        reader.feed_eof()
        step = packets.read(reader)
        try:
            step.send(None)  # all is there: it never waits
        except StopIteration:
            return
        step.close()
        raise AssertionError("waits for bytes after the end")

    connect = b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06meter1"
    publish = b"\x32\x0a\x00\x03a/b\x00\x01abc"
    subscribe = b"\x82\x08\x00\x01\x00\x03a/b\x01"
    errors = (packets.PacketError, asyncio.IncompleteReadError)
    return Target("broker packet", read, [connect, publish, subscribe, b"\xc0\x00", b"\xe0\x00"], errors, share=0.5)


class DroppedError(Exception):
    """The agent or the gateway said that a message has no effect."""


class AgentFolder:
    """A real agent without a network, which takes whatever comes on any topic that it listens to."""

    def __init__(self, root: Path) -> None:
        pki.create(root / "site")
        folder = config.Folder(root / "agent")
        key, csr = device_key_and_csr(DEVICE)
        authority = pki.Authority.load(root / "site")
        pem = key.private_bytes(
            pki.serialization.Encoding.PEM, pki.serialization.PrivateFormat.PKCS8, pki.serialization.NoEncryption()
        )
        folder.key.parent.mkdir(parents=True)
        folder.key.write_bytes(pem)
        folder.certificate.write_bytes(authority.sign_csr(csr, DEVICE, days=1, now=datetime.now(UTC)))
        folder.ca.write_bytes((root / "site" / "pki" / "ca.crt").read_bytes())
        config.save(folder, config.Config(device=DEVICE, broker_host="127.0.0.1", broker_port=1))
        self.dropped = ""
        self.agent = daemon.Agent(folder, tell=self._tell)

    def _tell(self, event: str, /, **fields: object) -> None:
        self.dropped = str(fields["reason"]) if event == "dropped" else ""

    def target(self) -> Target:
        channels = {
            topics.down(DEVICE, "desired"): golden("desired.json"),
            topics.down(DEVICE, "metadata"): golden("metadata-reply.msgpack"),
            topics.down(DEVICE, "delta"): golden("delta-reply.msgpack"),
            topics.down(DEVICE, "command"): [codec.encode(COMMAND)],
            topics.down(DEVICE, "renew"): golden("renewal-reply.msgpack"),
            topics.down(DEVICE, "ack"): golden("ack.msgpack"),
            topics.down(DEVICE, "round"): golden("instruction.msgpack"),
            topics.blob(SHA, 0): [bytes(limits.BLOCK_BYTES // 64)],
        }
        return Target("agent, any message", self._read, *_channelled(channels))

    def _read(self, data: bytes) -> None:
        topic, _, content = data.partition(b"\n")
        self.dropped = ""
        self.agent._on_event(Message(topic.decode("utf-8", "replace"), content))  # drops and tells, never raises
        if self.dropped:
            raise DroppedError(self.dropped)


class Gateway:
    """The coordinator's gateway over SQLite, with handlers that do what the services' own do."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.site.enrol(DEVICE)
        handlers = {
            messages.SignedReceipt: self.site.rollouts.on_receipt,
            messages.Alert: self.site.fleet.on_alert,
            messages.ProfileWindow: _refuse,
            messages.UploadBlock: _refuse,
            messages.RoundReply: _refuse,
        }
        self.core = Core(
            self.site.storage,
            self.site.fleet,
            self.site.signing,
            handlers,
            Instructions(),
            commands=NoCommands(),
            deltas=Deltas(self.site.storage, self.site.signing),
        )

    def target(self) -> Target:
        channels = {topics.up(DEVICE, channel): _all_golden(str(kind.__struct_config__.tag))
                    for channel, kind in messages.UP.items()}  # fmt: skip
        return Target("gateway, any message", self._read, *_channelled(channels), share=0.5)

    def _read(self, data: bytes) -> None:
        topic, _, content = data.partition(b"\n")
        before = sum(self.core.counters.dropped().values())
        self.core.receive(topic.decode("utf-8", "replace"), content, NOW)  # drops and counts, never raises
        if sum(self.core.counters.dropped().values()) > before:
            raise DroppedError


def _refuse(_connection: Connection, _device: str, body: Any, _now: float) -> None:
    raise ContractError(f"nobody waits for a {type(body).__name__}")


def _channelled(channels: dict[str, list[bytes]]) -> tuple[list[bytes], tuple[type[Exception], ...], Make]:
    """Seeds, errors and maker for inputs that are a topic, a line end and a payload."""
    seeds = [topic.encode() + b"\n" + payload for topic, payloads in channels.items() for payload in payloads]

    def make(_seeds: Sequence[bytes], rng: random.Random) -> bytes:
        topic = rng.choice(list(channels))
        if rng.random() < 0.05:
            return mutate([topic.encode()], rng) + b"\n" + rng.choice(channels[topic])
        return topic.encode() + b"\n" + mutate(channels[topic], rng)

    return seeds, (DroppedError,), make


@contextmanager
def targets(root: Path) -> Iterator[list[Target]]:
    """All of them; `root` is an empty folder for those that keep something."""
    logging.disable(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    for name in ("apps", "owner"):
        (root / name).mkdir()
    agent, gateway = AgentFolder(root / "device"), Gateway(root / "coordinator")
    try:
        ours = [agent.target(), gateway.target(), *apps.targets(root / "apps"), *owner.targets(root / "owner")]
        yield [*_wire(), *_contents(), _broker_packets(loop), *ours]
    finally:
        agent.agent._state.close()
        gateway.site.close()
        loop.close()
        logging.disable(logging.NOTSET)


def refused(target: Target, data: bytes) -> bool:
    """Whether the target refused the input with an error that it may raise; anything else is raised."""
    try:
        target.read(data)
    except target.errors:
        return True
    return False
