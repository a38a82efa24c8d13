"""One partition's batches into Postgres: exactly once, whatever comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.chain import CHAIN_START
from database.errors import DatabaseUnreachable
from projections import engine
from projections.engine import SEEN, PartitionProjector
from projections.read_model import AGENTS, READ_MODELS
from projections.session import Session, sql_literal
from schemas import codec
from schemas.events import AgentOnboarded, Event
from streams.errors import (
    LogRefused,
    OwnershipLost,
    PartitionCountChanged,
    TopicRecreated,
)
from streams.watermarks import Watermarks
from tests.conftest import Database
from tests.support.batches import PARTITIONS, TOPIC, TOPIC_ID, WATERMARKS, Record, batch_of, record
from tests.support.load import events

AGENT_ROWS = "SELECT to_json(a)::text AS row FROM agents_v1.agents AS a ORDER BY agent_id"


MakeProjector = Callable[[int], PartitionProjector]


@pytest.fixture(params=[0, 100], ids=["copied", "inline"], autouse=True)
def inline_records_max(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to Postgres: small batches go as text, and everything must hold for both."""
    monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", request.param)


@pytest.fixture
def make_projector(database: Database) -> Iterator[MakeProjector]:
    made: list[PartitionProjector] = []

    def make(partition: int = 0) -> PartitionProjector:
        made.append(PartitionProjector(database.writer_url, TOPIC, partition, READ_MODELS))
        return made[-1]

    yield make
    for projector in made:
        projector.close()


@pytest.fixture
def projector(make_projector: MakeProjector) -> PartitionProjector:
    return make_projector(0)


@pytest.fixture
def superuser(database: Database) -> Iterator[Session]:
    session = Session(database.superuser_url)
    yield session
    session.close()


def dispositions(session: Session) -> list[str]:
    rows = session.query('SELECT disposition FROM event_stream ORDER BY "offset"')
    return [row[0] for row in rows]


def some(count: int, seed: int = 1, agents: int = 20) -> list[Event]:
    return list(events(count, agents=agents, seed=seed))


def test_a_batch_becomes_log_rows_chain_links_and_agents(projector: PartitionProjector, superuser: Session) -> None:
    """Every record has one row in each log table, and the read model holds each agent's last state."""
    batch = some(300)
    taken = projector.acquire(WATERMARKS)

    after = projector.project(batch_of(batch, token=taken.token))

    assert after == 300
    assert dispositions(superuser) == ["applied"] * 300
    links = superuser.query('SELECT previous_hash, hash FROM audit_log ORDER BY "offset"')
    assert links[0][0] == CHAIN_START
    assert all(link[0] == before[1] for before, link in itertools.pairwise(links))
    names = dict(superuser.query("SELECT agent_id::text, name FROM agents_v1.agents"))
    last = {str(event.agent_id): event.name for event in batch if isinstance(event, AgentOnboarded)}
    assert {agent: name for agent, name in names.items() if name is not None} == last


def test_a_repeat_is_logged_and_has_no_effect(projector: PartitionProjector, superuser: Session) -> None:
    """An event id that was applied before, in the same batch or an earlier one, is a repeat."""
    first, second, third = some(3)
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of([first, second, first], token=token))
    projector.project(batch_of([second, third, third], token=token, start=3))

    assert dispositions(superuser) == ["applied", "applied", "repeat", "repeat", "applied", "repeat"]


@pytest.mark.parametrize("size", [1, 2, 4], ids="batches of {}".format)
def test_an_id_that_names_another_event_is_poison(projector: PartitionProjector, superuser: Session, size: int) -> None:
    """The same event id with other content is never applied, in the same batch or later; a true repeat still is one."""
    first, other = some(2)
    assert isinstance(first, AgentOnboarded)
    forged = msgspec.structs.replace(first, name="Somebody else")
    records: list[Event] = [first, forged, first, other, forged, forged, other, first]
    token = projector.acquire(WATERMARKS).token

    for start in range(0, len(records), size):
        projector.project(batch_of(records[start : start + size], token=token, start=start))

    assert dispositions(superuser) == [
        "applied", "poison", "repeat", "applied", "poison", "poison", "repeat", "repeat"
    ]  # fmt: skip
    reasons = superuser.query("SELECT DISTINCT reason FROM event_stream WHERE disposition = 'poison'")
    assert reasons == [("event_id: its producer used it before, for another event",)]
    names = dict(superuser.query("SELECT agent_id::text, name FROM agents_v1.agents"))
    assert names[str(first.agent_id)] == first.name


