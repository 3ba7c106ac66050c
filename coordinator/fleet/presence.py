"""Which of a device's messages about its presence is the newest. Pure.

Brokers deliver at least once, and a last will comes when the broker notices, which may be after the device is back.
"""

from collections.abc import Mapping
from typing import Any

from contract.messages import Gone, Hello


def is_newer(known: Mapping[str, Any], hello: Hello) -> bool:
    """Whether a hello was said after the last one that is known, as `Hello` in plain data; empty where there is none.

    A new outbox is a new state folder, whose counts begin again.
    """
    if known.get("outbox") != hello.outbox:
        return True
    return (hello.starts, hello.seq) > (known["starts"], known["seq"])


def ends(known: Mapping[str, Any], gone: Gone) -> bool:
    """Whether the connection that ended is the one that is known, or one after it."""
    return known.get("boot") == gone.boot and gone.connection >= known["connection"]
