"""A rebuild whose process is killed at each of its statements: the next one goes on, and makes the same tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from database.errors import DatabaseUnreachable
from projections.rebuild import pace, rebuilds
from projections.rebuild.fill import Filler
from projections.session import Session
from projections.stored_builds import StoredBuild
from tests.conftest import Database
from tests.support.made_models import RATINGS
from tests.support.model_tables import model_tables
from tests.support.rebuilding import ProjectedLog, begun, session_of

METHODS = ("script", "execute", "_fetch", "copy")
GONE = """
SELECT (SELECT count(*) FROM read_model_builds WHERE projection ~ '_b') AS builds,
       (SELECT count(*) FROM pg_namespace WHERE nspname ~ '_b[0-9]+_v') AS schemas
"""


class Killer:
    """Ends every connection of a rebuild before its statement of a number; counts what has run."""

    def __init__(self) -> None:
        self.at = -1
        self.count = 0
        self.armed = False

    def step(self) -> None:
        if not self.armed:
            return
        if self.at >= 0 and self.count >= self.at:
            raise DatabaseUnreachable(why="killed")
        self.count += 1


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    made = Killer()

    def stepping(method: Any) -> Any:
        def stepped(session: Session, *arguments: Any, **options: Any) -> Any:
            made.step()
            return method(session, *arguments, **options)

        return stepped

    for name in METHODS:
        monkeypatch.setattr(Session, name, stepping(getattr(Session, name)))
    return made


def steps(database: Database) -> Iterator[StoredBuild]:
    """Rebuild `ratings` as the command does, going on with what is there; its sums show what is folded twice."""
    with session_of(database.owner_url) as session:
        known = rebuilds.builds_of(session, "ratings")
        rebuilds.hold(session, "ratings", known)
        unfinished = [each.model for each in known if each.phase == "filling"]
        model = unfinished[0] if unfinished else begun(session, "ratings")
        Filler(database.owner_url, model, lambda _: None, jobs=1).run(session)
        rebuilds.finish(session, model)
        yield model


def test_a_rebuild_can_be_killed_at_each_statement(
    database: Database, projected_log: ProjectedLog, superuser: Session, killer: Killer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While it is made, filled in chunks, and handed to workers: what is there is a rebuild that has begun or none at
    all, and in the end the tables are those of the live build, no event missing and none twice.
    """
    monkeypatch.setattr(pace, "CHUNK_RECORDS", 5)
    superuser.script("SET timezone = 'UTC'")
    expected = model_tables(superuser, RATINGS)
    at, was_killed = 0, True
    while was_killed:
        killer.at, killer.count, killer.armed = at, 0, True
        try:
            for _ in steps(database):
                pass
            was_killed = False
        except DatabaseUnreachable:
            pass
        killer.armed = False
        ((builds, schemas),) = superuser.query(GONE)
        assert builds == schemas <= 1
        kept = superuser.query("SELECT 1 AS one FROM read_model_builds WHERE phase = 'kept'")
        if not kept:
            for _ in steps(database):
                pass
        ((name,),) = superuser.query("SELECT projection FROM read_model_builds WHERE phase = 'kept'")
        made = StoredBuild(name, RATINGS.version, RATINGS.tables_text, RATINGS.apply_text)
        assert model_tables(superuser, made) == expected, at
        superuser.script(
            f"DROP SCHEMA {made.schema} CASCADE", "DELETE FROM rebuilds",
            "DELETE FROM read_model_builds WHERE phase = 'kept'",
            f"DELETE FROM model_checkpoints WHERE projection = '{name}'",
        )  # fmt: skip
        at += 1
    assert at > 50
