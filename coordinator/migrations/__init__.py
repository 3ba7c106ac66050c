"""Alembic migrations; `coordinator.migrate` applies them."""
