"""Builds of read models: which one readers see, and when they see another one.

A model whose version rises gets a build of its own: a schema, with tables that are empty at first. The stable views
stay on the build that they show until the new one has every record of the log. Then whoever notices it, a worker that
has caught up on its partition or `plant db upgrade`, moves the views and `read_model_builds.live` in one transaction.

A version of another shape can't take the views over: it is shown beside the former one, under names that end in its
version, and both are live until an operator retires the former one.

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


_SUFFIX = "SELECT view_suffix FROM read_model_builds WHERE projection = $1 AND version = $2"
_EARLIER = """
SELECT projection || '_v' || version AS schema, view_suffix, array_to_string(tables, ',') AS tables
FROM read_model_builds AS b WHERE read_model = $1 AND phase <> 'retired' ORDER BY live DESC, version DESC, projection
"""


def view_suffix(session: Session, model: ReadModel) -> str:
    """Return what follows the names of a build's tables in those of its views.

    It is kept with the build. A new version shares views with the latest one whose tables it has, with the same columns
    first: Postgres moves a view only then. One of another shape is shown under names of its own, `agents_v2`.
    """
    kept = session.query(_SUFFIX, (model.name, model.version))
    if kept:
        return str(kept[0][0])
    earlier = session.query(_EARLIER, (model.name_of_model,))
    for schema, suffix, tables in earlier:
        if all(_begins(session, f"{schema}.{name}", f"{model.schema}.{name}") for name in tables.split(",")):
            return str(suffix)
    return f"_v{model.version}" if earlier else ""


def _begins(session: Session, first: str, second: str) -> bool:
    """Return whether the columns of a table begin those of another, or are those of no table any more."""
    columns = list(session.column_types(first).items())
    return list(session.column_types(second).items())[: len(columns)] == columns


def require_same_columns(session: Session, model: ReadModel, views: str) -> None:
    """Raise BuildReshaped unless the columns of each view, in the schema `views`, begin its table's columns.

    A version that is there already is asked: it keeps the names of its views.
    """
    suffix = view_suffix(session, model)
    for name in model.tables:
        view, table = f"{views}.{name}{suffix}", f"{model.schema}.{name}"
        if _shown_table(session, view) is None or _begins(session, view, table):
            continue
        shown, made = (list(session.column_types(each).items()) for each in (view, table))
        column, kind = next(each for index, each in enumerate(shown) if made[index : index + 1] != [each])
        raise BuildReshaped(
            f"Version {model.version} of the read model {model.name} has other columns than {view}.",
            why=f"Its table lacks {column} {kind} where the view has it.",
            next_step="plant projections list    # a version after both is shown under names of its own",
        )


def refresh_views(session: Session, model: ReadModel, views: str) -> None:
    """Bring the views of a build up to date if readers see it, as the owner.

    Where they are, nothing is done: it would lock the views, and wait for whoever reads them.
    """
    suffix = view_suffix(session, model)
    if all(_is_shown(session, f"{views}.{name}{suffix}", f"{model.schema}.{name}") for name in model.tables):
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