def test_repeats_in_a_row_stay_exact(projector: PartitionProjector, superuser: Session) -> None:
    """Batches that look up their ids first find repeats and fresh events alike."""
    batch = some(50)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(batch[:40], token=token))

    for start in (40, 90, 140):
        projector.project(batch_of(batch, token=token, start=start))

    assert dispositions(superuser).count("applied") == 50
    assert dispositions(superuser)[40:80] == ["repeat"] * 40


def test_looking_up_repeats_reads_the_index(projector: PartitionProjector, superuser: Session) -> None:
    """However large the log is, the look-up never reads it whole."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some(3000), token=token))
    superuser.execute("ANALYZE event_stream")
    superuser.script("CREATE TEMPORARY TABLE staged_event_ids (event_id uuid)")
    superuser.script("INSERT INTO staged_event_ids SELECT event_id FROM event_stream")
    look_up = SEEN.format(topic=sql_literal(TOPIC), partition=0)

    superuser.script(
        f"CREATE FUNCTION plan() RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE "
        f"'EXPLAIN ' || {sql_literal(look_up)}; END $$"
    )
    plan = "\n".join(row[0] for row in superuser.query("SELECT plan() AS line"))

    assert "event_stream_applied_once" in plan
    assert "Seq Scan on event_stream" not in plan


def test_a_batch_that_was_applied_already_changes_nothing(projector: PartitionProjector, superuser: Session) -> None:
    """Reading again from an old hint trims what is below the checkpoint."""
    batch = some(20)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(batch[:10], token=token))

    again = projector.project(batch_of(batch[:10], token=token))
    overlapping = projector.project(batch_of(batch, token=token))

    assert (again, overlapping) == (10, 20)
    assert dispositions(superuser) == ["applied"] * 20


def test_a_hole_before_a_batch_is_refused(projector: PartitionProjector, superuser: Session) -> None:
    """A slice that starts above the checkpoint means that records were missed: nothing of it is applied."""
    batch = some(10)
    token = projector.acquire(WATERMARKS).token

    with pytest.raises(OwnershipLost, match="were not read"):
        projector.project(batch_of(batch, token=token, start=5))

    assert dispositions(superuser) == []


def test_gaps_inside_the_log_are_normal(projector: PartitionProjector, superuser: Session) -> None:
    """Offsets that transaction markers take are skipped, and the checkpoint passes them."""
    token = projector.acquire(WATERMARKS).token
    batch = batch_of(some(4), token=token)
    gappy = type(batch)(**{**_fields(batch), "offsets": [0, 1, 5, 6], "next_offset": 9})

    assert projector.project(gappy) == 9
    assert projector.project(batch_of(some(2, seed=2), token=token, start=9)) == 11
    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(6,)]


def test_an_older_token_writes_nothing(
    make_projector: MakeProjector, projector: PartitionProjector, superuser: Session
) -> None:
    """Once another worker has taken the partition, the former one's batch is dropped."""
    former = make_projector(0)
    stale = former.acquire(WATERMARKS).token
    current = projector.acquire(WATERMARKS).token

    with pytest.raises((OwnershipLost, DatabaseUnreachable)):
        former.project(batch_of(some(5), token=stale))
    with pytest.raises(OwnershipLost):
        projector.project(batch_of(some(5), token=stale))

    assert current > stale
    assert dispositions(superuser) == []


