"""Creating the read models' tables and stable views; `plant db upgrade` runs it after the migrations, as the owner."""

from __future__ import annotations

from collections.abc import Iterable

from projections.catalogue import READ_MODELS
from projections.read_model import ReadModel
from projections.session import Session
from projections.statements import statements

VIEWS = "read_models"
"""The schema of the stable views that readers use; each points at the live build's table."""


def install(url: str, models: Iterable[ReadModel] = READ_MODELS) -> None:
    """Create what is missing: a schema a build, its tables, its view and grants. Running it again changes nothing."""
    session = Session(url)
    try:
        session.begin()
        session.execute("SELECT pg_advisory_xact_lock(hashtext('plant.projections.install'))")
        for statement in _statements(models):
            session.execute(statement)
        session.commit()
    finally:
        session.close()


def _statements(models: Iterable[ReadModel]) -> Iterable[str]:
    yield f"CREATE SCHEMA IF NOT EXISTS {VIEWS}"
    yield f"GRANT USAGE ON SCHEMA {VIEWS} TO plant_api, plant_auditor"
    for model in models:
        yield f"CREATE SCHEMA IF NOT EXISTS {model.schema}"
        yield from statements(model.tables_sql)
        yield f"GRANT USAGE ON SCHEMA {model.schema} TO plant_writer, plant_api, plant_auditor"
        for table in model.tables:
            yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {model.schema}.{table} TO plant_writer"
            yield f"GRANT SELECT ON {model.schema}.{table} TO plant_api, plant_auditor"
            yield (
                f"CREATE OR REPLACE VIEW {VIEWS}.{table} WITH (security_invoker = true) AS "  # noqa: S608
                f"SELECT * FROM {model.schema}.{table}"
            )
            yield f"GRANT SELECT ON {VIEWS}.{table} TO plant_api, plant_auditor"
