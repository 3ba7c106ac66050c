"""A patient, findings, and all checks one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent import config
from edge_agent.config import Checked, Folder

Outcome = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found.

    Attributes:
        check: its name.
        outcome: `fail` where the agent cannot do its work.
        found: a sentence.
        remedy: what to do; empty where all is well.
    """

    check: str
    outcome: Outcome
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """The agent to look at.

    Attributes:
        folder: its folder.
        checked: its configuration, with what is wrong with it.
        running: whether its process lives.
        now: seconds since the epoch, by the clock that is to be judged.
    """

    folder: Folder
    checked: Checked
    running: bool
    now: float


Check = Callable[[Patient], Finding]


def examine(root: Path, environment: dict[str, str], now: float, checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Run the checks; whatever one of them raises is its finding."""
    from edge_agent.status import is_running

    folder = Folder(root)
    patient = Patient(folder, config.check(folder, environment), is_running(folder.lock), now)
    return [_found(name, check, patient) for name, check in checks]


def _found(name: str, check: Check, patient: Patient) -> Finding:
    try:
        return check(patient)
    except Exception as error:  # noqa: BLE001  # the doctor must go on
        return Finding(
            check=name,
            outcome="fail",
            found=f"could not be checked: {type(error).__name__}: {error}",
            remedy="see the other findings first; if they are fine, report this sentence",
        )


def fine(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check=check, outcome="ok", found=found)


def worrying(check: str, found: str, remedy: str) -> Finding:
    """The agent works, but somebody should look at this."""
    return Finding(check=check, outcome="warn", found=found, remedy=remedy)


def broken(check: str, found: str, remedy: str) -> Finding:
    """The agent cannot do its work."""
    return Finding(check=check, outcome="fail", found=found, remedy=remedy)
