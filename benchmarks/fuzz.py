"""One million inputs to everything that reads bytes from others: no crash, no growth. Exits 1 otherwise.

Example: python -m benchmarks.fuzz --inputs 1000000 --seed 1
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import Target, refused, targets

_GROWTH_MB = 8.0  # of resident memory, after every target has had a tenth of its inputs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory(prefix="fieldfare-fuzz-") as root, targets(Path(root)) as made:
        return _run(made, options.inputs, options.seed)


def _run(made: list[Target], inputs: int, seed: int) -> int:
    whole = sum(target.share for target in made)
    shares = {target.name: math.ceil(inputs * target.share / whole) for target in made}
    began, failures = time.monotonic(), 0
    for target in made:
        failures += _feed(target, max(1, shares[target.name] // 10), f"{seed} warm {target.name}", quiet=True)
    before = _resident_mb()
    for target in made:
        failures += _feed(target, shares[target.name], f"{seed} {target.name}")
    growth, took = _resident_mb() - before, time.monotonic() - began
    total = sum(shares.values())
    print(f"{total} inputs (and a tenth before) in {took:.0f} s, {1.1 * total / took:.0f} a second")
    print(f"resident memory {before:.1f} MB before, {growth:+.1f} MB after; at most {_GROWTH_MB:+.1f}")
    print(f"{failures} crashes")
    return 1 if failures or growth > _GROWTH_MB or total < inputs else 0


def _feed(target: Target, count: int, seed: str, *, quiet: bool = False) -> int:
    rng = random.Random(seed)  # noqa: S311  # it must be repeatable
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    for _ in range(count):
        data = target.make(target.seeds, rng)
        try:
            outcomes["refused" if refused(target, data) else "taken"] += 1
        except Exception:  # noqa: BLE001  # that is what is looked for
            outcomes["crash"] += 1
            if outcomes["crash"] <= 3:
                print(f"CRASH in {target.name} for {data[:400]!r}")
                traceback.print_exc()
    if not quiet:
        rate = count / max(time.monotonic() - began, 1e-9)
        figures = f"{outcomes['taken']:8d} taken {outcomes['refused']:8d} refused {outcomes['crash']:4d} crashed"
        print(f"{target.name:32s} {count:8d} inputs {figures} {rate:9.0f}/s", flush=True)
    return outcomes["crash"]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
