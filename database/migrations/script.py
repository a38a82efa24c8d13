"""Runs SQL text of several statements in a migration, as it stands."""

from __future__ import annotations

from alembic import op


def run_script(sql: str) -> None:
    """Run every statement of `sql` in the migration's transaction; when Alembic writes SQL instead, write it.

    asyncpg prepares what SQLAlchemy sends it, and a prepared statement is one statement; scripts need Postgres's
    simple protocol. Nothing is read as a parameter: colons and percent signs are text.
    """
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(sql.strip())
        return
    connection = op.get_bind()
    # SQLAlchemy begins the driver's transaction with the first statement that goes through it.
    connection.exec_driver_sql("SELECT 1")
    adapted = connection.connection.dbapi_connection
    assert adapted is not None, "a connection in use has a driver's connection"
    adapted.run_async(lambda driver: driver.execute(sql))
