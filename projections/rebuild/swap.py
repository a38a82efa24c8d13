"""Moving readers from one build of a read model to another, and what is proved before.

The views move in one transaction, in which no worker commits and both builds are at the log's end. It gives up within
50 ms of waiting for a reader's lock, and is tried again. A transaction that began before the target was known to be
whole has to end first: it would read through the new view what the target was then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from projections import builds
from projections.install import VIEWS
from projections.read_model import ReadModel
from projections.rebuild.errors import SwapRefused
from projections.rebuild.rebuilds import KnownBuild
from projections.session import Session, StatementEnded, sql_literal

MOVE_TIMEOUT: Final = "SET LOCAL statement_timeout = '100ms'"
"""All locks of a try together: readers wait no longer than this."""

PAUSE_SECONDS: Final = 0.02
"""Between two tries, for readers that have waited."""

_MOVE = "SELECT move_readers($1, $2::int, $3::boolean) AS state"

_NOTE_SWAPPED = """
UPDATE rebuilds SET swapped_at = clock_timestamp(), replaced = {replaced}
WHERE projection = {name} AND version = {version}
"""
_NOTE_LEFT = """
UPDATE rebuilds SET verified_at = NULL, verified_with = NULL, verified_rows = NULL
WHERE projection = {name} AND version = {version}
"""
_KEEP = """
UPDATE read_model_builds SET phase = 'kept'
WHERE projection = {name} AND version = {version} AND phase = 'released'
"""

NOTE_VERIFIED = """
UPDATE rebuilds SET verified_at = clock_timestamp(), verified_with = $3, verified_rows = $4
WHERE projection = $1 AND version = $2
"""

# What readers and workers may do with a table, and what their queries are planned with.
_DESCRIBED = """
SELECT json_build_object(
    'rights', (SELECT array_agg(grantee::regrole::text || ' ' || privilege_type ORDER BY 1)
               FROM aclexplode(c.relacl) AS a (grantor, grantee, privilege_type, grantable)),
    'rights on the schema', (SELECT array_agg(grantee::regrole::text || ' ' || privilege_type ORDER BY 1)
               FROM aclexplode(n.nspacl) AS a (grantor, grantee, privilege_type, grantable)),
    'row-level security', c.relrowsecurity AND c.relforcerowsecurity,
    'policies', (SELECT array_agg(format('%s %s %s %s', p.polname, p.polcmd, pg_get_expr(p.polqual, p.polrelid),
                                         pg_get_expr(p.polwithcheck, p.polrelid)) ORDER BY p.polname)
                 FROM pg_policy AS p WHERE p.polrelid = c.oid),
    'indexes', (SELECT array_agg(replace(pg_get_indexdef(i.indexrelid), n.nspname || '.', '') ORDER BY 1)
                FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisvalid),
    'columns', (SELECT array_agg(format('%s %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull)
                                 ORDER BY a.attname)
                FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
)::text AS described
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1::text::regclass
"""

_EARLIER = """
SELECT string_agg(DISTINCT application_name || ' (process ' || pid || ')', ', ') AS who FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
"""


def require_alike(session: Session, first: ReadModel, second: ReadModel) -> None:
    """Raise SwapRefused unless tables of two builds have the same grants, policies, indexes and columns.

    Plans of queries follow from the latter: both builds are analysed.
    """
    import json

    for name in first.tables:
        here, there = (
            json.loads(session.query(_DESCRIBED, (f"{each.schema}.{name}",))[0][0]) for each in (first, second)
        )
        unlike = [what for what in here if here[what] != there[what]]
        if unlike:
            raise SwapRefused(
                f"{second.schema}.{name} is not like {first.schema}.{name}.",
                why=f"They have other {', '.join(unlike)}.",
                next_step="plant db upgrade    # which gives tables the grants and policies that they lack",
            )


def move(
    session: Session, target: KnownBuild, former: KnownBuild | None, *, wait_seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Let readers see another build, or the first one of a shape, whose views are made then.

    Raises SwapRefused where it can't be done in time; readers stay then.
    """
    builds.require_same_columns(session, target.model, VIEWS)
    deadline, first, state = now() + wait_seconds, True, ""
    while True:
        session.begin()
        session.later(MOVE_TIMEOUT)
        try:
            ((state,),) = session.query(_MOVE, (target.model.name, target.model.version, first))
            if state == builds.LIVE:
                session.script(*_notes(target, former), "COMMIT")
                return
            session.commit()
            first = False
        except StatementEnded:
            session.rollback()
            state = builds.BUSY
        if now() > deadline:
            raise _refused(session, target, state)
        time.sleep(PAUSE_SECONDS)


def _notes(target: KnownBuild, former: KnownBuild | None) -> Sequence[str]:
    """Return the statements that write down what was replaced, and that the former build is fed on."""
    if former is None:
        return [_of(_NOTE_SWAPPED, target, replaced="NULL")] if target.is_rebuild else []
    statements = [_of(_KEEP, former)]
    if target.is_rebuild and target.replaced is None:
        statements.append(_of(_NOTE_SWAPPED, target, replaced=sql_literal(former.key)))
    if former.is_rebuild:
        statements.append(_of(_NOTE_LEFT, former))
    return statements


def _of(sql: str, build: KnownBuild, **more: str) -> str:
    return sql.format(name=sql_literal(build.model.name), version=sql_literal(build.model.version), **more)


def _refused(session: Session, target: KnownBuild, state: str) -> SwapRefused:
    what = f"Readers were not moved to {target.key}; they see what they saw before."
    if state != builds.BUSY:
        return SwapRefused(
            what, why="It is not at the log's end on every partition.", next_step="plant projections list --partitions"
        )
    ((who,),) = session.query(_EARLIER)
    return SwapRefused(
        what,
        why=f"Transactions that began earlier, or hold a view, were in the way: {who or 'they have ended by now'}.",
        next_step="plant projections swap    # again, once they have ended",
    )  # fmt: skip
