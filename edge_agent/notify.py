"""What the agent tells the service manager that started it: ready, alive, stopping (`man sd_notify`)."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Sends datagrams to the manager's socket; without one it says nothing, and no failure ever reaches the caller.

    Attributes:
        watchdog_s: seconds between two signs of life that the manager waits for; 0 where it does not.
    """

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        """Prepare.

        Args:
            address: path of the socket; a leading `@` is Linux's abstract namespace; empty is no manager.
            watchdog_s: what the manager waits for.
        """
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self._alive_at = -float("inf")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """The manager as `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` name it."""
        watchdog_s = 0.0
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with suppress(ValueError):
                watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s=watchdog_s)

    def ready(self) -> None:
        """The agent serves."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The agent is about to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`; said again only when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())}")

    def alive(self, now: float) -> None:
        """Call it often, with monotonic seconds: the manager hears of it four times as often as it asks to."""
        if self.watchdog_s and now >= self._alive_at + self.watchdog_s / 4:
            self._alive_at = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1.0)
            sender.sendto(message.encode(errors="replace"), self._address)
