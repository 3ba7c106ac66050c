"""The list of revoked certificates on its way to the broker: written where it reads it, and read again.

Both brokers of ours read it when they start and on SIGHUP. They leave a note of their process in the state folder.
"""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from coordinator import pki
from coordinator.config import Config
from coordinator.errors import SetupError
from coordinator.files import write_private
from coordinator.jobs import processes

logger = logging.getLogger(__name__)

MOSQUITTO = "mosquitto"  # folder of our Mosquitto, in the state folder
CONTROL = "$CONTROL/dynamic-security/v1"
_NOTE = "broker.json"
_RELOAD_S = 30.0


def note_process(state: Path) -> None:
    """Say that this process is the broker; call it once SIGHUP does no harm."""
    pid = os.getpid()
    write_private(state / _NOTE, json.dumps({"pid": pid, "started": processes.started(pid)}).encode())


def publish(state: Path, config: Config, crl_pem: bytes) -> None:
    """Write the list where the broker reads it, and make it do so.

    Raises:
        SetupError: the command that reloads an external broker failed.
        OSError: a file cannot be written.
    """
    write_private(state / "pki" / pki.CRL, crl_pem, mode=0o644)
    match config.broker:
        case "external":
            _publish_external(config, crl_pem)
        case "mosquitto" if (state / MOSQUITTO).is_dir():
            write_private(state / MOSQUITTO / pki.CRL, crl_pem, mode=0o644)
            _hang_up(state)
        case _:
            _hang_up(state)


def kick_command(names: Iterable[str]) -> bytes:
    """What to publish on `CONTROL` to have Mosquitto cut the sessions of clients.

    Deleting a client of the dynamic-security plugin cuts its sessions. It has none of ours, so each is made first;
    nothing of it stays.
    """
    commands = [
        {"command": command, "username": name} for name in names for command in ("createClient", "deleteClient")
    ]
    return json.dumps({"commands": commands}).encode()


def _publish_external(config: Config, crl_pem: bytes) -> None:
    if not config.broker_crl:
        logger.warning("broker_crl is not set: nobody tells the external broker which certificates are revoked")
        return
    write_private(Path(config.broker_crl), crl_pem, mode=0o644)
    if not config.broker_reload:
        logger.warning("broker_reload is not set: the external broker must be made to read %s", config.broker_crl)
        return
    try:
        done = subprocess.run(
            config.broker_reload,
            capture_output=True,
            text=True,
            timeout=_RELOAD_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"broker_reload {config.broker_reload}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise SetupError(f"broker_reload {config.broker_reload} failed with status {done.returncode}: {said}")


def _hang_up(state: Path) -> None:
    try:
        noted = json.loads((state / _NOTE).read_bytes())
    except (OSError, json.JSONDecodeError):
        return  # it has not started yet, and reads the list when it does
    pid = noted["pid"]
    if noted["started"] is not None and processes.started(pid) == noted["started"]:
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            return
