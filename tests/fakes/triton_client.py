"""What NVIDIA's own client sends, recorded: `python tests/fakes/triton_client.py PYTHON`, which has tritonclient[http].

The client (2.73) cannot share an environment with the frameworks that tests need, so its bytes are stored beside the
other golden files. Recording fails where the client does not understand what the local API answers.
"""

import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from edge_agent.serving import Serving
from tests.fakes import agent_bundles
from tests.fakes.agent_api import model, served
from tests.fakes.broker_process import free_port

GOLDEN = Path(__file__).parents[1] / "golden" / "triton-client.http"
SESSION = """
import sys
import numpy as np
import tritonclient.http as triton
client = triton.InferenceServerClient(sys.argv[1], concurrency=1)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("thirds")
assert not client.is_model_ready("other")
assert client.get_server_metadata()["name"] == "fieldfare edge-agent"
assert client.get_model_metadata("thirds")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4, 4, 1]}]
assert client.get_model_repository_index()[0]["state"] == "READY"
x = np.zeros((2, 4, 4, 1), np.uint8)
x[0].flat[:5], x[1].flat[10:] = 15, 15
for binary in (True, False):
    tensor = triton.InferInput("x", list(x.shape), "UINT8")
    tensor.set_data_from_numpy(x, binary_data=binary)
    plain = client.infer("thirds", [tensor])
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("class", "logits", "label")]
    named = client.infer("thirds", [tensor], outputs=wanted, request_id="q7", model_version="1")
    assert plain.as_numpy("probabilities").argmax(1).tolist() == [0, 2]
    assert named.as_numpy("class").tolist() == [0, 2]
    assert named.as_numpy("logits").shape == (2, 3)
    labels = [v.decode() if isinstance(v, bytes) else v for v in named.as_numpy("label").tolist()]
    assert labels == ["low", "high"], labels
    assert named.get_response()["id"] == "q7"
try:
    client.infer("thirds", [triton.InferInput("x", [2], "UINT8").set_data_from_numpy(np.zeros(2, np.uint8))])
except triton.InferenceServerException as error:
    assert "expected samples of shape" in str(error), error
else:
    raise AssertionError("a wrong shape was answered")
client.close()
"""


def record(python: str) -> bytes:
    """Run the session through a relay; all bytes that the client sent."""
    sent = bytearray()
    serving = Serving()
    serving.swap("thirds", model(agent_bundles.make()))
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), serving, section={"http_port": port}),
        socket.create_server(("127.0.0.1", 0)) as relay,
    ):
        address = f"127.0.0.1:{relay.getsockname()[1]}"
        thread = threading.Thread(target=_relay, args=(relay, port, sent), daemon=True)
        thread.start()
        subprocess.run([python, "-c", SESSION, address], check=True)
    return bytes(sent).replace(address.encode(), b"127.0.0.1")


def _relay(listener: socket.socket, port: int, sent: bytearray) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=_pump, args=(server, client, bytearray()), daemon=True)
            back.start()
            _pump(client, server, sent)
            back.join(10)


def _pump(source: socket.socket, target: socket.socket, seen: bytearray) -> None:
    while content := source.recv(65536):
        seen += content
        target.sendall(content)
    target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    GOLDEN.write_bytes(record(sys.argv[1]))
