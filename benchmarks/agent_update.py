"""How soon a new 160 KiB model serves: from the offer to the device's signed receipt, on loopback and over 2G.

The slow link is a relay between agent and broker (100 kbit/s, 600 ms there and back; TLS passes through). The peer is
curl, which fetches the same bytes over HTTPS through a relay of the same shape. Each version has weights of its own,
so a patch saves little; the row with a goal does without one.
"""

import http.server
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.agent_site import SMALL, bundle, offer, site
from benchmarks.results import Row
from edge_agent.config import Updates
from tests.fakes.broker_process import BrokerProcess
from tests.links.relay import GPRS, Relay


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Both links."""
    with site(folder / "loopback", SMALL) as (coordinator, agent):
        times = [offer(coordinator, agent, bundle(folder, SMALL, 2 + turn)) for turn in range(3 if quick else 9)]
    turns = 1 if quick else 3
    whole, curl_whole = slow(folder / "whole", turns=turns, delta=False)
    patch, curl_patch = slow(folder / "patch", turns=turns, delta=True)
    return [
        Row("update of a 160 KiB model on loopback, offer to receipt (median)", "s", statistics.median(times), goal=1),
        Row(
            "update of a 160 KiB model over 2G, the very bytes that curl fetches",
            "s",
            whole,
            curl_whole,
            1.3 * curl_whole,
        ),
        Row("  the same with a patch", "s", patch, curl_patch),
    ]


def slow(folder: Path, *, turns: int, delta: bool) -> tuple[float, float]:
    """Medians of ours and of curl's seconds, in turn."""
    folder.mkdir()
    relays: list[Relay] = []

    def through(port: int) -> int:
        relays.append(Relay(("127.0.0.1", port), GPRS))
        return relays[-1].port

    ours, theirs = [], []
    with site(folder / "site", SMALL, through=through, updates=Updates(delta=delta)) as (coordinator, agent):
        for turn in range(turns):
            content = bundle(folder, SMALL, 20 + turn)
            ours.append(offer(coordinator, agent, content))
            with served(folder, coordinator.broker, content) as port:
                theirs.append(curl(through(port), coordinator.broker.state / "pki" / "ca.crt", len(content)))
    for relay in relays:
        relay.close()
    return statistics.median(ours), statistics.median(theirs)


@contextmanager
def served(folder: Path, broker: BrokerProcess, content: bytes) -> Iterator[int]:
    """Port of an HTTPS server that serves these bytes as `/model`."""
    root = folder / "served"
    root.mkdir(exist_ok=True)
    (root / "model").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(broker.state / "pki" / "api.crt", broker.state / "pki" / "api.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def curl(port: int, ca: Path, size: int) -> float:
    """Seconds that curl takes, from its start to its end."""
    command = ["curl", "--silent", "--fail", "--cacert", str(ca), f"https://127.0.0.1:{port}/model"]
    started = time.monotonic()
    body = subprocess.run(command, check=True, capture_output=True).stdout
    seconds = time.monotonic() - started
    assert len(body) == size
    return seconds
