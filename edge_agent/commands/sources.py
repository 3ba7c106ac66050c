"""`edge-agent sources`."""

import argparse
import json

from edge_agent.commands.parsing import Commands

_EXAMPLE = """\
example:
  edge-agent sources
  edge-agent sources --json | jq 'keys'

A source is an entry in agent.toml, for example:

  [[sources]]
  kind = "csv"
  options = {path = "/data/readings.csv", label = "state", rate_per_s = 10.0}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    text = "List the kinds of sources that samples may come from, with their options."
    layout = argparse.RawDescriptionHelpFormatter
    sources = commands.add_parser("sources", help=text, description=text, epilog=_EXAMPLE, formatter_class=layout)
    sources.add_argument("--json", action="store_true", help="print JSON")
    sources.set_defaults(run=_run, state=None)


def _run(options: argparse.Namespace) -> int:
    from edge_agent.sources.plugin import installed

    found = {
        name: {"summary": kind.summary, "options": kind.schema()["properties"], "required": kind.schema()["required"]}
        for name, kind in installed().items()
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, kind in found.items():
        print(f"{name}: {kind['summary']}")
        for option, schema in kind["options"].items():
            default = "required" if option in kind["required"] else f"default {json.dumps(schema.get('default'))}"
            print(f"  {option:<14} {schema.get('description', '')} ({default})")
    return 0
