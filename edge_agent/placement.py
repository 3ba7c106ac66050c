"""Where each model stands on this device: which slot serves, which one before, how it does, what was rolled back."""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from contract import codec
from contract.messages import BundleRef
from edge_agent.errors import CorruptStateError
from edge_agent.health import Tally

T = TypeVar("T")
Rows = Callable[..., list[tuple[Any, ...]]]

SCHEMA = """
create table if not exists models (name text primary key, placement blob not null);
create table if not exists rollbacks (sha256 text primary key, value blob not null);
create table if not exists orders (id integer primary key autoincrement, value blob not null, answer text);
"""
_ANSWERED_ORDERS = 20  # that are remembered


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that holds a verified bundle.

    Attributes:
        name: `a` or `b`.
        rollout: that brought it.
        activated_at: seconds since the epoch.
        memory_bytes: that the self-test took for it.
    """

    name: str
    bundle: BundleRef
    rollout: str | None
    activated_at: float
    memory_bytes: int = 0


class Probation(msgspec.Struct, frozen=True, kw_only=True):
    """How a new bundle does."""

    tally: Tally = Tally()


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model stands on this device.

    Attributes:
        active: the slot that serves.
        previous: the slot that served before and still holds its bundle.
        probation: of the active bundle; None once it is good.
        starts: of the agent with the active bundle that nobody knows to have gone well, the one in progress included.
        answered: revision of the last wish that was fulfilled or refused; 0 before the first.
        tried: digest of the bundle that is being taken up, empty where none is.
        tries: how often the agent began to take it up and did not get to the end of it, this time included.
    """

    active: Slot | None = None
    previous: Slot | None = None
    probation: Probation | None = None
    starts: int = 0
    answered: int = 0
    tried: str = ""
    tries: int = 0


class Rollbacks(msgspec.Struct, frozen=True, kw_only=True):
    """How often a bundle was rolled back here, and why the last time; `final` where a person did it."""

    bundle: BundleRef
    count: int
    reason: str
    final: bool = False


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wants of the agent that runs: roll back a model; an empty name is the only one."""

    id: int
    model: str


def seal(name: str, value: object) -> bytes:
    """An encoded value, and before it a checksum over it and the name that it goes by."""
    encoded = codec.encode(value)
    return zlib.crc32(name.encode() + b"\0" + encoded).to_bytes(4, "big") + encoded


def unseal(name: str, data: bytes, kind: type[T]) -> T:
    """The value that `seal` was given.

    Raises:
        CorruptStateError: the disk changed it.
    """
    encoded = bytes(data[4:])
    try:
        if zlib.crc32(name.encode() + b"\0" + encoded).to_bytes(4, "big") == data[:4]:
            return msgspec.msgpack.decode(encoded, type=kind)
    except (msgspec.DecodeError, TypeError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"{name!r} cannot be read: {error}") from error
    raise CorruptStateError(f"{name!r} is not what was written")


class Placements:
    """The tables of models. A single call is atomic; several belong into a transaction of their owner."""

    def __init__(self, rows: Rows) -> None:
        """Use the tables behind `rows`, which runs one statement and gives its rows."""
        self._rows = rows

    def all(self) -> dict[str, Placement]:
        """Every model that this device ever had, by name.

        Raises:
            CorruptStateError: the disk changed one.
        """
        rows = self._rows("select name, placement from models order by name")
        return {name: unseal(name, value, Placement) for name, value in rows}

    def get(self, model: str) -> Placement:
        """Where a model stands; one that never was here stands nowhere."""
        rows = self._rows("select placement from models where name = ?", model)
        return unseal(model, rows[0][0], Placement) if rows else Placement()

    def put(self, model: str, placement: Placement) -> None:
        """Remember where a model stands from now on."""
        self._rows("insert or replace into models values (?, ?)", model, seal(model, placement))

    # What was rolled back.

    def rollbacks(self) -> list[Rollbacks]:
        """Every bundle that was rolled back here."""
        rows = self._rows("select sha256, value from rollbacks order by rowid")
        return [unseal(sha256, value, Rollbacks) for sha256, value in rows]

    def rolled_back(self, sha256: str) -> Rollbacks | None:
        """How a bundle was rolled back here."""
        rows = self._rows("select value from rollbacks where sha256 = ?", sha256)
        return unseal(sha256, rows[0][0], Rollbacks) if rows else None

    def add_rollback(self, bundle: BundleRef, reason: str, *, final: bool) -> Rollbacks:
        """Count one more."""
        before = self.rolled_back(bundle.sha256)
        count, banned = (before.count, before.final) if before else (0, False)
        after = Rollbacks(bundle=bundle, count=count + 1, reason=reason, final=final or banned)
        self._rows("insert or replace into rollbacks values (?, ?)", bundle.sha256, seal(bundle.sha256, after))
        return after

    def clear_rollbacks(self, sha256: str) -> None:
        """Forget that a bundle was rolled back here."""
        self._rows("delete from rollbacks where sha256 = ?", sha256)

    # What a person wants of the agent that runs.

    def give_order(self, model: str) -> int:
        """Ask the agent that runs to roll a model back; the name of the order."""
        return int(self._rows("insert into orders (value) values (?) returning id", codec.encode(model))[0][0])

    def next_order(self) -> Order | None:
        """The oldest order that was not answered."""
        rows = self._rows("select id, value from orders where answer is null order by id limit 1")
        return Order(id=rows[0][0], model=msgspec.msgpack.decode(rows[0][1], type=str)) if rows else None

    def answer_order(self, identifier: int, answer: str) -> None:
        """Say how an order went: an empty answer is success, another says why not."""
        self._rows("update orders set answer = ? where id = ?", answer, identifier)
        self._rows("delete from orders where id <= ?", identifier - _ANSWERED_ORDERS)

    def order_answer(self, identifier: int) -> str | None:
        """How an order went; None while nobody has answered."""
        rows = self._rows("select answer from orders where id = ?", identifier)
        return rows[0][0] if rows else None
