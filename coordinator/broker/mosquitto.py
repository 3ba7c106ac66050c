"""Mosquitto: its configuration, and how a process of ours becomes it.

`use_username_as_clientid` matters: without it a device with another's client id takes over that session.
As root our Mosquitto drops to an unprivileged user before it reads its keys. Its folder belongs to that user, and it
starts inside and uses relative paths, so that the folders above can stay closed.

The ACL file says who may speak where. The dynamic-security plugin is there to cut sessions: it knows no client and
allows everything that the ACL file allows.
"""

import json
import os
import pwd
import shutil
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from contract import limits
from coordinator import config as configuration
from coordinator import pki
from coordinator.broker import acl, revoked
from coordinator.broker.packets import PACKET_BYTES
from coordinator.broker.session import INFLIGHT, QUEUED_BYTES, QUEUED_MESSAGES
from coordinator.errors import SetupError

USER = "nobody"  # who our Mosquitto runs as when we are root
CONFIGURATION = "mosquitto.conf"
PLUGIN = "mosquitto_dynamic_security.so"
_FILES = ("ca.crt", "broker.crt", "broker.key", pki.CRL)
_DYNAMIC_SECURITY = {
    "defaultACLAccess": {
        "publishClientSend": True,
        "publishClientReceive": True,
        "subscribe": True,
        "unsubscribe": True,
    },
    "clients": [],
    "groups": [],
    "roles": [],
}


@dataclass(frozen=True)
class Layout:
    """What differs between our Mosquitto and one that the system runs.

    Attributes:
        host, port: where it listens.
        plugin: path of the dynamic-security plugin.
        folder: what the paths in the configuration begin with; empty: the folder that it starts in.
        user: who it runs as, where it is started as root; empty: whoever starts it.
    """

    host: str
    port: int
    plugin: Path
    folder: str = ""
    user: str = ""


def settings(layout: Layout) -> str:
    """The configuration file."""
    at = layout.folder
    user = f"user {layout.user}\n" if layout.user else ""
    return f"""# Mosquitto for a Fieldfare fleet, made by `fieldfare broker config`.
per_listener_settings false
# small answers go out at once
set_tcp_nodelay true
{user}
# Mutual TLS: a client is the common name of its certificate, as user name and as client id. Without the second a
# device that connects with another's client id would take over that session.
listener {layout.port} {layout.host}
tls_version tlsv1.2
cafile {at}ca.crt
certfile {at}broker.crt
keyfile {at}broker.key
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false

# Revoked certificates. The coordinator writes this file; Mosquitto reads it at its start and on SIGHUP, and refuses
# everybody once the list has expired.
crlfile {at}{pki.CRL}

# Who may speak where. The plugin allows whatever the ACL file allows: it is here to cut the live session of a device
# that is revoked, which a new list alone does not.
acl_file {at}acl
plugin {layout.plugin}
plugin_opt_config_file {at}dynsec.json

# Sessions and retained messages outlive a restart; a device that stays away for a week is forgotten.
persistence true
persistence_location {at or "./"}
autosave_interval 60
persistent_client_expiration 7d

# Limits: payload, packet, and what waits for one client.
message_size_limit {limits.MESSAGE_BYTES}
max_packet_size {PACKET_BYTES}
max_inflight_messages {INFLIGHT}
max_queued_messages {QUEUED_MESSAGES}
max_queued_bytes {QUEUED_BYTES}

connection_messages false
log_dest stderr
log_type error
log_type warning
"""


def write(folder: Path, layout: Layout) -> None:
    """Write configuration, ACL file and the plugin's state; certificates and the list of revoked ones are not ours."""
    contents = {CONFIGURATION: settings(layout), "acl": acl.mosquitto(), "dynsec.json": json.dumps(_DYNAMIC_SECURITY)}
    for name, content in contents.items():
        _write(folder / name, content.encode())


def write_for_system(folder: Path, layout: Layout, state: Path, *, hosts: tuple[str, ...], now: datetime) -> None:
    """Write everything that a Mosquitto elsewhere needs, with a key and a certificate of its own.

    Args:
        folder: where to; made if missing.
        layout: of that Mosquitto.
        state: the coordinator's folder, for its authority.
        hosts: names and addresses under which devices reach it.
        now: time zone aware.

    Raises:
        SetupError: no coordinator in `state`, or `folder` cannot be written.
    """
    authority = pki.Authority.load(state)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(folder, layout)
        for name in ("ca.crt", pki.CRL):
            _write(folder / name, (state / "pki" / name).read_bytes())
        pki.issue_server(authority, folder, "broker", hosts=hosts, now=now)
    except OSError as error:
        raise SetupError(f"{error.filename or folder}: {error.strerror}") from error


def prepare(state: Path, config: configuration.Config) -> Path:
    """Write what our Mosquitto needs; the folder to start it in.

    Raises:
        SetupError: its plugin is missing.
    """
    folder = state / revoked.MOSQUITTO
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _FILES:
        _write(folder / name, (state / "pki" / name).read_bytes())
    root = os.geteuid() == 0
    write(folder, Layout(config.host, config.broker_port, find_plugin(), user=USER if root else ""))
    if root:
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
        SetupError: the program or its plugin is missing.
    """
    program = find()
    folder = prepare(state, configuration.load(state))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until Mosquitto listens to it
    revoked.note_process(state)
    os.chdir(folder)
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


def find_plugin() -> Path:
    """Path of the dynamic-security plugin, which comes with Mosquitto.

    Raises:
        SetupError: not found.
    """
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib"):
        for found in (*Path(folder).glob(PLUGIN), *Path(folder).glob(f"*/{PLUGIN}")):
            return found
    raise SetupError(f"Mosquitto's {PLUGIN} is not found; it comes with Mosquitto 2 (--plugin names another place)")
