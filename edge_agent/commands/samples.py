"""`edge-agent samples`."""

import argparse
import json

from edge_agent.commands.parsing import Commands, command

_EXAMPLE = """\
example:
  edge-agent samples --state agent
  edge-agent samples --state agent --json
  systemctl stop fieldfare-agent && edge-agent samples --state agent --forget

Samples that apps and sources handed in with labels are kept encrypted for training on this device. --forget removes
their key first, then them; the agent must not run.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    samples = command(commands, "samples", _run, "Say which labelled samples are kept, or forget them.", _EXAMPLE)
    samples.add_argument("--forget", action="store_true", help="forget all of them")
    samples.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from edge_agent import config
    from edge_agent.errors import ConfigError
    from edge_agent.folder import check_owner
    from edge_agent.samplestore import SampleStore
    from edge_agent.status import is_running

    folder = config.Folder(options.state)
    settings = config.load(folder).samples
    if options.forget:
        check_owner(folder.root)
    if options.forget and is_running(folder.lock):
        raise ConfigError(f"{options.state}: the agent runs and would go on with them; stop it first")
    complaints: list[str] = []
    store = SampleStore(
        folder.samples,
        quota_bytes=max(settings.quota_bytes, 1 << 62),  # looking removes nothing
        keep_s=float("inf"),
        clock=lambda: 0.0,
        event=complaints.append,
    )
    if options.forget:
        store.erase()
    kept, size = store.counts(), store.size()
    if options.json:
        print(json.dumps({"models": kept, "bytes": size, "quota_bytes": settings.quota_bytes}))
        return 0
    for model, count in sorted(kept.items()):
        print(f"{model}: {count} samples")
    print(f"{size} of {settings.quota_bytes} bytes")
    for complaint in complaints:
        print(complaint)
    return 0
