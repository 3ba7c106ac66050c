"""How a sub-command introduces itself to argparse."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from edge_agent.settings import STATE_VARIABLE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no other
_LAYOUT = argparse.RawDescriptionHelpFormatter


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that works on an agent's folder; its parser, for more options."""
    parser = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=_LAYOUT)
    folder = os.environ.get(STATE_VARIABLE)
    parser.add_argument(
        "--state",
        required=folder is None,
        default=Path(folder) if folder else None,
        type=Path,
        metavar="DIR",
        help=f"the agent's folder; else the variable {STATE_VARIABLE}",
    )
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """Add a command that only holds others."""
    parser = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=_LAYOUT)
    return parser.add_subparsers(required=True, metavar="COMMAND")