def test_every_batch_is_fenced(projector: PartitionProjector, superuser: Session) -> None:
    """The token and the log's end are checked in each transaction, whatever the writer remembers of them."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some(5), token=token))
    superuser.execute("UPDATE partition_owners SET token = token + 1")

    with pytest.raises(OwnershipLost, match="not current"):
        projector.project(batch_of(some(5, seed=2), token=token, start=5))

    token = projector.acquire(WATERMARKS).token
    superuser.execute("UPDATE checkpoints SET next_offset = 4")
    with pytest.raises(OwnershipLost, match="ends at 4"):
        projector.project(batch_of(some(5, seed=2), token=token, start=5))
    assert dispositions(superuser) == ["applied"] * 5


def test_taking_terminates_a_backend_that_holds_the_lock(
    make_projector: MakeProjector, projector: PartitionProjector
) -> None:
    """A former owner that stopped in the middle of a transaction does not hold up its successor."""
    former = make_projector(0)
    token = former.acquire(WATERMARKS).token
    frozen = former._require_session()
    frozen.begin()
    frozen.query("SELECT token FROM partition_owners WHERE topic = $1 AND partition = 0 FOR UPDATE", (TOPIC,))

    taken = projector.acquire(WATERMARKS)

    assert taken.token == token + 1
    with pytest.raises(DatabaseUnreachable):
        frozen.execute("SELECT 1")


def bad_records() -> list[tuple[str, Record]]:
    """Records that no consumer could use, each with what is wrong."""
    onboarded = next(event for event in some(50) if isinstance(event, AgentOnboarded))
    key, value = record(onboarded)
    other_key = record(some(2, seed=5)[1])[0]
    return [
        ("no value", (key, None)),
        ("empty", (key, b"")),
        ("not Avro", (key, b"\x00\x00\x00\x00\x01not avro at all")),
        ("unknown schema", (key, b"\x00\x7f\xff\xff\xff" + value[5:] if value else b"")),
        ("trailing bytes", (key, (value or b"") + b"\x00")),
        ("two records in one", (key, (value or b"") + (value or b"")[5:])),
        ("cut short", (key, (value or b"")[:-1])),
        ("no key", (None, value)),
        ("another entity's key", (other_key, value)),
        ("a key that is not UTF-8", (b"\xff" * 36, value)),
    ]


@pytest.mark.parametrize(("what", "bad"), bad_records(), ids=[what for what, _ in bad_records()])
def test_poison_is_logged_and_the_rest_applied(
    projector: PartitionProjector, superuser: Session, what: str, bad: Record
) -> None:
    """A record that can't be used costs nothing but itself."""
    batch: list[Event | Record] = [*some(40, seed=3)]
    batch.insert(17, bad)
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of(batch, token=token))

    found = dispositions(superuser)
    assert found[17] == "poison", what
    assert found[:17] + found[18:] == ["applied"] * 40
    ((value, reason),) = superuser.query("SELECT value, reason FROM event_stream WHERE disposition = 'poison'")
    assert value == bad[1]
    assert reason


def test_a_forged_record_inside_a_field_is_only_a_field(projector: PartitionProjector, superuser: Session) -> None:
    """A text field that holds a whole encoded record stays text, and its neighbours stay theirs."""
    onboarded = next(event for event in some(50) if isinstance(event, AgentOnboarded))
    inner = codec.encode(onboarded).decode("latin-1").replace("\x00", "\x01")[:200]
    forged = AgentOnboarded(
        event_id=some(1, seed=7)[0].event_id,
        agent_id=onboarded.agent_id,
        occurred_at=onboarded.occurred_at,
        name=inner,
        skill_ids=(),
    )
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of([*some(30, seed=3), forged, *some(30, seed=4)], token=token))

    assert dispositions(superuser) == ["applied"] * 61
    rows = superuser.query("SELECT name FROM agents_v1.agents WHERE agent_id::text = $1", (str(onboarded.agent_id),))
    assert rows == [(inner,)]


def test_what_the_checks_let_through_is_found_by_halving(projector: PartitionProjector, superuser: Session) -> None:
    """A row that only Postgres refuses becomes poison alone."""
    superuser.execute("ALTER TABLE agents_v1.agents ADD CONSTRAINT odd CHECK (name <> 'agent 7')")
    batch = [event for event in some(60, agents=60) if isinstance(event, AgentOnboarded)]
    odd = [index for index, event in enumerate(batch) if event.name == "agent 7"]
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of(batch, token=token))

    found = dispositions(superuser)
    assert [index for index, disposition in enumerate(found) if disposition == "poison"] == odd
    assert len(found) == len(batch)


