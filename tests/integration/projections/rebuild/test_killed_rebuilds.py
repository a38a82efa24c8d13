"""A rebuild whose process is killed at each of its statements: the next one goes on, and makes the same tables."""

from __future__ import annotations

from typing import Any

import pytest

from database.errors import DatabaseUnreachable
from projections.rebuild import pace, rebuilds
from projections.rebuild.fill import Filler
from projections.session import Session
from projections.stored_builds import StoredBuild
from tests.conftest import Database
from tests.support.long_form import sized
from tests.support.made_models import ACTIVITY, RATINGS
from tests.support.model_tables import model_tables
from tests.support.rebuilding import ProjectedLog, begun, session_of

METHODS = ("script", "execute", "_fetch", "copy")
KILLED = (RATINGS, ACTIVITY)
"""Models whose sums show what is folded twice."""
FILLING = "SELECT projection FROM read_model_builds WHERE phase = 'filling' AND projection = $1"
KEPT = "SELECT projection FROM read_model_builds WHERE phase = 'kept' AND read_model = $1"
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


def steps(database: Database) -> None:
    """Rebuild both models in one pass as the command does, going on with what is there."""
    with session_of(database.owner_url) as session:
        made = []
        for model in KILLED:
            known = rebuilds.builds_of(session, model.name)
            rebuilds.hold(session, model.name, known)
            unfinished = [each.model for each in known if each.phase in ("filling", "kept")]
            made.append(unfinished[0] if unfinished else begun(session, model.name))
        filling = [each for each in made if [(each.name,)] == session.query(FILLING, (each.name,))]
        if filling:
            Filler(database.owner_url, filling, lambda _model, _count: None, jobs=1).run(session)
        for each in filling:
            rebuilds.finish(session, each)


def test_a_rebuild_can_be_killed_at_each_statement(
    database: Database, projected_log: ProjectedLog, superuser: Session, killer: Killer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While two are made, filled in chunks, and handed to workers: what is there are rebuilds that have begun or none
    at all, and in the end the tables are those of the live builds, no event missing and none twice.
    """
    monkeypatch.setattr(pace, "CHUNK_RECORDS", sized(40, 5))
    superuser.script("SET timezone = 'UTC'")
    expected = [model_tables(superuser, model) for model in KILLED]
    at, was_killed = 0, True
    while was_killed:
        killer.at, killer.count, killer.armed = at, 0, True
        try:
            steps(database)
            was_killed = False
        except DatabaseUnreachable:
            pass
        killer.armed = False
        ((builds, schemas),) = superuser.query(GONE)
        assert builds == schemas <= 2
        steps(database)
        made = [
            StoredBuild(name, model.version, model.tables_text, model.apply_text)
            for model in KILLED
            for (name,) in superuser.query(KEPT, (model.name,))
        ]
        assert [model_tables(superuser, each) for each in made] == expected, at
        superuser.script(
            *(f"DROP SCHEMA {each.schema} CASCADE" for each in made), "DELETE FROM rebuilds",
            "DELETE FROM read_model_builds WHERE phase = 'kept'",
            *(f"DELETE FROM model_checkpoints WHERE projection = '{each.name}'" for each in made),
        )  # fmt: skip
        at += sized(7, 1)
    assert at > 50
