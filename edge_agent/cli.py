"""The command line `edge-agent enrol|run|status`. Everything heavy is imported by the command that needs it."""

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.errors import AgentError, ConfigError

_ENROL = """\
example:
  edge-agent enrol --state agent --device meter-1 --url https://127.0.0.1:8443 --ca ca.crt --token-file token
"""
_RUN = """\
example:
  edge-agent run --state agent
  edge-agent run --state agent --json | jq -r 'select(.event == "refused") | .reason'

With --json, standard output has one JSON object a line, with `event`, `at` (seconds since the epoch) and:
  started       device, bundle (what serves, or null)
  connected     broker
  disconnected  reason
  activated     bundle, rollout
  refused       bundle, rollout, reason (the old bundle serves on)
  rolled-back   bundle (the one that was lost), reason
  window        samples, bundle_sha256 (a profile window was sent)
  round         run, round, kind, examples, metrics, error (empty where it succeeded)
  dropped       topic, reason (a message that broke the contract)
  stopped
"""
_STATUS = """\
example:
  edge-agent status --state agent
  edge-agent status --state agent --json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are a sentence on standard error and status 1."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except AgentError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
    except OSError as error:
        print(f"edge-agent: {error.filename or options.state}: {error.strerror or error}", file=sys.stderr)
    except ImportError as error:
        print(f"edge-agent: {error}; install it anew with: pip install fieldfare", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    from edge_agent import __version__

    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Serve signed models on this device, watch them, and train them when asked.",
        epilog="examples:\n"
        "  edge-agent enrol --state agent --device meter-1 --url https://127.0.0.1:8443 "
        "--ca ca.crt --token-file token\n"
        "  edge-agent run --state agent\n"
        "  edge-agent status --state agent --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    enrol = _command(commands, "enrol", _enrol, "Get a certificate for this device with a one-time token.", _ENROL)
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
    run = _command(commands, "run", _run, "Run the agent until SIGTERM.", _RUN)
    run.add_argument("--verbose", action="store_true", help="log what is done, on standard error")
    run.add_argument("--json", action="store_true", help="print each event as one line of JSON")
    status = _command(commands, "status", _status, "Say what the agent does, running or not.", _STATUS)
    status.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=layout)
    command.add_argument("--state", required=True, type=Path, metavar="DIR", help="the agent's folder")
    command.set_defaults(run=run)
    return command


def _enrol(options: argparse.Namespace) -> int:
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


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    import time

    from edge_agent import daemon, events

    daemon.run(options.state, tell=events.Lines(sys.stdout, time.time) if options.json else events.silent)
    return 0


def _status(options: argparse.Namespace) -> int:
    import msgspec

    from edge_agent.status import read

    status = read(options.state)
    if options.json:
        print(msgspec.json.encode(status).decode())
        return 0
    bundle = status.active
    print(f"device           {status.device}")
    print(
        f"running          {'yes' if status.running else 'no'}, {'connected' if status.connected else 'not connected'}"
    )
    print(f"active bundle    {f'{bundle.model}:{bundle.version} {bundle.variant}' if bundle else 'none'}")
    print(f"inferences       {status.inferences}")
    print(f"pending reports  {status.pending_reports}")
    print(f"last refusal     {status.last_refusal or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
