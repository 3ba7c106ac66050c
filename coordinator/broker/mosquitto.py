"""Mosquitto: its configuration, and how a process of ours becomes it.

`use_username_as_clientid` matters: without it a device with another's client id takes over that session.
As root Mosquitto drops to an unprivileged user before it reads its keys. Its folder belongs to that user, and it
starts inside and uses relative paths, so that the folders above can stay closed.
"""

import os
import pwd
import shutil
from pathlib import Path
from typing import NoReturn

from contract import limits
from coordinator import config as configuration
from coordinator.broker import acl
from coordinator.broker.packets import PACKET_BYTES
from coordinator.broker.session import INFLIGHT, QUEUED_BYTES, QUEUED_MESSAGES
from coordinator.errors import SetupError

USER = "nobody"  # who Mosquitto runs as when we are root
CONFIGURATION = "mosquitto.conf"


def settings(host: str, port: int) -> str:
    """The configuration file; paths are relative to the folder that Mosquitto starts in."""
    return "\n".join(
        [
            "per_listener_settings false",
            f"listener {port} {host}",
            "cafile ca.crt",
            "certfile broker.crt",
            "keyfile broker.key",
            "tls_version tlsv1.2",  # the oldest that is accepted
            "require_certificate true",
            "use_identity_as_username true",
            "use_username_as_clientid true",
            "allow_anonymous false",
            "acl_file acl",
            "persistence true",
            "persistence_location ./",
            "autosave_interval 60",
            f"message_size_limit {limits.MESSAGE_BYTES}",
            f"max_packet_size {PACKET_BYTES}",
            f"max_inflight_messages {INFLIGHT}",
            f"max_queued_messages {QUEUED_MESSAGES}",
            f"max_queued_bytes {QUEUED_BYTES}",
            "persistent_client_expiration 7d",
            "connection_messages false",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            *([f"user {USER}"] if os.geteuid() == 0 else []),
            "",
        ]
    )


def prepare(state: Path, config: configuration.Config) -> Path:
    """Write what Mosquitto needs; the folder to start it in."""
    folder = state / "mosquitto"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("ca.crt", "broker.crt", "broker.key"):
        _write(folder / name, (state / "pki" / name).read_bytes())
    _write(folder / "acl", acl.mosquitto().encode())
    _write(folder / CONFIGURATION, settings(config.host, config.broker_port).encode())
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    return folder


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def run(state: Path) -> NoReturn:
    """Become Mosquitto: same process, so that whoever started us ends it, and a kill leaves nothing behind.

    Raises:
        SetupError: the program is missing.
    """
    program = find()
    os.chdir(prepare(state, configuration.load(state)))
    os.execv(program, [program, "-c", CONFIGURATION])  # noqa: S606 - a list of arguments, no shell


def find() -> str:
    """Path of the program.

    Raises:
        SetupError: not installed.
    """
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SetupError("mosquitto is not installed; install it (make services) or use: --broker embedded")
    return program
