"""Clock, disk, memory and permissions."""

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edge_agent.doctor.examination import Finding, Patient, broken, fine, worrying
from edge_agent.files import write_atomically

RELEASED_AT = 1_767_225_600  # 2026-01-01: no clock of a device that runs this agent is right before it
_CLOCK_END = 4_070_908_800  # 2099-01-01
_LEAST_FREE_BYTES = 16 * 1024 * 1024  # below it SQLite's journal and a bundle on its way find no room
_LOW_FREE_BYTES = 128 * 1024 * 1024
_LEAST_MEMORY_BYTES = 32 * 1024 * 1024
_LOW_MEMORY_BYTES = 96 * 1024 * 1024  # of which a training child takes most
_SET_CLOCK = "set it, and keep it set: timedatectl set-ntp true"


def clock(patient: Patient) -> Finding:
    """Whether the clock can be right; certificates and signed metadata are judged by it."""
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(patient.now))
    if patient.now < RELEASED_AT:
        return broken("clock", f"the clock says {shown}, before this agent was made", _SET_CLOCK)
    if patient.now > _CLOCK_END:
        return broken("clock", f"the clock says {shown}, which cannot be", _SET_CLOCK)
    newest = _newest_file(patient)
    if patient.now < newest - 86400:
        day = time.strftime("%Y-%m-%d", time.gmtime(newest))
        return worrying("clock", f"the clock says {shown}, but files of the agent are from {day}", _SET_CLOCK)
    return fine("clock", shown)


def _newest_file(patient: Patient) -> float:
    times = [0.0]
    for path in (patient.folder.config, patient.folder.state, patient.folder.certificate):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def disk(patient: Patient) -> Finding:
    """Whether the folder can be written, flushed, and has room for what may still come."""
    root = patient.folder.root
    probe = root / ".doctor"
    try:
        write_atomically(probe, b"x" * 4096)
        probe.unlink()
    except OSError as error:
        return broken(
            "disk",
            f"{root} cannot be written: {error.strerror}",
            "free some room, or mount the file system writable; check its owner with: ls -ld " + str(root),
        )
    free, used = shutil.disk_usage(root).free, sum(_sizes(root))
    found = f"{_mebibytes(free)} free, the agent uses {_mebibytes(used)}"
    if free < _LEAST_FREE_BYTES:
        return broken("disk", found, f"free at least {_mebibytes(_LEAST_FREE_BYTES)} on the file system of {root}")
    budget = patient.checked.values.get("updates.disk_bytes", 0)
    if free < _LOW_FREE_BYTES or free + used < budget:
        return worrying("disk", found, f"free some room, or lower updates.disk_bytes ({_mebibytes(budget)})")
    return fine("disk", found)


def _sizes(root: Path) -> Iterator[int]:
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                yield (Path(folder) / name).lstat().st_size


def memory(_patient: Patient) -> Finding:
    """Whether models and a training child have room."""
    available = _meminfo().get("MemAvailable", 0)
    limit = _cgroup_limit()
    found = f"{_mebibytes(available)} available"
    if limit is not None:
        found += f", the service manager allows {_mebibytes(limit)}"
        available = min(available, limit)
    if available < _LEAST_MEMORY_BYTES:
        return broken("memory", found, "end other programs, raise MemoryMax, or use a device with more memory")
    if available < _LOW_MEMORY_BYTES:
        return worrying("memory", found, "training may not fit: end other programs, or raise MemoryMax of the service")
    return fine("memory", found)


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cgroup_limit() -> int | None:
    """The smallest `memory.max` above this process (cgroup v2)."""
    limits = []
    with suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                limits.append(int((place / "memory.max").read_text(encoding="ascii")))
    return min(limits, default=None)


def permissions(patient: Patient) -> Finding:
    """Whether the files belong to who owns the folder, and nobody else can read what is secret."""
    root = patient.folder.root
    owner = root.stat().st_uid
    chown = f"chown -R {owner} {root}"
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder) / name
            if path.lstat().st_uid != owner:
                return broken("permissions", f"{path} does not belong to the owner of {root} (uid {owner})", chown)
    if os.geteuid() not in {0, owner}:
        return broken(
            "permissions",
            f"{root} belongs to uid {owner}, this is uid {os.geteuid()}",
            f"run the agent and its commands as that user, for example: sudo -u '#{owner}' edge-agent doctor ...",
        )
    open_to_others = [path for path in _secret(patient) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        wrong = ", ".join(str(path) for path in open_to_others[:4])
        return broken("permissions", f"others may read {wrong}", f"chmod -R go= {root}")
    if owner == 0:
        return worrying("permissions", "the agent's folder belongs to root", "let it run as a user of its own")
    return fine("permissions", f"everything belongs to uid {owner}, and secrets to nobody else")


def _secret(patient: Patient) -> list[Path]:
    folder = patient.folder
    places = [
        folder.root,
        folder.key.parent,
        folder.key,
        folder.samples / "key",
        *folder.root.glob("*.key"),
        *folder.root.glob("*.sqlite*"),
    ]
    return [path for path in places if path.exists()]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
