"""`edge-agent config check`."""

import argparse
import json

from edge_agent.commands.parsing import Commands, command, group

_GROUP = """\
example:
  edge-agent config check --state agent
"""
_EXAMPLE = """\
example:
  edge-agent config check --state agent
  FIELDFARE_AGENT_UPDATES__TRANSPORT=https edge-agent config check --state agent --json

Prints every key with its value and where that comes from: agent.toml, an environment variable, or the default. Exit
status 1 if anything is wrong; everything that is wrong is listed.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    within = group(commands, "config", "Look at the configuration.", _GROUP)
    check = command(within, "check", _check, "Check agent.toml and the environment, and print what holds.", _EXAMPLE)
    check.add_argument("--json", action="store_true", help="print JSON")


def _check(options: argparse.Namespace) -> int:
    import os

    from edge_agent import config

    folder = config.Folder(options.state)
    checked = config.check(folder, os.environ)
    values = config.redacted(checked.values)
    if options.json:
        entries = {key: {"value": value, "from": checked.origins[key]} for key, value in values.items()}
        print(json.dumps({"file": str(folder.config), "problems": checked.problems, "values": entries}, indent=2))
        return 1 if checked.problems else 0
    if not checked.problems:
        for key, value in values.items():
            print(f"{key} = {json.dumps(value, ensure_ascii=False)}  ({checked.origins[key]})")
        print(f"{folder.config}: fine")
        return 0
    for problem in checked.problems:
        print(problem)
    return 1
