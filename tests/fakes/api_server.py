"""The coordinator's HTTP API over a real socket, in a thread."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI


@contextmanager
def serving(web: FastAPI, state: Path, port: int) -> Iterator[uvicorn.Server]:
    """Serve over HTTPS in a thread, with the certificate of the state folder."""
    settings = uvicorn.Config(
        web,
        port=port,
        log_config=None,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
        ssl_certfile=state / "pki" / "api.crt",
        ssl_keyfile=str(state / "pki" / "api.key"),
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()
