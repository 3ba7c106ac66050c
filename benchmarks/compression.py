"""What compression must hold, by group; `--only NAME` measures one of them. FIELDFARE_DATA names the real data."""

import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks.results import arguments, show

GROUPS = ("sizes", "resnet8", "search", "distillation", "shrink", "training", "deltas")  # benchmarks.compression_NAME


def main() -> int:
    options = arguments(__doc__, groups=GROUPS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or GROUPS:
            group = importlib.import_module(f"benchmarks.compression_{name}")
            rows += group.measure(Path(folder), quick=options.quick)
    return show(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
