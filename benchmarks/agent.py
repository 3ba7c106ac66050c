"""What the agent must hold, group by group; `--only NAME` measures one of them.

The agent's code is compiled before, as an installer does it, so that processes do not compile it at each start.
"""

import compileall
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import agent_api, agent_inference, agent_memory, agent_size, agent_start, agent_update
from benchmarks.results import Row, arguments, show

ROOT = Path(__file__).parents[1]
GROUPS: dict[str, Callable[..., list[Row]]] = {  # each takes a folder to work in, and `quick`
    "inference": agent_inference.measure,
    "start": agent_start.measure,
    "api": agent_api.measure,
    "update": agent_update.measure,
    "memory": agent_memory.measure,
    "size": agent_size.measure,
}


def main() -> int:
    options = arguments(__doc__, groups=GROUPS)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for package in ("contract", "edge_agent"):
        compileall.compile_dir(ROOT / package, quiet=1)
    with tempfile.TemporaryDirectory() as folder:  # one for all: models that several groups need are made once
        rows = [row for name in options.only or GROUPS for row in GROUPS[name](Path(folder), quick=options.quick)]
    return show(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
