"""A read model whose statement Postgres always ends leaves the transaction; what hits all takes no model out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from database.errors import DatabaseUnreachable
from projections import fold, session
from projections.engine import PartitionProjector
from projections.errors import ModelStatementEnded
from projections.install import install
from projections.session import Session, StatementEnded
from projections.stopped_models import TRIES
from schemas.events import AgentAvailable, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.made_models import BOTH
from tests.support.projectors import AGENT_ROWS, MakeProjector

CHECKPOINTS = "SELECT projection, next_offset FROM projection_checkpoints WHERE partition = 0 ORDER BY projection"
STOP_REASONS = "SELECT projection, stop_reason FROM model_checkpoints WHERE partition = 0 AND stop_reason IS NOT NULL"
ROWS = 'SELECT "offset" FROM availabilities_v1.availabilities ORDER BY "offset"'
MODEL, LOG = "availabilities_v1.availabilities", "log_records"
ENDED = """
CREATE FUNCTION end_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {1}; RETURN NEW; END $$;
CREATE TRIGGER end_statement BEFORE INSERT ON {0} FOR EACH ROW {2} EXECUTE FUNCTION end_statement()
"""
MENDED = f"DROP TRIGGER end_statement ON {MODEL}"
SLEEP = "PERFORM pg_sleep({})"


def ended(table: str, sqlstate: str = "XX000", when: str = "") -> str:
    """The statements that make Postgres end each INSERT into a table."""
    return ENDED.format(table, f"RAISE EXCEPTION 'ended' USING ERRCODE = '{sqlstate}'", when)


@pytest.fixture(autouse=True)
def two_models(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers keep a second read model."""
    install(database.owner_url, BOTH)
    monkeypatch.setattr("tests.support.projectors.MODELS", BOTH)


