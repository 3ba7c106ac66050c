"""The command line `edge-agent`: its commands are in `edge_agent.commands`, one module each."""

import argparse
import sys
from collections.abc import Sequence

from edge_agent.commands import config, diagnostics, doctor, enrol, rollback, run, samples, sources, status
from edge_agent.errors import AgentError

_COMMANDS = (enrol, run, status, rollback, doctor, diagnostics, sources, samples, config)


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
    for module in _COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
