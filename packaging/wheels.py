"""Which wheels of the agent's dependencies exist for small devices, by the package index's own metadata.

Downloads each locked version for each platform with pip (`--only-binary=:all:`) into a folder, so that the same folder
may feed `build_deb.py --wheels`. Prints the table of docs/devices.md.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64", "armv7l")
TAGS = (
    "manylinux_2_34",
    "manylinux_2_31",
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_17",
    "manylinux2014",
    "linux",
)
# what `pip install fieldfare` brings; those that LiteRT's interpreter does not use are not in the Debian package
BASE = (
    "ai-edge-litert", "backports-strenum", "cffi", "cryptography", "flatbuffers", "ml-dtypes", "msgspec", "numpy",
    "paho-mqtt", "protobuf", "pycparser", "safetensors", "securesystemslib", "tqdm", "tuf", "typing-extensions",
    "urllib3",
)  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="keep the wheels there, one folder a machine")
    options = parser.parse_args()
    print(f"| package | {' | '.join(MACHINES)} |\n|---|{'---|' * len(MACHINES)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in BASE:
            found = [download(name, machine, (options.into or Path(folder)) / machine) for machine in MACHINES]
            print(f"| {name} {locked(name)} | {' | '.join(found)} |", flush=True)
    return 0


def download(name: str, machine: str, into: Path) -> str:
    """The platform of the wheel for a machine, `any` for pure Python, `none` where there is no wheel."""
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", *(word for tag in TAGS for word in ("--platform", f"{tag}_{machine}"))]
    command += ["--dest", str(into), f"{name}=={locked(name)}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        if "No matching distribution" in done.stderr:
            return "none"
        raise SystemExit(f"wheels: {done.stderr.strip()}")
    wheel = next(into.glob(f"{name.replace('-', '_')}-*.whl"))
    return "any" if wheel.stem.endswith("-any") else wheel.stem.rpartition("-")[2].partition(".")[0]


def locked(name: str) -> str:
    """The version in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(\S+)", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"wheels: requirements.lock names no {name}")
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
