"""`edge-agent diagnostics`."""

import argparse
from pathlib import Path

from edge_agent.commands.parsing import Commands, command

_EXAMPLE = """\
example:
  edge-agent diagnostics --state agent --out diagnostics.zip

The same archive as `fieldfare devices diagnostics` fetches, but without the log of the agent that runs: no samples,
no keys, no passwords.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "diagnostics", _run, "Write an archive that explains this device to others.", _EXAMPLE)
    parser.add_argument("--out", required=True, type=Path, help="the zip file to write")


def _run(options: argparse.Namespace) -> int:
    import os

    from edge_agent.diagnostics import archive
    from edge_agent.files import write_atomically

    content = archive(options.state, "", environment=dict(os.environ))
    write_atomically(options.out.absolute(), content)
    print(f"{options.out}: {len(content)} bytes")
    return 0
