"""Build `fieldfare-agent_VERSION_ARCHITECTURE.deb`: the agent on the system's Python 3.11, with only the files it uses.

The package holds a private environment in /usr/lib/fieldfare-agent: `pyvenv.cfg` lets `bin/python3`, a link to the
system's interpreter, find the libraries beside it, so that the agent's child processes find them too and nothing else
on the system does.

Libraries come from the environment that runs this script, or, for another architecture, from a folder of wheels.
"""

import argparse
import base64
import fnmatch
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = ROOT / "packaging"
HOME = Path("usr/lib/fieldfare-agent")
SITE = HOME / "lib/python3.11/site-packages"
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
GLIBC = "2.34"  # the newest that a wheel of `DISTRIBUTIONS` asks for

# What the agent imports, without what those only need for other things: LiteRT's interpreter needs numpy alone.
DISTRIBUTIONS = (
    "ai-edge-litert", "cffi", "cryptography", "msgspec", "numpy", "paho-mqtt", "safetensors", "securesystemslib", "tuf",
    "urllib3",
)  # fmt: skip
_ONLY = {
    "ai-edge-litert": (
        "ai_edge_litert/__init__.py", "ai_edge_litert/interpreter.py", "ai_edge_litert/metrics_*.py",
        "ai_edge_litert/_pywrap_litert_interpreter_wrapper*", "ai_edge_litert/_pywrap_string_util*",
        "ai_edge_litert/libpywrap_litert_common*",
    ),
}  # fmt: skip
_NEVER = (
    "*/tests/*", "*/test/*", "*_tests.*", "*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.a", "*.h", "*.c", "*.f90",
    "*/py.typed", "*/__pycache__/*", "*.dist-info/*", "../*", "bin/*",
    "numpy/f2py/*", "numpy/distutils/*", "numpy/testing/*", "numpy/typing/*", "numpy/_pyinstaller/*", "numpy/doc/*",
    "numpy/_core/_simd.*", "numpy/ma/*", "numpy/polynomial/*",
    "numpy/random/_examples/*", "cffi/recompiler.py", "cffi/parse_c_type.h",
    "safetensors/torch.py", "safetensors/tensorflow.py", "safetensors/flax.py", "safetensors/paddle.py",
    "safetensors/mlx.py",
)  # fmt: skip


def main() -> int:
    """Build the package; prints its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the package (default: dist)")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default=_native())
    parser.add_argument(
        "--wheels", type=Path, help="folder with the wheels of that architecture; else this environment"
    )
    options = parser.parse_args()
    if options.wheels is None and options.architecture != _native():
        parser.error(f"--architecture {options.architecture} on this machine needs --wheels; see docs/devices.md")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        fill(tree, options.architecture, options.wheels)
        print(pack(tree, options.architecture, options.out))
    return 0


def fill(tree: Path, architecture: str, wheels: Path | None) -> None:
    """Put every file of the package into `tree`, where it will lie on the device."""
    site = tree / SITE
    site.mkdir(parents=True)
    licenses = tree / "usr/share/doc/fieldfare-agent/licenses"
    for name in DISTRIBUTIONS:
        files = _from_wheel(wheels, name) if wheels else _installed(name)
        for path, content in files:
            if wanted(name, path):
                _write(site / path, content, executable=False)
            elif ".dist-info/" in path and re.search("licen[cs]e|copying|notice", path, re.IGNORECASE):
                _write(licenses / name / path.partition(".dist-info/")[2], content, executable=False)
    for package in ("contract", "edge_agent"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    _own_metadata(site)
    (tree / HOME / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (tree / HOME / "bin").mkdir()
    (tree / HOME / "bin" / "python3").symlink_to("/usr/bin/python3.11")
    _write(tree / "usr/bin/edge-agent", (HERE / "debian" / "edge-agent").read_bytes(), executable=True)
    for source, target in (
        (HERE / "systemd" / "fieldfare-agent.service", "usr/lib/systemd/system/fieldfare-agent.service"),
        (HERE / "debian" / "default", "etc/default/fieldfare-agent"),
        (ROOT / "LICENSE", "usr/share/doc/fieldfare-agent/copyright"),
        (ROOT / "docs" / "devices.md", "usr/share/doc/fieldfare-agent/devices.md"),
        (ROOT / "docs" / "reference.md", "usr/share/doc/fieldfare-agent/reference.md"),
    ):
        _write(tree / target, source.read_bytes(), executable=False)
    _control(tree, architecture)


def pack(tree: Path, architecture: str, out: Path) -> Path:
    """Make the .deb; the same files give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"fieldfare-agent_{_version()}_{architecture}.deb"
    environment = {"SOURCE_DATE_EPOCH": "1767225600", **os.environ}
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return path


def wanted(distribution: str, path: str) -> bool:
    """Whether the agent uses this file of a distribution."""
    if distribution in _ONLY:
        return any(fnmatch.fnmatch(path, pattern) for pattern in _ONLY[distribution])
    return not any(fnmatch.fnmatch(path, pattern) for pattern in _NEVER)


def _installed(name: str) -> Iterator[tuple[str, bytes]]:
    for file in importlib.metadata.distribution(name).files or []:
        located = Path(str(file.locate()))
        if located.is_file():
            yield str(file), located.read_bytes()


def _from_wheel(wheels: Path, name: str) -> Iterator[tuple[str, bytes]]:
    found = list(wheels.glob(f"{name.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise SystemExit(f"build_deb: {wheels} holds {len(found)} wheels of {name}; see docs/devices.md")
    with zipfile.ZipFile(found[0]) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, archive.read(entry)


def _own_metadata(site: Path) -> None:
    """The distribution `fieldfare` as the agent needs it: its version, and the entry points that the agent looks up."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = ""
    for group, points in sorted(project["entry-points"].items()):
        mine = [f"{name} = {value}\n" for name, value in points.items() if value.startswith("edge_agent.")]
        entries += f"[{group}]\n{''.join(mine)}\n" if mine else ""
    folder = site / f"fieldfare-{_version()}.dist-info"
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: fieldfare\nVersion: {_version()}\n",
        "entry_points.txt": entries,
        "INSTALLER": "dpkg\n",
    }
    record = []
    for name, text in contents.items():
        _write(folder / name, text.encode(), executable=False)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{folder.name}/{name},sha256={digest},{len(text.encode())}\n")
    _write(folder / "RECORD", "".join([*record, f"{folder.name}/RECORD,,\n"]).encode(), executable=False)


def _control(tree: Path, architecture: str) -> None:
    size = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
    text = (HERE / "debian" / "control.in").read_text(encoding="utf-8")
    control = text.format(version=_version(), architecture=architecture, kibibytes=size // 1024, glibc=GLIBC)
    _write(tree / "DEBIAN" / "control", control.encode(), executable=False)
    _write(tree / "DEBIAN" / "conffiles", b"/etc/default/fieldfare-agent\n", executable=False)
    for name in ("postinst", "prerm", "postrm"):
        _write(tree / "DEBIAN" / name, (HERE / "debian" / name).read_bytes(), executable=True)
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)


def _write(path: Path, content: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if executable else 0o644)


def _version() -> str:
    found = re.search('__version__ = "([^"]+)"', (ROOT / "edge_agent" / "__init__.py").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit("build_deb: edge_agent/__init__.py names no version")
    return found[1]


def _native() -> str:
    return {machine: name for name, machine in ARCHITECTURES.items()}.get(os.uname().machine, "amd64")


if __name__ == "__main__":
    sys.exit(main())
