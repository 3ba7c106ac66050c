"""What programs on the device may send: requests, pushes, frames; and what may stand in a segment of kept samples."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge_agent import samplestore
from edge_agent.api import Api
from edge_agent.errors import ApiError, SampleError
from edge_agent.serving import Serving
from edge_agent.sources import command, payload
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_api import model
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target

X, Y = agent_models.samples(2, seed=0)


def targets(root: Path) -> Iterator[Target]:
    """All of them; `root` is an empty folder."""
    yield _requests()
    yield Target("push, JSON", _payload("json"), [b"[1, 2]", b'{"x": [[1], [2]], "y": [0, 1]}'], (SampleError,))
    yield Target("push, raw", _payload("raw"), [bytes(8)], (SampleError,), share=0.2)
    frames = [b"[1]\n[2]\n[3", struct.pack("<I", 3) + b"[1]" + struct.pack("<I", 2) + b"[]"]
    yield Target("frames of a command", _frames, frames, (SampleError,), share=0.5)
    yield _segment(root)


def _requests() -> Target:
    """Any method, path and body: an answer always comes, and never one that blames the agent."""
    serving = Serving()
    serving.swap("thirds", model(agent_bundles.make()))
    api = Api(serving, record=lambda _model, _rows: None, add_samples=lambda *_kept: None, push=lambda *_pushed: None)
    x = {"name": "x", "shape": list(X.shape), "datatype": "UINT8", "data": X.ravel().tolist()}
    y = {"name": "y", "shape": [2], "datatype": "INT64", "data": Y.tolist()}
    infer = {"id": "1", "inputs": [x], "outputs": [{"name": "label"}, {"name": "logits"}]}
    seeds = [
        b"POST /v2/models/thirds/infer\n" + msgspec.json.encode(infer),
        b"POST /v2/models/thirds/versions/1/infer\n" + msgspec.json.encode({"inputs": [{**x, "datatype": "FP32"}]}),
        b"POST /v2/models/thirds/samples\n" + msgspec.json.encode({"inputs": [x, y]}),
        b"POST /v2/repository/index\n",
        b"GET /v2/models/thirds/ready\n",
    ]

    def read(data: bytes) -> None:
        head, _, body = data.partition(b"\n")
        method, _, target = head.decode("latin-1").partition(" ")
        answer = api.answer(method, target, body)
        assert answer.status in {200, 202, 400, 404}, answer
        if answer.status >= 400:
            raise ApiError(answer.status, str(msgspec.json.decode(answer.body)["error"]))

    def make(_seeds: Sequence[bytes], rng: random.Random) -> bytes:
        seed = rng.choice(seeds)
        head, _, body = seed.partition(b"\n")
        return head + b"\n" + mutate([body], rng) if rng.random() < 0.9 else mutate([seed], rng)

    return Target("app, any request", read, seeds, (ApiError,), make, share=0.5)


def _payload(kind: str) -> Callable[[bytes], object]:
    options = msgspec.convert({"format": kind}, payload.PayloadOptions)

    def read(data: bytes) -> object:
        x, y = payload.read(data, options)
        return payload.fit(x, (2,), y)

    return read


def _frames(data: bytes) -> None:
    for framing in ("lines", "prefixed", "fixed"):
        buffer = bytearray(data)
        taken = sum(len(frame) for frame in command.split(buffer, framing, 3))
        assert taken + len(buffer) <= len(data)


def _segment(root: Path) -> Target:
    folder = root / "samples"
    store = samplestore.SampleStore(folder, quota_bytes=10**6, keep_s=1.0, clock=lambda: 0.0, event=print)
    for _ in range(2):
        store.add("thirds", X, Y)
    (path,) = folder.glob("*/*.seg")
    good = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        shape = tuple(agent_models.SHAPE)
        got, _ = samplestore.newest(folder, "thirds", input_shape=shape, limit=100, not_before=-1.0)
        if got is None:
            raise SampleError("nothing that was kept")
        assert len(got.x) in {2, 4}
        np.testing.assert_array_equal(got.x, np.tile(X, (len(got.x) // 2, 1, 1, 1)))

    return Target("segment of kept samples", read, [good, good[: len(good) // 2]], (SampleError,), share=0.05)
