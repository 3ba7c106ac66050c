"""The certificate renews by itself when a third of its life is left: over MQTT, or over HTTPS where that fails.

The key stays, so a kill at any moment leaves a certificate and a key that belong together. A device that was away
until after the end renews over HTTPS, if the coordinator still allows it; else a person has to enrol it again.
"""

import logging
import queue
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from contract.messages import RenewalReply, RenewalRequest, Up
from edge_agent import certificate
from edge_agent.certificate import Act, Validity
from edge_agent.errors import AgentError, EnrolmentError, UnavailableError
from edge_agent.events import Tell, silent
from edge_agent.liveness import Stopping

_LOG = logging.getLogger(__name__)
FIRST_LOOK_S = 3.0  # after the start, which has enough to do
LOOK_S = 60.0  # between two looks at the clock, which may be set meanwhile
PAUSE_S = (60.0, 6 * 3600.0)  # after a try that failed: the first, and the longest


class Pace:
    """When to try: never in a tight loop, whatever the clock says and the coordinator answers. Pure."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._failures = 0
        self._not_before = 0.0

    def may_try(self, monotonic: float) -> bool:
        """Whether it is time."""
        return monotonic >= self._not_before

    def failed(self, monotonic: float) -> float:
        """Wait longer and longer; the seconds until the next try."""
        pause = min(PAUSE_S[1], PAUSE_S[0] * 2 ** min(self._failures, 20)) * (0.5 + 0.5 * self._jitter())
        self._failures += 1
        self._not_before = monotonic + pause
        return pause

    def useless(self, monotonic: float) -> None:
        """It worked and did not help: this clock is wrong, and asking again soon would not help either."""
        self._not_before = monotonic + PAUSE_S[1]

    def succeeded(self) -> None:
        """The certificate is new."""
        self._failures = 0


class Renewal:
    """Call `work` again and again, in a thread of its own."""

    def __init__(
        self,
        root: Path,
        *,
        has_url: bool,
        send: Callable[[Up], bool],
        renewed: Callable[[], None],
        stopping: Stopping,
        retry_s: float,
        clock: Callable[[], float] = time.time,
        tell: Tell = silent,
    ) -> None:
        """Compose it.

        Args:
            root: the agent's folder.
            has_url: whether the coordinator's HTTPS API is configured.
            send: hands a message to the MQTT session; False where there is none.
            renewed: the session must show the new certificate from now on.
            stopping: asks the agent to end.
            retry_s: seconds to wait for an answer over MQTT.
            clock: seconds since the epoch, by this device.
            tell: hears `renewed`, `renewal-failed` and `certificate-expired`.
        """
        self._root = root
        self._has_url = has_url
        self._send = send
        self._renewed = renewed
        self._stopping = stopping
        self._retry_s = retry_s
        self._clock = clock
        self._tell = tell
        self._pace = Pace()
        self._answers: queue.Queue[bytes] = queue.Queue(1)
        self._validity: Validity | None = None
        self._told_expired = False

    def accept(self, reply: RenewalReply) -> None:
        """Take the coordinator's answer; one that nobody waits for is dropped by the next question."""
        if not self._answers.full():
            self._answers.put(reply.certificate.encode())

    def work(self) -> None:
        """Look at the clock, renew if it is time, and wait a little."""
        if self._validity is None:
            self._stopping.wait(FIRST_LOOK_S)
            try:
                self._validity = self._ask("show")
            except AgentError as error:
                _LOG.error("it cannot be said when the certificate must be renewed: %s", error)
                self._stopping.wait(PAUSE_S[0])
                return
        if self._is_due(self._validity) and self._pace.may_try(time.monotonic()):
            self._complain(self._validity)
            self._try(self._validity)
        self._stopping.wait(LOOK_S)

    def _is_due(self, validity: Validity) -> bool:
        """Whether to ask. A clock that stands before the certificate was made cannot tell, and the coordinator can."""
        return not validity.begins <= self._clock() < validity.due

    def _complain(self, validity: Validity) -> None:
        if self._clock() > validity.ends and not self._told_expired:
            self._told_expired = True
            _LOG.error(
                "the certificate of this device expired on %s, and the broker refuses it; it tries to renew it over "
                "HTTPS. If that is refused, stop the agent and use: edge-agent enrol --again",
                _day(validity.ends),
            )
            self._tell("certificate-expired", ends=validity.ends)

    def _try(self, old: Validity) -> None:
        try:
            new = self._over_mqtt() or self._over_https()
        except AgentError as error:
            pause = self._pace.failed(time.monotonic())
            level = logging.ERROR if isinstance(error, EnrolmentError) else logging.WARNING
            _LOG.log(level, "the certificate was not renewed: %s; again in %.0f min", error, pause / 60)
            self._tell("renewal-failed", reason=str(error), ends=old.ends)
            return
        self._validity = new
        if new != old:
            self._pace.succeeded()
            self._told_expired = False
            self._renewed()
            _LOG.info("the certificate is renewed, and good until %s", _day(new.ends))
            self._tell("renewed", ends=new.ends)
        if self._is_due(new):
            self._pace.useless(time.monotonic())
            _LOG.warning(
                "the newest certificate is good until %s, this device's clock says %s: set the clock",
                _day(new.ends),
                _day(self._clock()),
            )

    def _over_mqtt(self) -> Validity | None:
        while not self._answers.empty():
            self._answers.get()
        if not self._send(RenewalRequest()):
            return None
        deadline = time.monotonic() + self._retry_s
        while time.monotonic() < deadline and not self._stopping.is_set():
            try:
                pem = self._answers.get(timeout=0.2)
            except queue.Empty:
                continue
            return self._ask("install", pem)
        return None

    def _over_https(self) -> Validity:
        if self._stopping.is_set():
            raise UnavailableError("the agent ends")
        if not self._has_url:
            raise UnavailableError("nobody answered over MQTT, and no url of the coordinator's API is configured")
        return self._ask("fetch")

    def _ask(self, act: Act, pem: bytes = b"") -> Validity:
        with self._stopping.patient(certificate.CHILD_S):
            return certificate.ask(self._root, act, pem, give_up=self._stopping.is_set)


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
