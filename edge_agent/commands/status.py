"""`edge-agent status`."""

import argparse
import time

from edge_agent.commands.parsing import Commands, command

_EXAMPLE = """\
example:
  edge-agent status --state agent
  edge-agent status --state agent --json
"""


def add(commands: Commands) -> None:
    """Add the command."""
    status = command(commands, "status", _run, "Say what the agent does, running or not.", _EXAMPLE)
    status.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    import msgspec

    from edge_agent.status import read

    status = read(options.state)
    if options.json:
        print(msgspec.json.encode(status).decode())
        return 0
    print(f"device           {status.device}")
    print(
        f"running          {'yes' if status.running else 'no'}, {'connected' if status.connected else 'not connected'}"
    )
    serves = [
        f"{model}:{served.bundle.version} {served.bundle.variant}{' (on probation)' if served.on_probation else ''}"
        for model, served in status.models.items()
    ]
    print(f"serves           {', '.join(serves) or 'nothing'}")
    print(f"inferences       {status.inferences}")
    print(f"pending reports  {status.pending_reports}")
    dropped = {kind: count for kind, count in msgspec.structs.asdict(status.dropped).items() if count}
    print(f"dropped unsent   {', '.join(f'{count} {kind}' for kind, count in dropped.items()) or 'nothing'}")
    print(f"certificate      {_certificate(status.certificate_ends)}")
    print(f"last refusal     {status.last_refusal or 'none'}")
    return 0


def _certificate(ends: float | None) -> str:
    if ends is None:
        return "cannot be read; use: edge-agent enrol --again"
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(ends))
    if ends < time.time():
        return f"EXPIRED on {day}; the agent tries to renew it, else use: edge-agent enrol --again"
    return f"good until {day}"
