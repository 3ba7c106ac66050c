"""What each process of a coordinator does: broker, coordinator (API, gateway, loops), signer."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from coordinator import config as configuration
from coordinator.errors import SetupError
from coordinator.files import read_token
from coordinator.supervisor import PARENT

logger = logging.getLogger(__name__)


def log_to_stderr() -> None:
    """Configure logging for a process of its own."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def end_with_parent() -> None:
    """If a supervisor started this process, end when that one is gone, as if by SIGTERM."""
    parent = os.environ.pop(PARENT, None)  # not for the processes that this one starts
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        logger.warning("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def broker(state: Path) -> None:
    """Run the configured broker until SIGTERM.

    Raises:
        SetupError: a port that is taken, or a program that is missing.
    """
    from coordinator import broker as brokers

    end_with_parent()  # Mosquitto takes the process over, and outlives a supervisor that is killed
    brokers.run(state)


def coordinator(state: Path) -> None:
    """Run API, gateway, job runner and the other loops until SIGTERM.

    Raises:
        SetupError: a port that is taken, or a state folder that is not whole.
    """
    from coordinator.app import serve

    end_with_parent()
    serve(state)


def signer(state: Path, folder: Path, *, beside: bool = False) -> None:
    """Run the signer of this machine's coordinator until SIGTERM; errors as in `remote_signer`.

    Raises:
        SetupError: the coordinator is one of production, and nobody said that the signer may run `beside` it.
    """
    config = configuration.load(state)
    if config.mode == "production" and not beside:
        raise SetupError("in production the signer runs on another machine (--url); --signer-here runs it here")
    url = f"https://{config.host}:{config.api_port}"
    remote_signer(folder, url, state / "pki" / "ca.crt", state / "tokens" / "signer")


def remote_signer(folder: Path, url: str, ca: Path, token_file: Path) -> None:
    """Run a signer until SIGTERM; its coordinator may be anywhere.

    Raises:
        SetupError: keys or a token that cannot be read, a coordinator that trusts another signer, or no HTTPS.
    """
    if not url.startswith("https://"):
        raise SetupError(f"{url}: the signer's token goes over HTTPS only")
    from coordinator.signing import signer as signing
    from coordinator.signing.secrets import asking

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    end_with_parent()
    signing.run(folder, url, ca, read_token(token_file), ask=asking(), stop=stop)
