"""Knowing a process again: its number and the moment it began, since numbers are used again."""

import os
import signal
import subprocess
from pathlib import Path


def started(pid: int) -> str | None:
    """A text that names this start of process `pid`; None where it does not run any more.

    Linux: boot id and start time in clock ticks (proc(5), field 22 of stat). Elsewhere: what `ps` calls its start.
    """
    if not Path("/proc/self/stat").exists():
        return _started_by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _started_by_ps(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads; one that has ended is no error."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
