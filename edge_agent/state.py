"""What the agent must not forget: one SQLite file, each change one transaction, so that a kill -9 loses nothing.

The outbox, the open profile windows, which sample files were counted, which slot of a model serves and which wish was
answered change together or not at all. What everything else stands on has checksums: a disk that changed it is found
when the file is opened, and `recovery.open_state` begins anew.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from contract import codec
from contract.messages import Alert, Body, Dropped, Instruction, ProfileWindow, Report
from edge_agent import outbox, placement
from edge_agent.config import Outbox as Bounds
from edge_agent.errors import ConfigError, CorruptStateError
from edge_agent.placement import Placements, seal, unseal

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

_SCHEMA = """
create table if not exists meta (key text primary key, value blob not null);
create table if not exists windows (model text primary key, value blob not null);
create table if not exists files (
    name text primary key, samples integer not null, labelled integer not null, error text not null, at real not null);
create table if not exists instructions (
    id text primary key, payload blob not null, done integer not null, at real not null);
create table if not exists events (id integer primary key, at real not null, kind text not null, text text not null);
"""
_RUNNING = "running_s"
_DROPPED, _DROPPED_ALERT = "dropped", "dropped_alert"
_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a schema that is not ours
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_FORMAT,
    }
)
_WAITING = 100  # instructions; the coordinator sends what has no answer again
_REMEMBERED = 1000  # events, and names of instructions that are done


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is to blame, so that only another one helps; a full or busy disk is not."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _DAMAGE


def is_corruption(error: sqlite3.Error) -> bool:
    """Whether the disk changed the file while it was open."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


class Event(msgspec.Struct, frozen=True):
    """Something that the device's owner may want to know: `refused`, `activated`, `rolled-back`, `sample`."""

    at: float
    kind: str
    text: str


