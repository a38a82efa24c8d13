"""A read model that Postgres refuses leaves its partition's transaction; the log and the other models go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import structlog
from prometheus_client import REGISTRY

from database.errors import DatabaseUnreachable
from projections import engine, fold
from projections.engine import PartitionProjector
from projections.inline_folds import InlineRows
from projections.install import install
from projections.read_model import ReadModel
from projections.session import Session
from projections.staging import Staging
from schemas.events import AgentAvailable, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.made_models import BOTH, available_agents, made_model
from tests.support.projectors import AGENT_ROWS, MakeProjector

pytestmark = pytest.mark.usefixtures("inline_records_max")

CHECKPOINTS = "SELECT projection, next_offset FROM projection_checkpoints WHERE partition = 0 ORDER BY projection"
STOP_REASONS = "SELECT projection, stop_reason FROM model_checkpoints WHERE partition = 0 AND stop_reason IS NOT NULL"
ROWS = 'SELECT "offset" FROM availabilities_v1.availabilities ORDER BY "offset"'

REFUSE = {
    "a_null": "ALTER TABLE {0} ALTER COLUMN odd DROP DEFAULT",
    "a_check": "ALTER TABLE {0} ADD CHECK (agent_id IS NULL) NOT VALID",
    "a_name_of_the_logs": "ALTER TABLE {0} ADD CONSTRAINT event_stream_applied_once CHECK (agent_id IS NULL) NOT VALID",
    "a_constraint_at_commit": (
        "CREATE TABLE {0}_known (agent_id uuid PRIMARY KEY); GRANT SELECT, UPDATE ON {0}_known TO plant_writer;"
        "ALTER TABLE {0} ADD FOREIGN KEY (agent_id) REFERENCES {0}_known DEFERRABLE INITIALLY DEFERRED NOT VALID"
    ),
    "a_missing_column": "ALTER TABLE {0} RENAME COLUMN available TO renamed",
    "a_missing_table": "ALTER TABLE {0} RENAME TO renamed",
    "a_missing_grant": "REVOKE INSERT ON {0} FROM plant_writer",
    "a_trigger": (
        "CREATE FUNCTION {0}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON {0} FOR EACH STATEMENT EXECUTE FUNCTION {0}_refuse()"
    ),
    "a_state_that_is_absent": (
        "CREATE SEQUENCE {0}_never; GRANT USAGE ON SEQUENCE {0}_never TO plant_writer;"
        "ALTER TABLE {0} ALTER COLUMN odd SET DEFAULT currval('{0}_never')"
    ),
    "a_protocol_error": (
        "CREATE FUNCTION {0}_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '08P01'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON {0} FOR EACH STATEMENT EXECUTE FUNCTION {0}_refuse()"
    ),
    "a_message_without_words": (
        "CREATE FUNCTION {0}_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING MESSAGE = '', ERRCODE = '23514'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON {0} FOR EACH STATEMENT EXECUTE FUNCTION {0}_refuse()"
    ),
}
"""What is done to a model's table, and how Postgres refuses its statement from then on."""
REFUSED = "ALTER TABLE availabilities_v1.availabilities ALTER COLUMN odd DROP DEFAULT"
MENDED = "ALTER TABLE availabilities_v1.availabilities ALTER COLUMN odd SET DEFAULT ''"


def refuse(name: str) -> str:
    """The statements that make a model's table refuse what is written to it."""
    return REFUSE[name].format(f"{name}_v1.{name}")


def availabilities(batch: list[Event], start: int = 0) -> list[int]:
    return [start + index for index, event in enumerate(batch) if isinstance(event, AgentAvailable)]


@pytest.fixture
def two_models(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers keep a second read model."""
    keep(database, monkeypatch, BOTH)


@pytest.fixture
def many_models(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers keep a second read model, and one for each way to be refused."""
    keep(database, monkeypatch, (*BOTH, *(available_agents(name) for name in REFUSE)))


def keep(database: Database, monkeypatch: pytest.MonkeyPatch, models: Sequence[ReadModel]) -> None:
    install(database.owner_url, models)
    monkeypatch.setattr("tests.support.projectors.MODELS", models)


@pytest.mark.usefixtures("many_models")
def test_models_that_are_refused_leave_and_all_else_goes_on(make_projector: MakeProjector, superuser: Session) -> None:
    """Every record stays applied; log and good models move on, refused ones stay and have one line each."""
    first, second, third = some_events(40), some_events(40, seed=2), some_events(40, seed=3)
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(first, token=token))
    superuser.script(*map(refuse, REFUSE))

    with structlog.testing.capture_logs() as lines:
        projector.project(batch_of(second, token=token, start=40))
        projector.project(batch_of(third, token=token, start=80))

    assert superuser.query("SELECT DISTINCT disposition::text FROM event_stream") == [("applied",)]
    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(120,)]
    offsets = dict(superuser.query(CHECKPOINTS))
    assert offsets == {"agents": 120, "availabilities": 120, "log": 120, **dict.fromkeys(REFUSE, 40)}
    assert superuser.query(ROWS) == [
        (offset,) for start, batch in ((0, first), (40, second), (80, third)) for offset in availabilities(batch, start)
    ]
    assert_stopped(lines, superuser, 40)
    assert {gauge(name) for name in REFUSE} == {1.0}
    assert gauge("availabilities") is None
    projector.forget()
    assert {gauge(name) for name in REFUSE} == {None}


