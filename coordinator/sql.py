"""Small things between SQLAlchemy and the rest: rows to records, and the statement that dialects spell in two ways."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, RowMapping, Table, literal
from sqlalchemy.dialects import postgresql, sqlite

T = TypeVar("T")


def insert_once(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless one with the same key is there; returns whether it was inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row).on_conflict_do_nothing().returning(literal(1))
    return connection.execute(statement).first() is not None


def to_record(row: RowMapping | Mapping[str, Any], kind: type[T]) -> T:
    """A record from a row; columns that the record has no field for are left out."""
    # SQLAlchemy's column names are a subclass of str, which msgspec does not take for one
    return msgspec.convert({str(name): value for name, value in row.items()}, kind)
