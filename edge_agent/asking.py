"""Questions over MQTT: sent again until they are answered, nobody wants the answer any more, or patience is over."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from contract.messages import Up
from edge_agent.errors import UnavailableError
from edge_agent.session import Link

Key = TypeVar("Key")
Reply = TypeVar("Reply")
_POLL_S = 0.25  # how soon a waiting question notices that the agent ends


class Asker(Generic[Key, Reply]):
    """Asks one question at a time, and one ahead. `accept` is called by the thread that reads the session's inbox."""

    def __init__(
        self,
        link: Link,
        *,
        retry_s: float = 10.0,
        patience_s: float = 60.0,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            link: the session.
            retry_s: seconds without an answer after which a question is sent again.
            patience_s: seconds without an answer after which it is given up.
            stopping: set when the agent ends.
            clock: monotonic seconds.
        """
        self._link = link
        self._retry_s, self._patience_s = retry_s, patience_s
        self._stopping, self._clock = stopping, clock
        self._lock = threading.Lock()
        self._waiting: dict[Key, queue.Queue[Reply]] = {}
        self._ahead: tuple[Key, float | None] | None = None  # what was asked ahead, and when

    def answer(self, key: Key, reply: Reply) -> None:
        """What came; an answer that nobody waits for is dropped."""
        with self._lock:
            waiting = self._waiting.get(key)
        if waiting is not None:
            with suppress(queue.Full):  # it has its answer
                waiting.put_nowait(reply)

    def ask_ahead(self, key: Key, question: Up) -> None:
        """Ask now what `wait_for` will be called with soon: the answer comes while other things are done."""
        asked_at = self._clock()
        with self._lock:
            if self._ahead is not None:
                self._waiting.pop(self._ahead[0], None)
            self._waiting[key] = queue.Queue(1)
        self._ahead = key, asked_at if self._link.send(question) else None

    def wait_for(self, key: Key, question: Up, what: str, give_up: Callable[[], bool] = lambda: False) -> Reply:
        """Ask, and wait.

        Args:
            key: by which `answer` knows the answer.
            question: to send.
            what: it is, for people.
            give_up: asked again and again; it may raise, too.

        Raises:
            UnavailableError: nobody answers, the agent ends, or `give_up` said so.
        """
        ahead, self._ahead = self._ahead, None
        asked_at = ahead[1] if ahead is not None and ahead[0] == key else None
        with self._lock:
            answers = self._waiting.setdefault(key, queue.Queue(1))
        try:
            started = self._clock()
            while self._clock() - started < self._patience_s and not self._stopping.is_set() and not give_up():
                if asked_at is None or self._clock() - asked_at >= self._retry_s:
                    asked_at = self._clock() if self._link.send(question) else None
                with suppress(queue.Empty):
                    return answers.get(timeout=_POLL_S)
        finally:
            with self._lock:
                del self._waiting[key]
        raise UnavailableError(f"no answer to {what} in {self._patience_s:.0f} s")
