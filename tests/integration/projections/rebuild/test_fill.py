"""Filling a rebuild from the log: what is made is what workers make, whatever kills it."""

from __future__ import annotations

import pytest

from projections.rebuild import fill as filling
from projections.rebuild import pace, rebuilds
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.fill import Filler
from projections.session import Session
from tests.conftest import Database
from tests.support.model_tables import model_tables
from tests.support.read_model_folds import FOLDS
from tests.support.rebuilding import REBUILT, ProjectedLog, begun, fill, rebuilt

PROGRESS = "SELECT partition, next_offset FROM model_checkpoints WHERE projection = $1 ORDER BY 1"


@pytest.fixture(params=[200_000, 7], ids=["one chunk", "many chunks"])
def chunk_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CHUNK_RECORDS", request.param)


@pytest.mark.usefixtures("chunk_records")
def test_a_rebuild_of_every_model_is_what_workers_have_made(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Of a log with poison, repeats, parked and control records: the rows are those of the live build, and of the
    oracle.
    """
    superuser.script("SET timezone = 'UTC'")
    for model in REBUILT:
        made = rebuilt(database, owner, model.name)
        assert model_tables(superuser, made) == model_tables(superuser, model), model.name
        assert model_tables(superuser, made) == FOLDS[model.name](projected_log.applied), model.name


def test_a_rebuild_reads_what_the_log_has_and_nothing_behind_its_checkpoint(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """A record that the log holds and its checkpoint has not passed is another transaction's."""
    superuser.script("UPDATE checkpoints SET next_offset = 100 WHERE partition = 0")
    model = begun(owner)
    assert fill(database, owner, model) == 250
    assert superuser.query(PROGRESS, (model.name,)) == [(0, 100), (1, 150)]


def test_a_rebuild_that_was_handed_to_workers_is_filled_no_more(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """A process of a former run that wakes up finds that it is over."""
    model = begun(owner)
    late = Filler(database.owner_url, model, lambda _: None)
    rebuilds.finish(owner, model)
    with pytest.raises(RebuildRefused, match="is not being filled any more"):
        late.run(owner)
    assert superuser.query(f"SELECT count(*) AS n FROM {model.schema}.agents") == [(0,)]


def test_rows_that_do_not_matter_are_not_staged(projected_log: ProjectedLog, owner: Session) -> None:
    """Of each key the last row is kept, whatever their order; a table without a key is staged whole."""
    from schemas.polars_import import polars as pl

    model = begun(owner)
    rows = pl.DataFrame({"offset": [5, 1, 3, 2], "agent_id": [b"a", b"a", b"b", b"b"]})
    reduced = filling.last_rows({"staged_agent_onboarded": rows, "staged_agent_rated": rows}, model)
    assert sorted(reduced["staged_agent_onboarded"].rows()) == [(3, b"b"), (5, b"a")]
    assert reduced["staged_agent_rated"].equals(rows)
