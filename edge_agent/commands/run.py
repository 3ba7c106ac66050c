"""`edge-agent run`."""

import argparse
import logging
import sys

from edge_agent.commands.parsing import Commands, command

_EXAMPLE = """\
example:
  edge-agent run --state agent
  edge-agent run --state agent --json | jq -r 'select(.event == "refused") | .reason'

With --json, standard output has one JSON object a line, with `event`, `at` (seconds since the epoch) and:
  started       device, bundles (what serves)
  connected     broker
  disconnected  reason
  activated     bundle, rollout
  refused       bundle, rollout, reason (the old bundle serves on)
  rolled-back   bundle (the one that was lost), reason
  removed       model, rollout (a model was taken off this device)
  window        samples, bundle_sha256 (a profile window was sent)
  round         run, round, kind, examples, metrics, error (empty where it succeeded)
  dropped       topic, reason (a message that broke the contract)
  stopped
"""


def add(commands: Commands) -> None:
    """Add the command."""
    run = command(commands, "run", _run, "Run the agent until SIGTERM.", _EXAMPLE)
    run.add_argument("--verbose", action="store_true", help="log what is done, on standard error")
    run.add_argument("--json", action="store_true", help="print each event as one line of JSON")


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
