"""`edge-agent enrol`."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.commands.parsing import Commands, command
from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.config import Config

_EXAMPLE = """\
example:
  edge-agent enrol --state agent --device meter-1 --url https://127.0.0.1:8443 --ca ca.crt --token-file token

A device whose certificate has expired, or that was revoked, keeps its models and everything else:
  edge-agent enrol --state agent --again --token-file token
  edge-agent enrol --state agent --again --new-key --token-file token
"""


def add(commands: Commands) -> None:
    """Add the command."""
    enrol = command(commands, "enrol", _run, "Get a certificate for this device with a one-time token.", _EXAMPLE)
    enrol.add_argument("--device", help="this device's name, as the coordinator knows it")
    enrol.add_argument("--url", help="the coordinator's API, for example https://127.0.0.1:8443")
    enrol.add_argument("--ca", type=Path, help="the coordinator's CA certificate (PEM)")
    enrol.add_argument(
        "--token-file", type=Path, help="file with the one-time token; else the variable FIELDFARE_TOKEN"
    )
    enrol.add_argument(
        "--hardware-class", help="bundles may be made for some classes only (default: what this machine says of itself)"
    )
    enrol.add_argument("--again", action="store_true", help="enrol the device of this folder anew, and keep its state")
    enrol.add_argument("--new-key", action="store_true", help="with --again: make a new key; a revoked device must")
    enrol.add_argument(
        "--key",
        default="file",
        help="where the key is: `file` makes one in the agent's folder; the URI pkcs11:token=...;object=...;"
        "pin-source=file:... names one in a token (it needs OpenSSL's pkcs11 engine)",
    )
    enrol.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from edge_agent.folder import check_owner

    _check(options)
    check_owner(options.state)
    token = os.environ.get("FIELDFARE_TOKEN")
    if options.token_file:
        token = options.token_file.read_text(encoding="utf-8", errors="replace")
    if not token or not token.strip():
        raise ConfigError("no token: give --token-file FILE, or set FIELDFARE_TOKEN; `fieldfare devices add` makes one")
    config = _enrol(options, token.strip())
    if options.json:
        print(json.dumps({"device": config.device, "broker": f"{config.broker_host}:{config.broker_port}"}))
    else:
        print(f"{config.device} is enrolled; start it with: edge-agent run --state {options.state}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.key != "file" and not options.key.startswith("pkcs11:"):
        raise ConfigError(f"--key {options.key}: use `file`, or the URI of a key in a token, pkcs11:...")
    if options.key != "file" and options.new_key:
        raise ConfigError("--new-key makes a key in a file; leave it away and name the new key with --key pkcs11:...")
    if options.again and (options.device or options.hardware_class):
        raise ConfigError(
            "--again keeps the device's name and hardware class; leave --device and --hardware-class away"
        )
    if options.new_key and not options.again:
        raise ConfigError("--new-key goes with --again; a first enrolment always makes a key")
    missing = [f"--{name}" for name in ("device", "url", "ca") if not getattr(options, name)]
    if missing and not options.again:
        raise ConfigError(f"give {', '.join(missing)}; or --again, for a folder that is enrolled already")


def _enrol(options: argparse.Namespace, token: str) -> "Config":
    from edge_agent.enrol import enrol, enrol_again

    key_uri = "" if options.key == "file" else options.key
    if options.again:
        return enrol_again(
            options.state,
            token=token,
            url=options.url,
            ca=options.ca,
            new_key=options.new_key,
            key_uri=key_uri,
        )
    machine = platform.machine().lower().replace("_", "-") or "generic"
    return enrol(
        options.state,
        device=options.device,
        url=options.url,
        ca=options.ca,
        token=token,
        hardware_class=options.hardware_class or machine,
        key_uri=key_uri,
    )
