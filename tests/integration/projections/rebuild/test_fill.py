"""Filling a rebuild from the log: what is made is what workers make, whatever kills it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from projections import fold
from projections.rebuild import pace, rebuilds
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.fill import Filler
from projections.session import Session
from schemas.polars_import import polars as pl
from tests.conftest import Database
from tests.support.made_models import ACTIVITY, RATINGS
from tests.support.model_tables import model_tables
from tests.support.read_model_folds import FOLDS
from tests.support.rebuilding import REBUILT, ProjectedLog, begun, fill, rebuilt

PROGRESS = "SELECT partition, next_offset FROM model_checkpoints WHERE projection = $1 ORDER BY 1"


@pytest.fixture(params=[200_000, 7], ids=["one chunk", "many chunks"])
def chunk_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CHUNK_RECORDS", request.param)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of the events that were decoded."""
    offsets: list[int] = []
    decode = fold.decoded_frames

    def counted(topic: str, partition: int, own: Sequence[int], values: Sequence[bytes]) -> dict[str, pl.DataFrame]:
        offsets.extend(own)
        return decode(topic, partition, own, values)

    monkeypatch.setattr(fold, "decoded_frames", counted)
    return offsets


@pytest.mark.usefixtures("chunk_records")
def test_all_models_are_rebuilt_in_one_pass_as_workers_have_made_them(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, decoded: list[int]
) -> None:
    """Of a log with poison, repeats, parked and control records: the rows are those of the live builds, and of the
    oracle, and each event was decoded once.
    """
    superuser.script("SET timezone = 'UTC'")
    made = [begun(owner, model.name) for model in REBUILT]
    assert fill(database, owner, *made) == 300 * len(REBUILT)
    assert len(decoded) == len(projected_log.applied)
    for model, rebuild in zip(REBUILT, made, strict=True):
        assert model_tables(superuser, rebuild) == model_tables(superuser, model), model.name
        assert model_tables(superuser, rebuild) == FOLDS[model.name](projected_log.applied), model.name


def test_a_rebuild_decodes_events_of_types_that_it_reads_alone(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, decoded: list[int]
) -> None:
    """Of applied records; a parked event is decoded whatever it is."""
    rated = superuser.query("""SELECT count(*) AS n FROM log_records
                               WHERE event_type = 'genesis.agent.rated' AND disposition = 'applied'""")
    released = len(projected_log.applied) - superuser.query(
        "SELECT count(*) AS n FROM log_records WHERE disposition = 'applied'"
    )[0][0]  # fmt: skip
    made = rebuilt(database, owner, "ratings")
    assert len(decoded) == rated[0][0] + released
    assert model_tables(superuser, made) == model_tables(superuser, RATINGS)


def test_a_rebuild_that_is_behind_the_others_is_brought_up_to_them(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, decoded: list[int]
) -> None:
    """Nothing is folded twice into those that are ahead."""
    ahead, behind = begun(owner, "activity"), begun(owner, "ratings")
    superuser.script("UPDATE checkpoints SET next_offset = 100 WHERE partition = 0")
    Filler(database.owner_url, [ahead], lambda _model, _count: None).run(owner)
    superuser.script("UPDATE checkpoints SET next_offset = 150 WHERE partition = 0")
    assert fill(database, owner, ahead, behind) == 50 + 300
    for model, made in ((ACTIVITY, ahead), (RATINGS, behind)):
        assert model_tables(superuser, made) == model_tables(superuser, model)


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
    late = Filler(database.owner_url, [model], lambda _model, _count: None)
    rebuilds.finish(owner, model)
    with pytest.raises(RebuildRefused, match="is not being filled any more"):
        late.run(owner)
    assert superuser.query(f"SELECT count(*) AS n FROM {model.schema}.agents") == [(0,)]


def test_a_rebuild_decodes_the_last_event_of_an_entity_where_no_other_matters(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, decoded: list[int]
) -> None:
    """Of a type that its model takes so; of amendments every one, since an id may be that of two kinds of entities."""
    applied = superuser.query("""
        SELECT count(*) AS every, count(DISTINCT (event_type, entity_id)) AS last FROM log_records
        WHERE event_type IN ('genesis.agent.onboarded', 'genesis.agent.available') AND disposition = 'applied'
        UNION ALL SELECT count(*), count(*) FROM log_records
        WHERE event_type IN ('genesis.entity.amended', 'genesis.entity.retired') AND disposition = 'applied'
    """)
    released = len(projected_log.applied) - superuser.query(
        "SELECT count(*) AS n FROM log_records WHERE disposition = 'applied'"
    )[0][0]  # fmt: skip
    made = rebuilt(database, owner)
    assert len(decoded) == sum(last for _, last in applied) + released
    assert len(decoded) < sum(every for every, _ in applied) + released
    assert model_tables(superuser, made) == FOLDS["agents"](projected_log.applied)
