"""`edge-agent doctor`."""

import argparse

from edge_agent.commands.parsing import Commands, command

_EXAMPLE = """\
example:
  edge-agent doctor --state agent
  edge-agent doctor --state agent --json | jq -r '.[] | select(.outcome != "ok") | .remedy'

Changes nothing, and does not disturb an agent that runs. Exit status 1 if any check fails.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    text = "Check clock, disk, certificate, broker, runtime and the rest, and say what to do."
    doctor = command(commands, "doctor", _run, text, _EXAMPLE)
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    import os
    import time

    import msgspec

    from edge_agent.doctor import examine
    from edge_agent.doctor.checks import ALL

    findings = examine(options.state, dict(os.environ), time.time(), ALL)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(findings)).decode())
    else:
        for finding in findings:
            print(f"{finding.outcome:5}{finding.check:15}{finding.found}")
            if finding.remedy:
                print(f"{'':20}-> {finding.remedy}")
    return 1 if any(finding.outcome == "fail" for finding in findings) else 0
