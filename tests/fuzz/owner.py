"""What a device's owner hands in, settings, sample files and tables; and the bytes of a connection to the local API."""

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from contract import tensors
from edge_agent import config, samples
from edge_agent.api import Api
from edge_agent.api_server import ApiServer, _Conversation
from edge_agent.errors import AgentError
from edge_agent.serving import Serving
from edge_agent.sources import table
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_api import model
from tests.fuzz.mutate import prefixed
from tests.fuzz.target import Target

CONFIG = config.Config(device="meter-1", broker_host="h", broker_port=1)
X = np.ones((2, *agent_models.SHAPE), np.float32)


def targets(root: Path) -> Iterator[Target]:
    """All of them; `root` is an empty folder."""
    folder = config.Folder(root)
    config.save(folder, CONFIG)
    file = root / "file"

    def settings(data: bytes) -> None:
        folder.config.write_bytes(data)
        config.check(folder, {})  # finds all that is wrong, and raises nothing

    def sample(data: bytes) -> None:
        file.write_bytes(data)
        samples.read(root, file.name)

    def rows(data: bytes) -> None:
        file.write_bytes(data)
        for _ in table._read_csv(table.CsvOptions(path=str(file), label="label"), 0, 2):
            pass

    yield Target("agent.toml", settings, [folder.config.read_bytes()], (), share=0.02)
    labelled = tensors.dump({"x": X, "y": np.zeros(2, np.int64)})
    yield Target("sample file", sample, [labelled], (AgentError,), share=0.02,
                 make=lambda seeds, rng: prefixed(seeds, rng, "<Q"))  # fmt: skip
    yield Target("CSV table", rows, [b"a,b,label\n1,2.5,0\n-3,1e9,2\n,nan,1\n"], (AgentError,), share=0.02)
    yield _connection(root)


def _connection(root: Path) -> Target:
    serving = Serving()
    serving.swap("thirds", model(agent_bundles.make()))
    server = ApiServer(Api(serving, record=lambda _model, _rows: None), CONFIG, root, request_s=5.0)
    request = {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.tolist()}]}
    body = msgspec.json.encode(request)
    head = b"POST /v2/models/thirds/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    get = b"GET /v2/models/thirds HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def converse(data: bytes) -> None:
        app, agent = socket.socketpair()
        with app, agent:
            app.sendall(data[:60_000])
            app.shutdown(socket.SHUT_WR)
            _Conversation(agent, "app", server)

    return Target("API connection", converse, [head + body, get + get], (OSError,), share=0.05)
