"""The local API over real sockets, around bundles that serve."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contract.bundle import unpack
from edge_agent.api import Api
from edge_agent.api_server import ApiServer
from edge_agent.client import Client, ClientError
from edge_agent.config import Api as ApiSection
from edge_agent.config import Config
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.serving import Model, Serving
from tests.fakes import agent_bundles
from tests.fakes.broker_process import eventually


def model(bundle: bytes) -> Model:
    return Model(agent_bundles.ref(bundle), unpack(bundle), RuntimeOptions())


def _listens(path: Path) -> bool:
    with Client(socket=path, retries=0) as client, suppress(ClientError):
        return bool(client._once("GET", "/v2/health/live", b"", {}))
    return False


@contextmanager
def served(
    folder: Path,
    serving: Serving,
    *,
    record: Callable[[Model, int], None] = lambda _model, _rows: None,
    request_s: float = 15.0,
    section: dict[str, Any] | None = None,
    **parts: Any,
) -> Iterator[ApiServer]:
    """A running server; it listens on `api.sock` in the folder."""
    config = Config(device="meter-1", broker_host="127.0.0.1", broker_port=1, api=ApiSection(**(section or {})))
    server = ApiServer(Api(serving, record=record, **parts), config, folder, request_s=request_s)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        assert eventually(lambda: _listens(folder / config.api.socket), 20)
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
