"""What the agent must hold, group by group; `--only NAME` measures one of them."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import agent_api, agent_inference, agent_start
from benchmarks.results import Row, arguments, show

GROUPS: dict[str, Callable[..., list[Row]]] = {  # each takes a folder to work in, and `quick`
    "inference": agent_inference.measure,
    "start": agent_start.measure,
    "api": agent_api.measure,
}


def main() -> int:
    options = arguments(__doc__, groups=GROUPS)
    with tempfile.TemporaryDirectory() as folder:  # one for all: models that several groups need are made once
        rows = [row for name in options.only or GROUPS for row in GROUPS[name](Path(folder), quick=options.quick)]
    return show(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
