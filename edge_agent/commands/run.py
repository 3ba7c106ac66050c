"""`edge-agent run`."""

import argparse

from edge_agent.commands.parsing import Commands, command
from edge_agent.logs import LEVELS, STYLES

_EXAMPLE = """\
example:
  edge-agent run --state agent
  edge-agent run --state agent --json | jq -r 'select(.event == "refused") | .reason'

With --json, standard output has one JSON object a line, with `event`, `at` (seconds since the epoch) and:
  started       device, bundles (what serves)
  connected     broker
  disconnected  reason
  activated     bundle, rollout (it is on probation from now on)
  healthy       bundle, rollout (it passed its probation)
  refused       bundle, rollout, reason (the old bundle serves on)
  rolled-back   bundle (what served before it serves again), reason
  removed       model, rollout (a model was taken off this device)
  window        samples, bundle_sha256 (a profile window was sent)
  round         run, round, kind, examples, metrics, error (empty where it succeeded)
  source        source, what (failed, ended, waits or passed-over), reason
  command       command (its id), kind, error (empty where it succeeded)
  dropped       topic, reason (a message that broke the contract)
  renewed       ends (of the new certificate)
  renewal-failed       reason, ends (of the old one; it tries again)
  certificate-expired  ends (the broker refuses this device)
  stopped
"""


def add(commands: Commands) -> None:
    """Add the command."""
    run = command(commands, "run", _run, "Run the agent until SIGTERM.", _EXAMPLE)
    run.add_argument(
        "--log",
        choices=STYLES,
        default="auto",
        help="where the log goes: text or JSON lines on standard error, or systemd's journal with native fields; "
        "auto is the journal where standard error leads there, else text",
    )
    run.add_argument("--log-level", choices=LEVELS, help="instead of log_level in agent.toml")
    run.add_argument("--verbose", action="store_const", dest="log_level", const="info", help="as --log-level info")
    run.add_argument("--json", action="store_true", help="print each event as one line of JSON")


def _run(options: argparse.Namespace) -> int:
    import sys
    import time

    from edge_agent import lean

    lean.start()

    from edge_agent import config, daemon, events, logs

    ring = logs.configure(options.log, options.log_level or config.load(config.Folder(options.state)).log_level)
    listeners = [events.Lines(sys.stdout, time.time)] if options.json else []
    daemon.run(options.state, tell=events.everybody(logs.told, *listeners), log=ring.text)
    return 0
