"""Alembic's entry point. `database/migrate.py` brings the connection, or asks for SQL; it has no other caller."""

from __future__ import annotations

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
else:
    # A transaction a migration: building an index concurrently has to end the one it is in.
    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
