"""How much of a disk the agent takes: installed by pip, as a Debian package, and its own code.

The peer of the pip install is `flwr` with what it requires (without its extras), as it lies in this environment.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import Row

ROOT = Path(__file__).parents[1]
_MEGABYTE = 1e6


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Rows of the group `size`; `quick` leaves out the install by pip, which takes a minute."""
    code = [path for name in ("contract", "edge_agent") for path in (ROOT / name).rglob("*.py")]
    rows = [
        Row("code of contract + edge_agent, without comments and docstrings", "kB", _bare(code) / 1e3, goal=300),
        Row("the same with comments and docstrings", "kB", sum(path.stat().st_size for path in code) / 1e3),
        Row("the same compressed, as a wheel carries it", "kB", sum(_zipped(path) for path in code) / 1e3),
    ]
    package = _debian_package(folder)
    rows += [
        Row("Debian package on the disk, compiled", "MB", _unpacked(package, folder) / _MEGABYTE, goal=100),
        Row("Debian package to download", "MB", package.stat().st_size / _MEGABYTE),
    ]
    if not quick:
        peer = _closure_bytes("flwr") / _MEGABYTE
        rows.append(Row("pip base install", "MB", _pip_install(folder) / _MEGABYTE, peer=peer, goal=175))
    return rows


def _bare(paths: list[Path]) -> int:
    """Bytes of the code that runs."""
    size = 0
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        size += len(ast.unparse(tree).encode())
    return size


def _zipped(path: Path) -> int:
    return len(zlib.compress(path.read_bytes(), 9))


def _debian_package(folder: Path) -> Path:
    command = [sys.executable, str(ROOT / "packaging" / "build_deb.py"), "--out", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def _unpacked(package: Path, folder: Path) -> int:
    root = folder / "root"
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    home = root / "usr" / "lib" / "fieldfare-agent"
    subprocess.run([home / "bin" / "python3", "-I", "-m", "compileall", "-q", home / "lib"], check=True, env={})
    return _bytes(root)


def _pip_install(folder: Path) -> int:
    """A fresh environment with what pip installs and compiles, without pip itself."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python"), "install", "--quiet"]
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*install, "-c", str(ROOT / "requirements.lock"), str(wheel)], check=True, capture_output=True)
    return _bytes(folder / "venv")


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _closure_bytes(name: str) -> int:
    return sum(
        Path(str(file.locate())).stat().st_size
        for found in _closure(name, set())
        for file in importlib.metadata.distribution(found).files or []
        if Path(str(file.locate())).is_file()
    )


def _closure(name: str, seen: set[str]) -> Iterator[str]:
    name = re.split(r"[ ;<>=!~\[(]", name)[0].lower().replace("_", "-")
    if name in seen:
        return
    seen.add(name)
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return  # for another platform
    yield name
    for requirement in requires:
        if "extra ==" not in requirement:
            yield from _closure(requirement, seen)
