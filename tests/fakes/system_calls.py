"""The system calls that the agent's unit allows, and a process that may make no others, as under systemd.

`python -m tests.fakes.system_calls PROGRAM ARGUMENTS...` becomes that program behind the filter (Linux, x86-64).
"""

import ctypes
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "fieldfare-agent.service"
NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06  # of classic BPF: load a word, jump, return
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


def allowed() -> set[str]:
    """Names of the calls that the unit lets through; a later line of it prevails."""
    found: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        words = line.removeprefix("~").split()
        named = {word for word in words if word[0] != "@"}.union(_calls(*(word for word in words if word[0] == "@")))
        found = found - named if line.startswith("~") else found | named
    return found


def _calls(*groups: str) -> set[str]:
    """System calls of systemd's groups."""
    if not groups:
        return set()
    command = ["systemd-analyze", "syscall-filter", "--no-pager", *groups]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    names = {line.strip() for line in listed if line.startswith("    ") and not line.strip().startswith("#")}
    inner = sorted(name for name in names if name.startswith("@"))
    return {*names, *_calls(*inner)}.difference(inner)


def confine(names: set[str]) -> None:
    """Let this process, and all that it becomes or starts, make these calls alone; others fail with EPERM."""
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", NUMBERS.read_text()))
    steps = [(_LOAD, 0, 0, 0)]
    for name in sorted(names & numbers.keys()):
        steps += [(_EQUALS, 0, 1, int(numbers[name])), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _EPERM))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    confine(allowed())
    os.execv(sys.argv[1], sys.argv[1:])
