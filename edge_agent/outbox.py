"""Reports that wait for the coordinator: what may wait, what goes when it is too much, and what to send now.

Receipts matter most, then alerts, then profile windows, then parts of rounds; in that order they are sent, and in the
opposite order they go when they take too many bytes. What went is counted, so that nobody takes the rest for all.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from contract import codec, limits
from contract.messages import Alert, Body, CommandReply, Dropped, ProfileWindow, RoundReply, SignedReceipt, UploadBlock
from edge_agent.config import Outbox as Bounds

SCHEMA = """
create table if not exists outbox (
    seq integer primary key autoincrement, body blob not null, priority integer not null, size integer not null,
    samples integer not null, part text not null, at real not null);
create index if not exists outbox_order on outbox (priority, seq, size, samples, part, at);
"""
_PRIORITY: dict[type, int] = {
    SignedReceipt: 0,
    Alert: 1,
    ProfileWindow: 2,
    UploadBlock: 3,
    RoundReply: 3,
    CommandReply: 3,
}
_COUNTED = ("receipts", "alerts", "windows", "rounds")  # by priority, fields of Dropped
_ENVELOPE_BYTES = 1024  # of a Report around its body
_WINDOWS_SHARE = 0.75  # of the bytes; beyond it windows should grow instead of closing
_VICTIMS = 64  # that are looked at together

Rows = Callable[..., list[tuple[Any, ...]]]


class Outbox:
    """The table of reports. Every method that changes something belongs into a transaction of its owner."""

    def __init__(self, rows: Rows, bounds: Bounds) -> None:
        """Use the tables behind `rows`, which runs one statement and gives its rows."""
        self._rows, self._bounds = rows, bounds
        self._bytes: dict[int, int] | None = None  # by priority; None where it must be read again

    def undone(self) -> None:
        """A transaction was rolled back: what is remembered of the table may be wrong."""
        self._bytes = None

    def add(self, body: Body, *, at: float, dropped: Dropped) -> tuple[int, Dropped]:
        """Take a report, and let others go where there is no room for all.

        Args:
            body: of the report.
            at: on the clock that `expire` uses.
            dropped: what went before.

        Returns:
            Its sequence number, and what went so far.

        Raises:
            TooLargeError: it could never be sent.
        """
        encoded = codec.encode(body)
        codec.check_size(encoded, limits.MESSAGE_BYTES - _ENVELOPE_BYTES, f"a {type(body).__name__} report")
        priority, samples, part = _PRIORITY[type(body)], 0, ""
        match body:
            case ProfileWindow():
                samples = body.counts.samples
            case UploadBlock():
                part = body.blob.sha256
            case RoundReply():
                part = body.weights.sha256 if body.weights else ""
        waiting = self._waiting()
        insert = "insert into outbox (body, priority, size, samples, part, at) values (?, ?, ?, ?, ?, ?)"
        self._rows(insert, encoded, priority, len(encoded), samples, part, at)
        seq = int(self._rows("select last_insert_rowid()")[0][0])
        waiting[priority] += len(encoded)
        while (excess := sum(waiting.values()) - self._bounds.max_bytes) > 0:
            dropped = self._drop(self._least_important(excess), dropped)
        return seq, dropped

    def is_over(self, size: int) -> bool:
        """Whether reports would have to go for one more of this size."""
        return sum(self._waiting().values()) + size > self._bounds.max_bytes

    def has_room_for_windows(self) -> bool:
        """Whether profile windows may close; where not, they lose nothing by growing instead."""
        return sum(self._waiting()[priority] for priority in range(3)) < _WINDOWS_SHARE * self._bounds.max_bytes

    def expire(self, now: float, dropped: Dropped) -> Dropped:
        """Let everything but receipts go that is older than the bounds say; what went so far."""
        old = "select seq, priority, size, samples, part from outbox where priority > 0 and at < ?"
        return self._drop(self._rows(old, now - self._bounds.keep_days * 86400.0), dropped)

    def pending(self, limit: int) -> list[int]:
        """Sequence numbers of reports to send first."""
        if self._bytes is not None and not any(self._bytes.values()):  # at rest, several times a second
            return []
        return [int(seq) for (seq,) in self._rows("select seq from outbox order by priority, seq limit ?", limit)]

    def count(self) -> int:
        """Reports that wait."""
        return int(self._rows("select count(*) from outbox")[0][0])

    def read(self, seq: int) -> Body | None:
        """A report that still waits."""
        rows = self._rows("select body from outbox where seq = ?", seq)
        return msgspec.msgpack.decode(rows[0][0], type=Body) if rows else None

    def lose(self, seq: int, dropped: Dropped) -> Dropped:
        """A report that cannot be read goes; what went so far."""
        rows = self._rows("select seq, priority, size, samples, part from outbox where seq = ?", seq)
        return self._drop(rows, dropped)

    def forget(self, seqs: Collection[int]) -> None:
        """The coordinator has these."""
        for seq in seqs:
            for priority, size in self._rows("select priority, size from outbox where seq = ?", seq):
                self._waiting()[priority] -= size
                self._rows("delete from outbox where seq = ?", seq)

    def _waiting(self) -> dict[int, int]:
        if self._bytes is None:
            sums = self._rows("select priority, sum(size) from outbox group by priority")
            self._bytes = dict.fromkeys(range(len(_COUNTED)), 0) | {int(key): int(size) for key, size in sums}
        return self._bytes

    def _least_important(self, excess: int) -> list[tuple[Any, ...]]:
        """Rows to let go so that `excess` bytes do, or some of them; the parts of one update go together."""
        query = "select seq, priority, size, samples, part from outbox order by priority desc, seq limit ?"
        victims: dict[int, tuple[Any, ...]] = {}
        for row in self._rows(query, _VICTIMS):
            part = "select seq, priority, size, samples, part from outbox where priority = ? and part = ?"
            for victim in self._rows(part, row[1], row[4]) if row[4] else [row]:
                victims[victim[0]] = victim
            if sum(victim[2] for victim in victims.values()) >= excess:
                break
        return list(victims.values())

    def _drop(self, rows: Sequence[tuple[Any, ...]], dropped: Dropped) -> Dropped:
        if not rows:
            return dropped
        counts = msgspec.structs.asdict(dropped)
        for _, priority, _, samples, _ in rows:
            counts[_COUNTED[priority]] += 1
            counts["samples"] += samples
        self.forget([row[0] for row in rows])
        return Dropped(**counts)


def heartbeat_is_due(now: float, due_at: float, period_s: float, *, busy: bool) -> bool:
    """Whether to send a heartbeat, which matters least: while reports are on their way it waits, two periods at most.

    A `due_at` of long ago, as for the first word of a connection, does not wait.
    """
    return now >= due_at and (not busy or now >= due_at + 2 * period_s)


class Flow:
    """Pure bookkeeping of reports on their way: a few at a time, again and ever later when nobody confirmed them."""

    IN_FLIGHT = 8
    LOOK_AHEAD = 2 * IN_FLIGHT  # a more important report must not make us forget what is on its way
    _LONGEST = 64  # times `retry_s`

    def __init__(self, *, retry_s: float) -> None:
        """Begin with nothing in flight; a report is due again `retry_s` seconds after it was sent, then twice that."""
        self._retry_s = retry_s
        self._sent: dict[int, tuple[float, int]] = {}  # by sequence number: when, and how often

    def reset(self) -> None:
        """The connection is new: nothing of what was sent may be relied on."""
        self._sent.clear()

    def due(self, pending: Sequence[int], now: float, *, on_the_way: Collection[int] = ()) -> list[int]:
        """What to send now.

        Args:
            pending: the first unconfirmed sequence numbers, `LOOK_AHEAD` of them, in the order of sending.
            now: monotonic seconds.
            on_the_way: what the broker does not have yet, so that the coordinator cannot answer: on a slow link a
                block takes longer than the patience with the coordinator.
        """
        for seq in on_the_way:
            self._sent[seq] = (now, self._sent.get(seq, (now, 1))[1])
        self._sent = {seq: sent for seq, sent in self._sent.items() if seq in pending}
        room = self.IN_FLIGHT - len(self._sent)
        due = []
        for seq in pending:
            if seq in self._sent:
                at, times = self._sent[seq]
                if now - at >= self._retry_s * min(2 ** (times - 1), self._LONGEST):
                    due.append(seq)
            elif room > 0:
                room -= 1
                due.append(seq)
        return due

    def sent(self, seq: int, now: float) -> None:
        """A report was handed to the connection."""
        self._sent[seq] = (now, self._sent.get(seq, (now, 0))[1] + 1)
