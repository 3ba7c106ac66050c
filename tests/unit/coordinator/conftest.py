"""The databases that the coordinator's services run on: each test that asks for `database` runs on both."""

from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database.sqlite'}"
    folder, name = request.getfixturevalue("postgresql_server"), f"t{uuid4().hex[:12]}"
    admin = create_engine(f"postgresql+psycopg://fieldfare@/postgres?host={folder}", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"postgresql+psycopg://fieldfare@/{name}?host={folder}"
