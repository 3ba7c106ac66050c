"""The rollout's rules, pure: who is in which wave, and what happens next."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coordinator.errors import InvalidError

AWAITING, ROLLING, PAUSED = "awaiting signature", "rolling", "paused"
DONE, ABORTED, FAILED = "done", "aborted", "failed"
OPEN = frozenset({AWAITING, ROLLING, PAUSED})

PENDING, OFFERED, ACTIVATED, HEALTHY = "pending", "offered", "activated", "healthy"
REFUSED, TIMED_OUT, ROLLED_BACK, WITHDRAWN = "refused", "timed-out", "rolled-back", "withdrawn"
FAILURES = frozenset({REFUSED, TIMED_OUT, ROLLED_BACK})
BY_OUTCOME = {"activated": ACTIVATED, "healthy": HEALTHY, "refused": REFUSED, "rolled-back": ROLLED_BACK}
_AFTER = {
    OFFERED: {ACTIVATED, REFUSED, HEALTHY, ROLLED_BACK},
    ACTIVATED: {HEALTHY, ROLLED_BACK},
    HEALTHY: {ROLLED_BACK},
}


@dataclass(frozen=True)
class Member:
    """A device in a rollout; times in seconds since the epoch, None before."""

    device: str
    wave: int
    state: str = PENDING
    offered_at: float | None = None
    activated_at: float | None = None


class Step(NamedTuple):
    """What to do now: offer to these, give up on those; the rollout's state after it."""

    state: str
    wave: int
    offer: tuple[str, ...] = ()
    timed_out: tuple[str, ...] = ()
    error: str = ""


def assign(devices: Sequence[str], waves: Sequence[float] | None, seed: int) -> list[list[str]]:
    """Draw the waves.

    Args:
        devices: of the cohort.
        waves: a number from 1 is a count of devices, a fraction below 1 is that part of the cohort, rounded up.
            Who is left over makes a last wave. None is one canary, then the rest.
        seed: of the shuffle, so that the canary is not always the first in the alphabet.

    Raises:
        InvalidError: no device, or a wave that is not positive.
    """
    if not devices:
        raise InvalidError("the cohort has no enrolled device")
    rest = sorted(devices)
    random.Random(seed).shuffle(rest)  # noqa: S311 - a fair draw, no secret
    made = []
    for size in waves if waves is not None else [1]:
        if not math.isfinite(size) or size <= 0:
            raise InvalidError(f"wave {size}: use a number of devices (1, 5) or a fraction (0.1)")
        count = math.ceil(size * len(devices)) if size < 1 else int(size)
        made.append(rest[:count])
        rest = rest[count:]
    return [wave for wave in [*made, rest] if wave]


def follows(before: str, after: str) -> bool:
    """Whether a device's word may change how it stands from `before` to `after`."""
    return after in _AFTER.get(before, set())


def advance(
    *,
    wave: int,
    members: Sequence[Member],
    max_failures: int,
    device_timeout_s: float,
    health_timeout_s: float = 0.0,
    now: float,
) -> Step:
    """What a rolling rollout does next.

    A wave is offered once the one before it has settled: every device activated, failed within what is borne, or was
    withdrawn.

    Args:
        wave: that is being offered, -1 before the first.
        members: all devices of the rollout.
        max_failures: refusals, rollbacks and time-outs that are borne.
        device_timeout_s: from the offer to the receipt.
        health_timeout_s: a wave settles only once its devices passed their probation, each within so many seconds of
            its activation; 0 does not wait for that.
        now: seconds since the epoch.
    """
    late = tuple(
        member.device
        for member in members
        if (member.state == OFFERED and member.offered_at is not None and now - member.offered_at > device_timeout_s)
        or (
            member.state == ACTIVATED
            and member.activated_at is not None
            and 0 < health_timeout_s < now - member.activated_at
        )
    )
    done = {HEALTHY} if health_timeout_s else {ACTIVATED, HEALTHY}
    failed = [member.device for member in members if member.state in FAILURES]
    if len(failed) + len(late) > max_failures:
        names = ", ".join([*failed, *late][:5])
        many = len(failed) + len(late)
        error = f"{many} devices refused, rolled back or timed out ({names}); at most {max_failures} may"
        return Step(FAILED, wave, timed_out=late, error=error)
    settled = all(
        member.state in {*done, *FAILURES, WITHDRAWN} or member.device in late
        for member in members
        if member.wave <= wave
    )
    if not settled:
        return Step(ROLLING, wave, timed_out=late)
    last = max(member.wave for member in members)
    if wave >= last:
        return Step(DONE, wave, timed_out=late)
    offer = tuple(member.device for member in members if member.wave == wave + 1 and member.state == PENDING)
    return Step(ROLLING, wave + 1, offer=offer, timed_out=late)