class State:
    """The agent's memory on disk. Safe to use from several threads; open it once a process.

    Attributes:
        models: where each model stands.
    """

    def __init__(
        self,
        path: Path,
        *,
        outbox_id: str,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create.

        Args:
            path: the SQLite file; its folder exists.
            outbox_id: name of the outbox if it must be created now.
            bounds: of the outbox; None are the defaults.
            clock: seconds since the epoch, for people.
            monotonic: seconds. Reports age by the time that the agent runs, since the clock of a device may jump.

        Raises:
            CorruptStateError: the file is no database, or not what was written.
            ConfigError: the disk does not take it.
        """
        self._lock = threading.RLock()
        self._depth = 0
        self._clock, self._monotonic = clock, monotonic
        self._outbox = outbox.Outbox(self._rows, bounds or Bounds())
        self.models = Placements(self._rows)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            try:
                self._prepare(outbox_id)
            except BaseException:
                self._db.close()
                raise
        except CorruptStateError as error:
            raise CorruptStateError(f"{path}: the agent's memory is damaged: {error}") from error
        except sqlite3.Error as error:
            kind = CorruptStateError if is_damage(error) else ConfigError
            raise kind(f"{path}: the agent's memory cannot be used: {error}") from error

    def _prepare(self, outbox_id: str) -> None:
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute("pragma cache_size = -512")  # KiB: the default 2 MB is much for a small device
        for (complaint,) in self._rows("pragma quick_check(1)"):
            if complaint != "ok":
                raise CorruptStateError(complaint)
        self._db.executescript(_SCHEMA + outbox.SCHEMA + placement.SCHEMA)
        self._verify()
        with self.transaction():
            self.outbox_id = self.get("outbox_id", str, "")
            if not self.outbox_id:
                self.outbox_id = outbox_id
                self.put("outbox_id", outbox_id)
            self._began = self._monotonic() - self.get(_RUNNING, float, 0.0)

    def _verify(self) -> None:
        """Read all that has a checksum, and forget work that cannot be read: it can never be done."""
        for key, value in self._rows("select key, value from meta"):
            unseal(key, value, msgspec.Raw)
        for model in self.windows():
            self.window(model)
        self.models.all()
        self.models.rollbacks()
        for identifier, payload in self._rows("select id, payload from instructions where done = 0"):
            try:
                msgspec.msgpack.decode(payload, type=Instruction)
            except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
                self.instruction_done(identifier)

    def close(self) -> None:
        """Close the file; what was committed stays."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together, or undone by an exception; may be nested."""
        with self._lock:
            if self._depth:
                yield
                return
            self._db.execute("begin immediate")
            self._depth = 1
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                self._outbox.undone()
                if self._db.in_transaction:  # on a full disk SQLite may have undone it already, or not
                    self._db.execute("rollback")
                raise
            finally:
                self._depth = 0

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._lock, closing(self._db.execute(sql, parameters)) as cursor:
            return cursor.fetchall()

    def get(self, key: str, kind: type[T], default: T) -> T:
        """A value by name, or `default`."""
        rows = self._rows("select value from meta where key = ?", key)
        return unseal(key, rows[0][0], kind) if rows else default

    def put(self, key: str, value: object) -> None:
        """Remember a value; None forgets it."""
        if value is None:
            self._rows("delete from meta where key = ?", key)
        else:
            self._rows("insert or replace into meta values (?, ?)", key, seal(key, value))

    def note(self, key: str, value: object) -> None:
        """As `put`, but a disk that takes nothing now is no error: the value may be lost."""
        try:
            self.put(key, value)
        except sqlite3.OperationalError as error:
            _LOG.warning("%s is not noted down: %s", key, error)

    # The outbox.

    def report(self, body: Body) -> int:
        """Put a durable report into the outbox; returns its sequence number.

        Raises:
            TooLargeError: it could never be sent.
        """
        with self.transaction():
            before = self.dropped
            seq, after = self._outbox.add(body, at=self._age(), dropped=before)
            self._note_dropped(before, after)
            return seq

    def alert(self, kind: str, text: str, *, at: float, model: str = "") -> None:
        """Write an event down, and tell the coordinator of it too."""
        with self.transaction():
            self.event(kind, text, at=at)
            self.report(Alert(kind=kind, text=text, model=model, at=at))

    def has_room(self, size: int) -> bool:
        """Whether reports of so many bytes fit without others going for them."""
        with self._lock:
            return not self._outbox.is_over(size)

    def expire(self) -> None:
        """Let reports go that waited for longer than they may; call this now and then."""
        with self.transaction():
            before = self.dropped
            self._note_dropped(before, self._outbox.expire(self._age(), before))

    @property
    def dropped(self) -> Dropped:
        """Reports that left the outbox unsent."""
        return self.get(_DROPPED, Dropped, Dropped())

    def has_room_for_windows(self) -> bool:
        """Whether profile windows may close; where not, they lose nothing by growing instead."""
        with self._lock:
            return self._outbox.has_room_for_windows()

    def pending(self, limit: int) -> list[int]:
        """Sequence numbers of the reports to send first that are not acknowledged."""
        return self._outbox.pending(limit)

    def pending_count(self) -> int:
        """Reports that are not acknowledged."""
        return self._outbox.count()

    def read_report(self, seq: int) -> Report | None:
        """A report that is still in the outbox."""
        try:
            body = self._outbox.read(seq)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):  # the disk changed it: it can never be sent
            with self.transaction():
                self.put(_DROPPED, self._outbox.lose(seq, self.dropped))
                self.alert("damaged", f"report {seq} could not be read and is lost", at=self._clock())
            return None
        return None if body is None else Report(outbox=self.outbox_id, seq=seq, body=body)

    def forget(self, outbox_id: str, seqs: Sequence[int]) -> None:
        """The coordinator has these reports; those of another outbox are none of ours."""
        if outbox_id == self.outbox_id:
            with self.transaction():
                self._outbox.forget(seqs)

    def running_s(self) -> float:
        """Seconds that the agent has run since the state was made; no clock can set it back or forward."""
        return self._monotonic() - self._began

    def _age(self) -> float:
        """Seconds that the agent has run since the state was made, remembered."""
        age = self.running_s()
        self.put(_RUNNING, age)
        return age

    def _note_dropped(self, before: Dropped, after: Dropped) -> None:
        """Remember what went, and say so unless that still waits to be said."""
        if before == after:
            return
        if self._outbox.read(self.get(_DROPPED_ALERT, int, 0)) is None:
            text = "reports that waited too long or took too much room are dropped unsent, the least important first"
            at = self._clock()
            seq, after = self._outbox.add(Alert(kind="outbox", text=text, at=at), at=self._age(), dropped=after)
            self.put(_DROPPED_ALERT, seq)
            self.event("outbox", text, at=at)
        self.put(_DROPPED, after)

    # The open profile windows and the sample files that were counted.

    def windows(self) -> list[str]:
        """Models with a window that is being filled."""
        return [model for (model,) in self._rows("select model from windows order by model")]

    def window(self, model: str) -> ProfileWindow | None:
        """The window of a model that is being filled."""
        rows = self._rows("select value from windows where model = ?", model)
        return unseal(model, rows[0][0], ProfileWindow) if rows else None

    def set_window(self, model: str, window: ProfileWindow) -> None:
        """Remember the open window of a model."""
        self._rows("insert or replace into windows values (?, ?)", model, seal(model, window))

    def close_window(self, model: str) -> None:
        """Turn the open window of a model, if it counts anything, into a report."""
        with self.transaction():
            window = self.window(model)
            if window is None:
                return
            if window.counts.samples:
                self.report(window)
            self._rows("delete from windows where model = ?", model)

    def file_done(self, name: str, *, samples: int, labelled: int, error: str = "", at: float) -> None:
        """This file was counted, or (with `error`) can never be."""
        self._rows("insert or replace into files values (?, ?, ?, ?, ?)", name, samples, labelled, error, at)

    def files_done(self) -> dict[str, int]:
        """Labelled samples of each file that was counted."""
        return {name: int(n) for name, n in self._rows("select name, labelled from files")}

    def forget_files(self, names: Iterable[str]) -> None:
        """These files are gone."""
        with self.transaction():
            for name in names:
                self._rows("delete from files where name = ?", name)

    # Instructions.

    def add_instruction(self, instruction: Instruction, *, at: float) -> bool:
        """Remember work to do; False where it is known already, or where a hundred others wait for their turn."""
        with self.transaction():
            if self._rows("select 1 from instructions where id = ?", instruction.id):
                return False
            if self._rows("select count(*) from instructions where done = 0")[0][0] >= _WAITING:
                return False
            self._rows("insert into instructions values (?, ?, 0, ?)", instruction.id, codec.encode(instruction), at)
            old = "delete from instructions where done = 1 and rowid <= (select max(rowid) from instructions) - ?"
            self._rows(old, _REMEMBERED)
            return True

    def next_instruction(self) -> Instruction | None:
        """The oldest instruction that is not done."""
        rows = self._rows("select payload from instructions where done = 0 order by at, rowid limit 1")
        return msgspec.msgpack.decode(rows[0][0], type=Instruction) if rows else None

    def instruction_done(self, identifier: str) -> None:
        """Never do it again; its name is remembered until 1000 newer ones came."""
        self._rows("update instructions set done = 1, payload = x'' where id = ?", identifier)

    # What the owner may want to know.

    def event(self, kind: str, text: str, *, at: float) -> None:
        """Write an event down, and forget those that are 1000 events old."""
        with self.transaction():
            self._rows("insert into events (at, kind, text) values (?, ?, ?)", at, kind, text)
            self._rows("delete from events where id <= (select max(id) from events) - ?", _REMEMBERED)

    def events(self, limit: int) -> list[Event]:
        """The newest events, newest first."""
        return [Event(*row) for row in self._rows("select at, kind, text from events order by id desc limit ?", limit)]

    def last_event(self, kind: str) -> Event | None:
        """The newest event of a kind."""
        rows = self._rows("select at, kind, text from events where kind = ? order by id desc limit 1", kind)
        return Event(*rows[0]) if rows else None
