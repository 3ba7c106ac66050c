"""The topic grammar: the only place that spells a topic.

    fleet/v1/dev/{device}/up/{channel}     device -> coordinator
    fleet/v1/dev/{device}/down/{channel}   coordinator -> device
    fleet/v1/blob/{sha256}/{block}         one block of an artifact, to every device that asked for it

A device may write below its own `up` and read below its own `down` and `blob`; brokers enforce it by the
name in the device's client certificate, so device names are narrower than MQTT allows.
"""

import re
from typing import NamedTuple

from contract.errors import TopicError

PREFIX = "fleet/v1"
COORDINATOR = "coordinator"  # the coordinator's common name; no device may bear it

_DEVICE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHANNEL = re.compile(r"[a-z]{1,16}")


class DeviceTopic(NamedTuple):
    """A parsed `up` or `down` topic."""

    device: str
    direction: str
    channel: str


class BlobTopic(NamedTuple):
    """A parsed `blob` topic."""

    sha256: str
    block: int


def check_device(name: str) -> str:
    """Return `name` if it may name a device.

    Raises:
        TopicError: not lower-case letters, digits and inner hyphens (at most 63), or reserved.
    """
    if not _DEVICE.fullmatch(name) or name == COORDINATOR:
        raise TopicError(
            f"device name {name[:80]!r}: use 1 to 63 lower-case letters, digits and inner hyphens, not {COORDINATOR!r}"
        )
    return name


def check_sha256(digest: str) -> str:
    """Return `digest` if it is a SHA-256 in lower-case hex.

    Raises:
        TopicError: anything else.
    """
    if not _SHA256.fullmatch(digest):
        raise TopicError(f"not a SHA-256 in lower-case hex: {digest[:80]!r}")
    return digest


def _channel(name: str) -> str:
    if not _CHANNEL.fullmatch(name):
        raise TopicError(f"channel {name[:80]!r}: use 1 to 16 lower-case letters")
    return name


def up(device: str, channel: str) -> str:
    """Topic on which `device` sends `channel`."""
    return f"{PREFIX}/dev/{check_device(device)}/up/{_channel(channel)}"


def down(device: str, channel: str) -> str:
    """Topic on which the coordinator sends `channel` to `device`."""
    return f"{PREFIX}/dev/{check_device(device)}/down/{_channel(channel)}"


def blob(sha256: str, block: int) -> str:
    """Topic of block `block` of the artifact with this digest."""
    if block < 0:
        raise TopicError(f"block {block} is negative")
    return f"{PREFIX}/blob/{check_sha256(sha256)}/{block}"


def all_up() -> str:
    """Filter for everything that devices send."""
    return f"{PREFIX}/dev/+/up/#"


def all_down(device: str) -> str:
    """Filter for everything that is sent to `device`."""
    return f"{PREFIX}/dev/{check_device(device)}/down/#"


def parse(topic: str) -> DeviceTopic | BlobTopic:
    """Take a topic apart.

    Raises:
        TopicError: outside the grammar.
    """
    match topic.split("/"):
        case ["fleet", "v1", "dev", device, ("up" | "down") as direction, channel]:
            return DeviceTopic(check_device(device), direction, _channel(channel))
        case ["fleet", "v1", "blob", sha256, block] if block.isascii() and block.isdigit() and len(block) < 10:
            return BlobTopic(check_sha256(sha256), int(block))
    raise TopicError(f"topic outside the grammar: {topic[:120]!r}")
