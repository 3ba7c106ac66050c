"""Bringing a database to the tables that this version of the coordinator uses."""

from importlib import import_module
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.exc import OperationalError

from coordinator.errors import SetupError
from coordinator.storage import metadata

PACKAGES = ("registry", "jobs", "fleet", "signing", "rollouts", "rounds", "monitoring", "deltas")


def tables() -> MetaData:
    """Every table of the coordinator, declared by its sub-packages."""
    for package in PACKAGES:
        import_module(f"coordinator.{package}.tables")
    return metadata


def configuration() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def upgrade(engine: Engine) -> None:
    """Apply every migration that is missing, in one transaction.

    Raises:
        SetupError: the database does not answer, or was made by a newer version.
    """
    try:
        with engine.begin() as connection:
            _upgrade(connection)
    except OperationalError as error:
        raise SetupError(f"the database does not answer: {str(error.orig).strip().splitlines()[0]}") from error


def _upgrade(connection: Connection) -> None:
    config = configuration()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise SetupError(f"the database is at revision {current}, which this version of Fieldfare does not know")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