@pytest.mark.usefixtures("many_models")
def test_after_a_refusal_the_others_share_their_transaction_again(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the first batch of a connection is refused before their statements were prepared."""
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token
    superuser.script(refuse("a_check"))
    projector.project(batch_of(some_events(40), token=token))
    monkeypatch.setattr(engine, "fold_apart", None)
    projector.project(batch_of(some_events(40, seed=2), token=token, start=40))

    offsets = dict(superuser.query(CHECKPOINTS))
    assert (offsets.pop("a_check"), set(offsets.values())) == (0, {80})


@pytest.mark.usefixtures("many_models")
def test_lagging_models_that_are_refused_do_not_stop_their_partition(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay where they came to, each under its own name and not the log's; live records go on."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 20)
    first = make_projector(0)
    first.project(batch_of(some_events(40), token=first.acquire(WATERMARKS).token))
    superuser.script("UPDATE checkpoints SET read_models = '{agents/1}'")
    superuser.script(*(f"TRUNCATE {name}_v1.{name}" for name in ("availabilities", *REFUSE)), *map(refuse, REFUSE))
    projector = make_projector(0)

    with structlog.testing.capture_logs() as lines:
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of(some_events(40, seed=2), token=token, start=40))

    offsets = dict(superuser.query(CHECKPOINTS))
    assert offsets == {"agents": 80, "availabilities": 80, "log": 80, **dict.fromkeys(REFUSE, 0)}
    assert_stopped(lines, superuser, 0)


def assert_stopped(lines: Sequence[Mapping[str, object]], superuser: Session, next_offset: int) -> None:
    """Each refused model has a line and a reason, which say nothing of the log."""
    stopped = [line for line in lines if line["event"] == "model.stopped"]
    shown = {(line["model"], line["next_offset"], line["log_level"], line["error"]) for line in stopped}
    assert shown == {(name, next_offset, "error", "ReadModelStopped") for name in REFUSE}
    assert len(stopped) == len(REFUSE)
    reasons = dict(superuser.query(STOP_REASONS))
    assert reasons.keys() == REFUSE.keys()
    assert all(len(reason) > 10 for reason in reasons.values())
    assert not [text for text in (str(stopped), str(reasons)) if "LogRefused" in text or "of the log" in text]


def gauge(model: str = "availabilities") -> float | None:
    labels = {"topic": TOPIC, "partition": "0", "model": model}
    return REGISTRY.get_sample_value("plant_worker_stopped_read_models", labels)


@pytest.mark.usefixtures("two_models")
def test_a_model_stays_out_until_it_is_tried_again(make_projector: MakeProjector, superuser: Session) -> None:
    """The same worker waits with it though its partition is acquired again; one that is started tries at once."""
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token
    superuser.script(REFUSED)
    batch = some_events(40)
    projector.project(batch_of(batch, token=token))
    superuser.script(MENDED)

    token = projector.acquire(WATERMARKS).token
    again = some_events(40, seed=2)
    projector.project(batch_of(again, token=token, start=40))
    assert superuser.query(CHECKPOINTS) == [("agents", 80), ("availabilities", 0), ("log", 80)]
    assert gauge() == 1.0

    started_again = make_projector(0)
    token = started_again.acquire(WATERMARKS).token
    more = some_events(40, seed=3)
    started_again.project(batch_of(more, token=token, start=80))

    assert superuser.query(CHECKPOINTS) == [("agents", 120), ("availabilities", 120), ("log", 120)]
    assert superuser.query(STOP_REASONS) == []
    expected = [*availabilities(batch), *availabilities(again, 40), *availabilities(more, 80)]
    assert superuser.query(ROWS) == [(offset,) for offset in expected]


@pytest.mark.usefixtures("two_models")
def test_a_model_that_went_on_elsewhere_is_followed_again(make_projector: MakeProjector, superuser: Session) -> None:
    """Another worker has brought it up in the meantime: the former one does not leave it behind again."""
    former = make_projector(0)
    token = former.acquire(WATERMARKS).token
    superuser.script(REFUSED)
    former.project(batch_of(some_events(40), token=token))
    superuser.script(MENDED)
    make_projector(0).acquire(WATERMARKS)

    token = former.acquire(WATERMARKS).token
    former.project(batch_of(some_events(40, seed=2), token=token, start=40))

    assert superuser.query(CHECKPOINTS) == [("agents", 80), ("availabilities", 80), ("log", 80)]


@pytest.mark.usefixtures("two_models")
def test_all_models_can_be_out_at_once(make_projector: MakeProjector, superuser: Session) -> None:
    """Then the log and its chain go on alone, and each model has a line of its own."""
    superuser.script(REFUSED, "ALTER TABLE agents_v1.agents ADD CHECK (agent_id IS NULL)")
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token

    with structlog.testing.capture_logs() as lines:
        projector.project(batch_of(some_events(150), token=token))
        projector.project(batch_of(some_events(150, seed=2), token=token, start=150))

    assert superuser.query(CHECKPOINTS) == [("agents", 0), ("availabilities", 0), ("log", 300)]
    assert [line["model"] for line in lines if line["event"] == "model.stopped"] == ["agents", "availabilities"]
    assert superuser.query("SELECT DISTINCT disposition::text FROM event_stream") == [("applied",)]


def test_a_repeat_next_to_a_refusal_is_still_a_repeat(projector: PartitionProjector, superuser: Session) -> None:
    """Dispositions follow from the records alone, whether a model can fold them or not."""
    first, second, third = some_events(3)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([first], token=token))
    superuser.script("ALTER TABLE agents_v1.agents ADD CHECK (agent_id IS NULL) NOT VALID")

    projector.project(batch_of([second, first, (None, None), third, third], token=token, start=1))

    rows = superuser.query('SELECT disposition::text FROM event_stream ORDER BY "offset"')
    assert [row[0] for row in rows] == ["applied", "applied", "repeat", "poison", "applied", "repeat"]


def test_no_value_of_an_event_is_written_down_with_the_reason(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres quotes the value that it can't take; log and reason leave it out."""
    fold_sql = "INSERT INTO __schema__.bad (n) SELECT name::integer FROM staged_agent_onboarded"
    keep(database, monkeypatch, [made_model("bad", "n integer", fold_sql)])
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token

    with structlog.testing.capture_logs() as lines:
        projector.project(batch_of(some_events(40), token=token))

    (stopped,) = [line for line in lines if line["event"] == "model.stopped"]
    ((_, reason),) = superuser.query(STOP_REASONS)
    assert "22P02" in reason
    assert "agent " not in str(stopped) + reason


@pytest.mark.usefixtures("two_models")
def test_an_outage_is_no_models_fault(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost while the culprit is looked for takes no model out."""
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token
    superuser.script(REFUSED)
    script = Session.script

    def lose(session: Session, *statements: str) -> None:
        if any(statement.startswith("SAVEPOINT") for statement in statements):
            superuser.query("SELECT pg_terminate_backend(backend_pid, 60000) FROM partition_owners WHERE partition = 0")
        script(session, *statements)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "script", lose)
        with pytest.raises(DatabaseUnreachable):
            projector.project(batch_of(some_events(40), token=token))
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(0,)]
    assert superuser.query(STOP_REASONS) == []

    projector.project(batch_of(some_events(40), token=projector.acquire(WATERMARKS).token))
    assert superuser.query(CHECKPOINTS) == [("agents", 40), ("availabilities", 0), ("log", 40)]


@pytest.mark.usefixtures("two_models")
def test_a_defect_in_making_a_models_rows_is_the_models(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong on the way to its statements or staging tables takes that model out alone."""
    frames, literal = Staging.frames, InlineRows.literal

    def broken(staging: Staging, events: object, offsets: object, tables: frozenset[str], **others: object) -> object:
        if "staged_agent_onboarded" in tables:
            raise KeyError("name")
        return frames(staging, events, offsets, tables, **others)  # type: ignore[arg-type]

    def unwritten(rows: InlineRows, table: str, name: str) -> str:
        if table == "staged_agent_onboarded":
            raise KeyError("name")
        return literal(rows, table, name)

    monkeypatch.setattr(Staging, "frames", broken)
    monkeypatch.setattr(InlineRows, "literal", unwritten)
    projector = make_projector(0)
    batch = some_events(40)

    projector.project(batch_of(batch, token=projector.acquire(WATERMARKS).token))

    assert superuser.query(CHECKPOINTS) == [("agents", 0), ("availabilities", 40), ("log", 40)]
    assert superuser.query(ROWS) == [(offset,) for offset in availabilities(batch)]


@pytest.mark.usefixtures("two_models")
def test_the_other_models_rows_are_what_they_would_have_been(make_projector: MakeProjector, superuser: Session) -> None:
    """Models that share staging tables with the refused one fold each record once."""
    batch = some_events(150)
    whole = make_projector(0)
    whole.project(batch_of(batch, token=whole.acquire(WATERMARKS).token))
    expected = superuser.query(AGENT_ROWS)
    superuser.script("TRUNCATE agents_v1.agents", "TRUNCATE availabilities_v1.availabilities", REFUSED)
    alone = make_projector(1)

    alone.project(batch_of(batch, token=alone.acquire(WATERMARKS).token, partition=1))

    assert superuser.query(AGENT_ROWS) == expected
    rows = superuser.query(CHECKPOINTS.replace("partition = 0", "partition = 1"))
    assert rows == [("agents", 150), ("availabilities", 0), ("log", 150)]


def test_models_are_made_of_texts() -> None:
    """The support's models have the names that a folder's would have."""
    model: ReadModel = available_agents()
    assert model.reads == {"staged_agent_available"}
    assert "availabilities_v1.availabilities" in model.tables_sql