def shorten(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    """Give the sessions of workers another timeout."""
    options = session.CONNECTION_PARAMETERS["options"]
    assert before in options
    options = options.replace(before, after)
    monkeypatch.setattr(session, "CONNECTION_PARAMETERS", {**session.CONNECTION_PARAMETERS, "options": options})


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement has a second."""
    shorten(monkeypatch, "statement_timeout=60s", "statement_timeout=1s")


class Owner:
    """A partition's owner, who halves a batch that Postgres gives up, as `streams.ownership` does."""

    def __init__(self, projector: PartitionProjector) -> None:
        self.failures: list[DatabaseUnreachable] = []
        self._projector = projector
        self._records_max = 1_000

    def project(self, batch: Sequence[Event], start: int = 0, done: Callable[[], bool] = lambda: False) -> None:
        """Project events from an offset on, until all are, or `done`."""
        first, size = 0, self._records_max
        while first < len(batch) and not done():
            size = min(size, len(batch) - first)
            try:
                token = self._projector.acquire(WATERMARKS).token
                part = batch_of(batch[first : first + size], token=token, start=start + first)
                first = self._projector.project(part) - start
                size = self._records_max
            except DatabaseUnreachable as error:
                self.failures.append(error)
                size = max(1, size // 2)


@pytest.mark.usefixtures("inline_records_max")
@pytest.mark.parametrize("sqlstate", ["XX000", "XX002", "58030", "53400"])
def test_a_model_whose_statement_is_always_ended_leaves(
    make_projector: MakeProjector, superuser: Session, sqlstate: str
) -> None:
    """At one record, after several tries: log, chain and the other model have all, and it says why it has not."""
    superuser.script(ended(MODEL, sqlstate))
    owner, batch = Owner(make_projector(0)), some_events(12)

    with structlog.testing.capture_logs() as lines:
        owner.project(batch)

    first = next(index for index, event in enumerate(batch) if isinstance(event, AgentAvailable))
    assert superuser.query(CHECKPOINTS) == [("agents", 12), ("availabilities", first), ("log", 12)]
    assert superuser.query("SELECT DISTINCT disposition::text FROM event_stream") == [("applied",)]
    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(12,)]
    assert [type(error) for error in owner.failures[-TRIES + 1 :]] == [ModelStatementEnded] * (TRIES - 1)
    assert "read model availabilities" in str(owner.failures[-1])
    ((name, reason),) = superuser.query(STOP_REASONS)
    assert (name, sqlstate in reason, "ended" in reason) == ("availabilities", True, True)
    assert_stopped(lines, first)

    owner.project(some_events(12, seed=2), start=12)
    assert superuser.query(CHECKPOINTS) == [("agents", 24), ("availabilities", first), ("log", 24)]


def assert_stopped(lines: Sequence[Mapping[str, object]], next_offset: int) -> None:
    """One line and a metric name the model."""
    (stopped,) = [line for line in lines if line["event"] == "model.stopped"]
    assert (stopped["model"], stopped["next_offset"]) == ("availabilities", next_offset)
    labels = {"topic": TOPIC, "partition": "0", "model": "availabilities"}
    assert REGISTRY.get_sample_value("plant_worker_stopped_read_models", labels) == 1.0


def test_one_record_is_enough(make_projector: MakeProjector, superuser: Session) -> None:
    """What comes before it is folded; repeats next to it stay repeats."""
    batch = some_events(40)
    agent_id = next(event.agent_id for event in reversed(batch) if isinstance(event, AgentAvailable))
    superuser.script(ended(MODEL, when=f"WHEN (NEW.agent_id = '{agent_id}')"))
    first = next(
        index for index, event in enumerate(batch) if isinstance(event, AgentAvailable) and event.agent_id == agent_id
    )
    batch.insert(first, batch[0])

    Owner(make_projector(0)).project(batch)

    assert superuser.query(CHECKPOINTS) == [("agents", 41), ("availabilities", first + 1), ("log", 41)]
    assert superuser.query("SELECT \"offset\" FROM event_stream WHERE disposition = 'repeat'") == [(first,)]
    assert superuser.query(ROWS)[-1][0] <= first


def test_a_model_next_to_one_that_is_refused_leaves_at_its_record(
    make_projector: MakeProjector, superuser: Session
) -> None:
    """Though each batch is folded model by model then: a larger one is tried in parts first."""
    superuser.script(ended(MODEL), "ALTER TABLE agents_v1.agents ADD CHECK (agent_id IS NULL) NOT VALID")
    events = some_events(40)
    others = [event for event in events if not isinstance(event, AgentAvailable)]
    available = [event for event in events if isinstance(event, AgentAvailable)]

    Owner(make_projector(0)).project([*others[:2], *available[:1], *others[2:11]])

    offsets = dict(superuser.query(CHECKPOINTS))
    assert (offsets["availabilities"], offsets["log"]) == (2, 12)


@pytest.mark.usefixtures("short_timeout")
def test_a_model_that_sleeps_leaves(make_projector: MakeProjector, superuser: Session) -> None:
    """A timeout is the model's where the log's own statements are quick; on a busy machine that takes more tries."""
    superuser.script(ENDED.format(MODEL, SLEEP.format(3600), ""))
    (available,) = [event for event in some_events(40) if isinstance(event, AgentAvailable)][:1]

    Owner(make_projector(0)).project([available])

    assert superuser.query(CHECKPOINTS) == [("agents", 1), ("availabilities", 0), ("log", 1)]
    ((_, reason),) = superuser.query(STOP_REASONS)
    assert "statement timeout" in reason


def test_a_model_whose_rows_another_session_keeps_leaves(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that is left open holds up one model, and not the log; once it ends, the model follows again."""
    shorten(monkeypatch, "lock_timeout=20s", "lock_timeout=100ms")
    owner, batch = Owner(make_projector(0)), some_events(12)
    first = next(index for index, event in enumerate(batch) if isinstance(event, AgentAvailable))
    superuser.script("BEGIN", f"LOCK TABLE {MODEL} IN EXCLUSIVE MODE")

    owner.project(batch, done=lambda: len(owner.failures) == 6 * TRIES)

    assert superuser.query(CHECKPOINTS) == [("agents", 12), ("availabilities", first), ("log", 12)]
    ((name, reason),) = superuser.query(STOP_REASONS)
    assert (name, "55P03" in reason) == ("availabilities", True)
    superuser.rollback()
    make_projector(0).acquire(WATERMARKS)
    assert superuser.query(CHECKPOINTS) == [("agents", 12), ("availabilities", 12), ("log", 12)]


def test_what_hits_the_log_takes_no_model_out(make_projector: MakeProjector, superuser: Session) -> None:
    """However often it does; once it is over, all go on."""
    superuser.script(ended(LOG), ended(MODEL).replace("end_statement", "end_model"))
    owner, batch = Owner(make_projector(0)), some_events(6)

    owner.project(batch, done=lambda: len(owner.failures) == 3 * TRIES)

    assert {type(error) for error in owner.failures} == {StatementEnded}
    assert superuser.query(STOP_REASONS) == []
    superuser.script(f"DROP TRIGGER end_statement ON {LOG}", f"DROP TRIGGER end_model ON {MODEL}")
    owner.project(batch)
    assert superuser.query(CHECKPOINTS) == [("agents", 6), ("availabilities", 6), ("log", 6)]


@pytest.mark.usefixtures("short_timeout")
def test_a_slow_server_takes_no_model_out(make_projector: MakeProjector, superuser: Session) -> None:
    """A model's statement times out, but the log's take long as well: nobody knows whether it is the model's fault."""
    superuser.script(
        ENDED.format(MODEL, SLEEP.format(3600), ""),
        ENDED.format(LOG, SLEEP.format(0.3), "").replace("end_statement", "be_slow"),
    )
    (available,) = [event for event in some_events(40) if isinstance(event, AgentAvailable)][:1]
    owner = Owner(make_projector(0))

    owner.project([available], done=lambda: len(owner.failures) == TRIES + 1)

    assert superuser.query(STOP_REASONS) == []
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(0,)]


def test_an_outage_between_the_tries_begins_them_again(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what happens several times in a row is the model's."""
    superuser.script(ended(MODEL))
    (available,) = [event for event in some_events(40) if isinstance(event, AgentAvailable)][:1]
    projector = make_projector(0)

    def tries(count: int) -> None:
        for _ in range(count):
            token = projector.acquire(WATERMARKS).token
            with pytest.raises(ModelStatementEnded):
                projector.project(batch_of([available], token=token))

    tries(TRIES - 1)
    with monkeypatch.context() as patched:
        patched.setattr(projector, "_url", "postgresql://127.0.0.1:1/nothing")
        with pytest.raises(DatabaseUnreachable):
            projector.acquire(WATERMARKS)
    tries(TRIES - 1)
    superuser.script(MENDED)
    projector.project(batch_of([available], token=projector.acquire(WATERMARKS).token))
    assert superuser.query(CHECKPOINTS) == [("agents", 1), ("availabilities", 1), ("log", 1)]


def test_a_lagging_model_whose_statement_is_always_ended_is_left_behind(
    make_projector: MakeProjector, superuser: Session
) -> None:
    """Its partition opens without it, after one try; it stays at the record that it can't take until it is mended."""
    Owner(make_projector(0)).project(batch := some_events(40))
    live = superuser.query(AGENT_ROWS)
    superuser.script(f"UPDATE checkpoints SET read_models = '{{}}'; TRUNCATE {MODEL}")
    superuser.script("TRUNCATE agents_v1.agents", ended(MODEL))
    first = next(index for index, event in enumerate(batch) if isinstance(event, AgentAvailable))
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token
    assert superuser.query(AGENT_ROWS) == live
    feed(projector)
    assert superuser.query(CHECKPOINTS) == [("agents", 40), ("availabilities", first), ("log", 40)]
    assert [name for name, _ in superuser.query(STOP_REASONS)] == ["availabilities"]
    projector.project(batch_of(some_events(10, seed=2), token=token, start=40))
    assert superuser.query(CHECKPOINTS) == [("agents", 50), ("availabilities", first), ("log", 50)]

    superuser.script(MENDED)
    make_projector(0).acquire(WATERMARKS)
    assert superuser.query(CHECKPOINTS) == [("agents", 50), ("availabilities", 50), ("log", 50)]
    assert superuser.query(STOP_REASONS) == []


def feed(projector: PartitionProjector) -> None:
    """Feed what lags until there is nothing to do at this time."""
    while projector.lagging.feed_next() == 0.0:
        pass
    projector.lagging.close()


def test_a_log_that_is_read_slowly_takes_no_lagging_model_out(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that reads it is none of the model's."""
    Owner(make_projector(0)).project(some_events(4))
    superuser.script(f"UPDATE checkpoints SET read_models = '{{agents/1}}'; TRUNCATE {MODEL}")
    projector = make_projector(0)

    frame, reading = Session.frame, fold._APPLIED.format(columns="value", of_types="")

    def slow(self: Session, sql: str, *parameters: Any) -> object:
        if sql == reading:
            self.script("DO $$ BEGIN RAISE EXCEPTION 'ended' USING ERRCODE = '57014'; END $$")
        return frame(self, sql, *parameters)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "frame", slow)
        projector.acquire(WATERMARKS)
        assert superuser.query(STOP_REASONS) == []
        assert superuser.query(CHECKPOINTS) == [("agents", 4), ("availabilities", 0), ("log", 4)]
    projector.acquire(WATERMARKS)
    assert superuser.query(CHECKPOINTS) == [("agents", 4), ("availabilities", 4), ("log", 4)]
