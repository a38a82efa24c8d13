"""Builds of read models: which one readers see, and when they see another one.

A model whose version rises gets a build of its own: a schema, with tables that are empty at first. The stable views
stay on the build that they show until the new one has every record of the log. Then whoever notices it, a worker that
has caught up on its partition or `plant db upgrade`, moves the views and `read_model_builds.live` in one transaction.

A build keeps the SQL that it was made with (projections/stored_builds.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from projections.errors import BuildReshaped
from projections.read_model import ReadModel
from projections.session import DataRefused, Session, sql_literal
from runtime.logging import get_logger
from streams.errors import PartitionStopped

log = get_logger(__name__)

LIVE: Final = "live"
BUSY: Final = "busy"

_EVENTS: Final = {(True, BUSY): "build.waiting", (False, LIVE): "build.shown"}
"""Log lines of a build that readers, or their transactions, keep from being shown at first."""

_SHOWN_TABLE = """
SELECT DISTINCT n.nspname || '.' || t.relname AS name FROM pg_rewrite AS r
JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS t ON t.oid = d.refobjid AND t.relkind = 'r'
JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE r.ev_class = to_regclass($1)
"""


def require_same_columns(session: Session, model: ReadModel, views: str) -> None:
    """Raise BuildReshaped unless the columns of each view, in the schema `views`, begin its new table's columns.

    Postgres moves a view to another table only then.
    """
    for name in model.tables:
        if _shown_table(session, f"{views}.{name}") is None:
            continue
        shown = list(session.column_types(f"{views}.{name}").items())
        made = list(session.column_types(f"{model.schema}.{name}").items())
        if made[: len(shown)] != shown:
            column, kind = next(each for index, each in enumerate(shown) if made[index : index + 1] != [each])
            raise BuildReshaped(
                f"Version {model.version} of the read model {model.name} has other columns than {views}.{name}.",
                why=f"Its table lacks {column} {kind} where the view has it.",
                next_step="plant db upgrade    # once tables of another shape have names of their own",
            )


def refresh_views(session: Session, model: ReadModel, views: str) -> None:
    """Bring the views of a build up to date if readers see it, as the owner.

    Where they are, nothing is done: it would lock the views, and wait for whoever reads them.
    """
    if all(_is_shown(session, f"{views}.{name}", f"{model.schema}.{name}") for name in model.tables):
        return
    session.script(
        f"SELECT show_build(projection, version) FROM read_model_builds WHERE live"  # noqa: S608 (literals)
        f" AND projection = {sql_literal(model.name)} AND version = {sql_literal(model.version)}"
    )


def _is_shown(session: Session, view: str, table: str) -> bool:
    """Return whether a view shows this table with all of its columns."""
    return _shown_table(session, view) == table and session.column_types(view) == session.column_types(table)


def _shown_table(session: Session, view: str) -> str | None:
    """Return the table that a view shows; None where there is no such view."""
    tables = session.query(_SHOWN_TABLE, (view,))
    return str(tables[0][0]) if tables else None


def publish(session: Session, model: ReadModel, *, caught_up: bool) -> str:
    """Let readers see a build if it is whole; returns `live`, `behind`, `busy` or `unknown`.

    `caught_up` says that it may have become so just now. `busy` means that readers, or another session that publishes,
    are in the way at this moment: ask again.
    """
    query = "SELECT publish_build($1, $2::int, $3::boolean) AS state"
    ((state,),) = session.query(query, (model.name, model.version, caught_up))
    return str(state)


def publish_all(session: Session, models: Iterable[ReadModel], *, caught_up: bool) -> list[ReadModel]:
    """Let readers see a worker's builds; returns those to ask again for. A refusal is logged and holds up nothing."""
    busy = []
    for model in models:
        try:
            state = publish(session, model, caught_up=caught_up)
            if state == BUSY:
                busy.append(model)
            event = _EVENTS.get((caught_up, state))
            if event is not None:
                log.info(event, model=model.name, version=model.version)
        except (DataRefused, PartitionStopped) as error:
            log.error("build.refused", model=model.name, version=model.version, why=getattr(error, "why", str(error)))
    return busy