def test_a_refused_log_row_is_never_poison(projector: PartitionProjector, superuser: Session) -> None:
    """A row in the log where the checkpoint says there is none stops the partition with a named error."""
    superuser.execute(
        'INSERT INTO event_stream (topic, partition, "offset", created_at, disposition, headers, reason)'
        " VALUES ($1, 0, 2, now(), 'poison', '\\x00000000', 'put there by hand')",
        (TOPIC,),
    )
    token = projector.acquire(WATERMARKS).token

    with pytest.raises(LogRefused):
        projector.project(batch_of(some(5), token=token))

    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(0,)]


def test_a_read_model_that_is_behind_catches_up_from_the_log(projector: PartitionProjector, superuser: Session) -> None:
    """A model whose checkpoint lags is folded from event_stream before its partition is read on."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([*some(200), *some(3)], token=token))
    live = superuser.query(AGENT_ROWS)
    superuser.execute("TRUNCATE agents_v1.agents")
    superuser.execute("UPDATE checkpoints SET next_offset = 0 WHERE projection = 'agents'")

    projector.acquire(WATERMARKS)

    assert superuser.query(AGENT_ROWS) == live
    assert superuser.query("SELECT DISTINCT next_offset FROM checkpoints WHERE partition = 0") == [(203,)]


def test_a_topic_made_again_stops_the_partition(projector: PartitionProjector) -> None:
    """Offsets of a topic that was deleted and made again mean other records."""
    projector.acquire(WATERMARKS)

    with pytest.raises(TopicRecreated):
        projector.acquire(Watermarks(0, 10, PARTITIONS, type(TOPIC_ID)(int=TOPIC_ID.int + 1)))


def test_a_topic_that_grew_stops_its_partitions(make_projector: MakeProjector, projector: PartitionProjector) -> None:
    """Keys change partition when a topic grows, old partitions and new ones alike."""
    projector.acquire(WATERMARKS)
    grown = Watermarks(0, 10, PARTITIONS + 4, TOPIC_ID)
    fresh = make_projector(PARTITIONS)

    with pytest.raises(PartitionCountChanged):
        projector.acquire(grown)
    with pytest.raises(PartitionCountChanged):
        fresh.acquire(grown)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 119), max_size=30), seed=st.integers(1, 1000))
def test_any_split_into_batches_gives_equal_tables(
    projector: PartitionProjector, superuser: Session, cuts: set[int], seed: int
) -> None:
    """A fold is a function of the sequence alone, however it is cut."""
    batch = some(120, seed=seed, agents=6)
    whole = _folded(projector, superuser, [batch])
    edges = [0, *sorted(cuts), len(batch)]

    pieces = [batch[start:stop] for start, stop in itertools.pairwise(edges)]

    assert _folded(projector, superuser, pieces) == whole


def _folded(projector: PartitionProjector, superuser: Session, pieces: list[list[Event]]) -> list[tuple[object, ...]]:
    """The tables after projecting the pieces into an emptied database."""
    projector.close()
    superuser.execute("SET session_replication_role = replica")
    for table in (
        "event_stream",
        "audit_log",
        "partition_owners",
        "checkpoints",
        *(f"{AGENTS.schema}.{t}" for t in AGENTS.tables),
    ):
        superuser.execute(f"DELETE FROM {table}")
    token = projector.acquire(WATERMARKS).token
    start = 0
    for piece in pieces:
        projector.project(batch_of(piece, token=token, start=start))
        start += len(piece)
    heads = superuser.query('SELECT hash FROM audit_log ORDER BY "offset" DESC LIMIT 1')
    return [*superuser.query(AGENT_ROWS), *heads]


def _fields(batch: object) -> dict[str, object]:
    return {name: getattr(batch, name) for name in batch.__slots__}  # type: ignore[attr-defined]
