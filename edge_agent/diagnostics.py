"""A diagnostics archive: what somebody far away needs to understand a device. No samples, no keys, no passwords."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from contract import limits
from edge_agent import __version__, config, logs
from edge_agent.errors import AgentError
from edge_agent.state import State
from edge_agent.status import read

_DOCTOR_S = 120.0
_EVENTS = 200
_LIBRARIES = ("ai-edge-litert", "cryptography", "msgspec", "numpy", "paho-mqtt", "safetensors", "tuf")


def archive(root: Path, log: str, *, environment: dict[str, str], limit: int = limits.DIAGNOSTICS_BYTES) -> bytes:
    """A zip of `doctor.json`, `config.json`, `status.json`, `events.json`, `versions.json` and `log.jsonl`.

    A part that cannot be had says why in its place, so that a broken device gives an archive too.

    Args:
        root: the agent's folder.
        log: the newest log lines, one JSON object each; the oldest go where the archive would be too large.
        environment: of the agent.
        limit: most bytes of the archive.
    """
    parts: dict[str, Callable[[], Any]] = {
        "doctor.json": lambda: _doctor(root),
        "config.json": lambda: _config(root, environment),
        "status.json": lambda: msgspec.to_builtins(read(root)),
        "events.json": lambda: _events(root),
        "versions.json": _versions,
    }
    files = {name: json.dumps(_or_reason(part), indent=1, default=str) for name, part in parts.items()}
    lines = log.splitlines(keepends=True)
    while len(packed := _pack({**files, "log.jsonl": "".join(lines)})) > limit:
        if lines:
            lines = lines[len(lines) // 2 + 1 :]
        else:
            largest = max(files, key=lambda name: len(files[name]))
            files[largest] = files[largest][: len(files[largest]) // 2]
    return packed


def _or_reason(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # noqa: BLE001  # a broken device is when this is needed
        return {"error": f"{type(error).__name__}: {error}"}


def _pack(files: dict[str, str]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name, text in files.items():
            target.writestr(zipfile.ZipInfo(name), logs.scrubbed(text), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _doctor(root: Path) -> Any:
    """In a child: it loads much that the agent's own process must not keep."""
    command = [sys.executable, "-P", "-m", "edge_agent", "doctor", "--state", str(root), "--json"]
    child = subprocess.run(command, capture_output=True, check=False, timeout=_DOCTOR_S)
    try:
        return json.loads(child.stdout)
    except ValueError:
        raise AgentError(child.stderr.decode(errors="replace")[-2000:]) from None


def _config(root: Path, environment: dict[str, str]) -> Any:
    checked = config.check(config.Folder(root), environment)
    values = {key: [value, checked.origins[key]] for key, value in config.redacted(checked.values).items()}
    return {"problems": checked.problems, "values": values}


def _events(root: Path) -> Any:
    path = config.Folder(root).state
    if not path.exists():
        return []
    state = State(path, outbox_id="diagnostics")
    try:
        return [msgspec.to_builtins(event) for event in state.events(_EVENTS)]
    finally:
        state.close()


def _versions() -> Any:
    found = {"agent": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    for key, path in (("load", "/proc/loadavg"), ("uptime_s", "/proc/uptime")):
        with suppress(OSError):
            found[key] = Path(path).read_text(encoding="ascii").split()[0]
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found["memory"] = next((line for line in status.splitlines() if line.startswith("VmRSS")), "")
    found["uid"] = str(os.geteuid())
    return found
