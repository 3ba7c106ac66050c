"""Alembic's entry: runs the migrations on the connection that `coordinator.migrate` hands over."""

from alembic import context

from coordinator.migrate import tables

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=tables())
with context.begin_transaction():
    context.run_migrations()
