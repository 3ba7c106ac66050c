"""`edge-agent enrol`."""

import argparse
import json
import os
import platform
from pathlib import Path

from edge_agent.commands.parsing import Commands, command
from edge_agent.errors import ConfigError

_EXAMPLE = """\
example:
  edge-agent enrol --state agent --device meter-1 --url https://127.0.0.1:8443 --ca ca.crt --token-file token
"""


def add(commands: Commands) -> None:
    """Add the command."""
    enrol = command(commands, "enrol", _run, "Get a certificate for this device with a one-time token.", _EXAMPLE)
    enrol.add_argument("--device", required=True, help="this device's name, as the coordinator knows it")
    enrol.add_argument("--url", required=True, help="the coordinator's API, for example https://127.0.0.1:8443")
    enrol.add_argument("--ca", required=True, type=Path, help="the coordinator's CA certificate (PEM)")
    enrol.add_argument(
        "--token-file", type=Path, help="file with the one-time token; else the variable FIELDFARE_TOKEN"
    )
    enrol.add_argument(
        "--hardware-class",
        default=platform.machine().lower().replace("_", "-") or "generic",
        help="bundles may be made for some classes only (default: %(default)s)",
    )
    enrol.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from edge_agent.enrol import enrol

    token = os.environ.get("FIELDFARE_TOKEN")
    if options.token_file:
        token = options.token_file.read_text(encoding="utf-8", errors="replace")
    if not token or not token.strip():
        raise ConfigError("no token: give --token-file FILE, or set FIELDFARE_TOKEN; `fieldfare devices add` makes one")
    config = enrol(
        options.state,
        device=options.device,
        url=options.url,
        ca=options.ca,
        token=token.strip(),
        hardware_class=options.hardware_class,
    )
    if options.json:
        print(json.dumps({"device": config.device, "broker": f"{config.broker_host}:{config.broker_port}"}))
    else:
        print(f"{config.device} is enrolled; start it with: edge-agent run --state {options.state}")
    return 0
