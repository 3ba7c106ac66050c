"""Small things between SQLAlchemy and the rest: rows to records, and what dialects do in two ways."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, RowMapping, Table, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError

T = TypeVar("T")

# What a database says of a value that its column cannot hold: a NUL character, a long text, a large number. Databases
# differ in what they refuse, and SQLite leaves some of it to Python.
DOES_NOT_FIT = (DataError, OverflowError)


def insert_once(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless one with the same key is there; returns whether it was inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row).on_conflict_do_nothing().returning(literal(1))
    return connection.execute(statement).first() is not None


def take_turns(connection: Connection, what: str) -> None:
    """Wait until no other transaction that took its turn at `what` is open; then it is this one's until it ends.

    For rules over several rows, which are read before they are written. SQLite's transactions take turns anyway
    (`storage.open_engine`).
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(what))))


def to_record(row: RowMapping | Mapping[str, Any], kind: type[T]) -> T:
    """A record from a row; columns that the record has no field for are left out."""
    # SQLAlchemy's column names are a subclass of str, which msgspec does not take for one
    return msgspec.convert({str(name): value for name, value in row.items()}, kind)
