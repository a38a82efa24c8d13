"""One partition's batches into Postgres: exactly once, whatever comes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

import msgspec
import pytest
import structlog

from audit.canonical import headers_bytes
from audit.chain import CHAIN_START
from database.errors import DatabaseUnreachable
from projections import checkpoints, engine, fold
from projections.checkpoints import PROJECTOR
from projections.engine import PartitionProjector
from projections.errors import ReadModelAhead
from projections.repeats import seen_query
from projections.session import Session, sql_literal
from schemas import codec
from schemas.events import AgentOnboarded, Event
from streams.errors import (
    LogRefused,
    OwnershipLost,
    PartitionCountChanged,
    SchemaNewer,
    TopicRecreated,
)
from streams.watermarks import Leadership, Watermarks
from tests.conftest import Database
from tests.support.batches import PARTITIONS, TOPIC, TOPIC_ID, WATERMARKS, Record, batch_of, record
from tests.support.load import some_events
from tests.support.made_models import AGENTS
from tests.support.projectors import AGENT_ROWS, MakeProjector
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("inline_records_max")


def dispositions(session: Session) -> list[str]:
    rows = session.query('SELECT disposition::text FROM event_stream ORDER BY "offset"')
    return [row[0] for row in rows]


def test_a_batch_becomes_log_rows_chain_links_and_agents(projector: PartitionProjector, superuser: Session) -> None:
    """Every record has one row in each log table, and the read model holds each agent's last state."""
    batch = some_events(300)
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


NEWER = codec.WIRE_PREFIX.pack(0, 99) + b"what a later release wrote"


@pytest.mark.parametrize("before", [0, 3])
def test_a_schema_of_a_later_release_waits(make_projector: MakeProjector, superuser: Session, before: int) -> None:
    """Records before it are applied, it stops the partition by name, and a worker that knows it goes on from there."""
    events = some_events(before + 2)
    records = [*map(record, events[:before]), (codec.key(events[before]), NEWER), record(events[before + 1])]
    projector = make_projector(0)
    token = projector.acquire(WATERMARKS).token

    for _ in range(2):
        with pytest.raises(SchemaNewer) as stopped:
            projector.project(batch_of(records, token=token))
        assert (stopped.value.offset, stopped.value.schema_id) == (before, 99)
        assert dispositions(superuser) == ["applied"] * before
        projector.note_stop(str(stopped.value))
        (noted,) = superuser.query("SELECT stop_reason FROM partition_owners WHERE partition = 0")[0]
        assert f"offset {before} has the schema id 99" in noted
        token = projector.acquire(WATERMARKS).token
        assert superuser.query("SELECT stop_reason FROM partition_owners WHERE partition = 0") == [(None,)]
    records[before] = record(events[before])
    assert projector.project(batch_of(records, token=token)) == before + 2
    assert dispositions(superuser) == ["applied"] * (before + 2)


def test_a_former_owner_that_can_not_acquire_tells_why(make_projector: MakeProjector, superuser: Session) -> None:
    """Its token is not the last one: another worker has owned the partition since."""
    former, later = make_projector(0), make_projector(0)
    former.acquire(WATERMARKS)
    later.acquire(WATERMARKS)
    grown = WATERMARKS._replace(partition_count=PARTITIONS + 1)

    with pytest.raises(PartitionCountChanged) as stopped:
        former.acquire(grown)
    former.note_stop(str(stopped.value))

    (noted,) = superuser.query("SELECT stop_reason FROM partition_owners WHERE partition = 0")[0]
    assert noted == str(stopped.value)


def test_a_repeat_is_logged_and_has_no_effect(projector: PartitionProjector, superuser: Session) -> None:
    """An event id that was applied before, in the same batch or an earlier one, is a repeat."""
    first, second, third = some_events(3)
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of([first, second, first], token=token))
    projector.project(batch_of([second, third, third], token=token, start=3))

    assert dispositions(superuser) == ["applied", "applied", "repeat", "repeat", "applied", "repeat"]


@pytest.mark.parametrize("size", [1, 2, 4], ids="batches of {}".format)
def test_an_id_that_names_another_event_is_poison(projector: PartitionProjector, superuser: Session, size: int) -> None:
    """The same event id with other content is never applied, in the same batch or later; a true repeat still is one."""
    first, other = some_events(2)
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


def test_a_repeat_with_another_time_of_plants_clock_is_one(projector: PartitionProjector, superuser: Session) -> None:
    """In a later batch, where the first stands in the log; with a time that the sender gave it is another event."""
    (first,) = some_events(1)
    later = msgspec.structs.replace(first, occurred_at=first.occurred_at + timedelta(seconds=1))
    stamped, plain = (headers_bytes(codec.headers(first, "t", clock_stamped=each)) for each in (True, False))
    token = projector.acquire(WATERMARKS).token

    for start, headers in enumerate((stamped, stamped, plain)):
        event = later if start else first
        projector.project(replace(batch_of([event], token=token, start=start), headers=[headers]))

    assert dispositions(superuser) == ["applied", "repeat", "poison"]


def test_a_repeat_of_a_later_releases_event_is_one(projector: PartitionProjector, superuser: Session) -> None:
    """After an update was taken back: the log says what type the first had, though its schema is not known here."""
    (first, second) = some_events(2)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([first], token=token))
    rewrite = "UPDATE log_records SET value = decode('0000000063', 'hex') || substring(value FROM 6)"
    superuser.script("SET session_replication_role = replica", rewrite, "RESET session_replication_role")

    assert projector.project(batch_of([first, second], token=token, start=1)) == 3

    assert dispositions(superuser) == ["applied", "repeat", "applied"]


def test_repeats_in_a_row_stay_exact(projector: PartitionProjector, superuser: Session) -> None:
    """Batches that look up their ids first find repeats and fresh events alike."""
    batch = some_events(50)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(batch[:40], token=token))

    for start in (40, 90, 140):
        projector.project(batch_of(batch, token=token, start=start))

    assert dispositions(superuser).count("applied") == 50
    assert dispositions(superuser)[40:80] == ["repeat"] * 40


def test_looking_up_repeats_reads_the_index(projector: PartitionProjector, superuser: Session) -> None:
    """However large the log is, the look-up never reads it whole."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(3000), token=token))
    table = f"{TOPIC}/0/0"
    superuser.script(f'ANALYZE log."{table}"')
    ids = [row[0] for row in superuser.query('SELECT uuid_send(event_id) AS id FROM log_records ORDER BY "offset"')]
    superuser.script(
        "CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE "
        "'EXPLAIN ' || query; END $$"
    )
    for offsets, index in ((list(range(3000)), f"{table}_pkey"), ([None] * 3000, "event_ids_")):
        query = seen_query(table, ids, offsets)
        explain = f"SELECT plan({sql_literal(query)}) AS line"
        # A new index is passed over until older transactions end, where an earlier test has updated the table's rows.
        wait_until(partial(_is_in_plan, superuser, explain, index), f"a plan with {index}")
        assert not _is_in_plan(superuser, explain, "Seq Scan")
        assert superuser.frame(query).height == 3000
        superuser.script(f"SELECT make_log_range({sql_literal(TOPIC)}, 0, log_range_offsets())")
        superuser.script(f"SELECT index_log_range({sql_literal(TOPIC)}, 0, 0)")


def _is_in_plan(session: Session, explain: str, words: str) -> bool:
    return any(words in line for (line,) in session.query(explain))


def test_a_batch_that_was_applied_already_changes_nothing(projector: PartitionProjector, superuser: Session) -> None:
    """Reading again from an old hint trims what is below the checkpoint."""
    batch = some_events(20)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(batch[:10], token=token))

    again = projector.project(batch_of(batch[:10], token=token))
    overlapping = projector.project(batch_of(batch, token=token))

    assert (again, overlapping) == (10, 20)
    assert dispositions(superuser) == ["applied"] * 20


@pytest.mark.parametrize("missing", [1, 5])
@pytest.mark.parametrize("applied", [0, 3])
def test_a_hole_before_a_batch_is_refused(
    projector: PartitionProjector, superuser: Session, applied: int, missing: int
) -> None:
    """A slice that starts above the checkpoint means that records were missed: nothing of it is applied."""
    token = projector.acquire(WATERMARKS).token
    if applied:
        projector.project(batch_of(some_events(applied), token=token))

    with pytest.raises(OwnershipLost, match="were not read"):
        projector.project(batch_of(some_events(10, seed=2), token=token, start=applied + missing))

    assert dispositions(superuser) == ["applied"] * applied


def test_gaps_inside_the_log_are_normal(projector: PartitionProjector, superuser: Session) -> None:
    """Offsets that transaction markers take are skipped, and the checkpoint passes them."""
    token = projector.acquire(WATERMARKS).token
    batch = batch_of(some_events(4), token=token)
    gappy = type(batch)(**{**_fields(batch), "offsets": [0, 1, 5, 6], "next_offset": 9})

    assert projector.project(gappy) == 9
    assert projector.project(batch_of(some_events(2, seed=2), token=token, start=9)) == 11
    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(6,)]


def test_an_older_token_writes_nothing(
    make_projector: MakeProjector, projector: PartitionProjector, superuser: Session
) -> None:
    """Once another worker has taken the partition, the former one's batch is dropped."""
    former = make_projector(0)
    stale = former.acquire(WATERMARKS).token
    current = projector.acquire(WATERMARKS).token

    with pytest.raises((OwnershipLost, DatabaseUnreachable)):
        former.project(batch_of(some_events(5), token=stale))
    with pytest.raises(OwnershipLost):
        projector.project(batch_of(some_events(5), token=stale))

    assert current > stale
    assert dispositions(superuser) == []


def test_every_batch_is_fenced(projector: PartitionProjector, superuser: Session) -> None:
    """The token and the log's end are checked in each transaction, whatever the writer remembers of them."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(5), token=token))
    superuser.execute("UPDATE partition_owners SET token = token + 1")

    with pytest.raises(OwnershipLost, match="not current"):
        projector.project(batch_of(some_events(5, seed=2), token=token, start=5))

    token = projector.acquire(WATERMARKS).token
    superuser.execute("UPDATE checkpoints SET next_offset = 4")
    with pytest.raises(OwnershipLost, match="is 4, not 5"):
        projector.project(batch_of(some_events(5, seed=2), token=token, start=5))
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


@pytest.mark.parametrize("lock", ["statement", "function"])
def test_the_fence_stays_locked_until_its_transaction_ends(
    projector: PartitionProjector, superuser: Session, database: Database, lock: str
) -> None:
    """Whoever would acquire the partition has to wait for a transaction that has passed the fence."""
    token = projector.acquire(WATERMARKS).token
    owner = Session(database.writer_url)
    unlocked = "SELECT token FROM partition_owners WHERE topic = $1 AND partition = 0 FOR NO KEY UPDATE SKIP LOCKED"
    try:
        owner.begin()
        if lock == "statement":
            owner.script(checkpoints.lock_statement(PROJECTOR, TOPIC, 0, token, 0))
        else:
            checkpoints.lock_fence(owner, PROJECTOR, TOPIC, 0, token)
        assert superuser.query(unlocked, (TOPIC,)) == []
        owner.commit()
        assert superuser.query(unlocked, (TOPIC,)) == [(token,)]
    finally:
        owner.close()


def test_another_session_with_the_former_owners_number_lives_on(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """A backend that began at another time than the one that acquired the partition is not terminated."""
    make_projector(0).acquire(WATERMARKS)
    bystander = Session(database.writer_url)
    try:
        ((number,),) = bystander.query("SELECT pg_backend_pid() AS number")
        superuser.execute("UPDATE partition_owners SET backend_pid = $1 WHERE partition = 0", (number,))

        make_projector(0).acquire(WATERMARKS)

        assert bystander.query("SELECT 1 AS one") == [(1,)]
    finally:
        bystander.close()


def test_checkpoints_of_others_stay(
    make_projector: MakeProjector, projector: PartitionProjector, superuser: Session
) -> None:
    """A batch moves its own consumer's checkpoint of its own partition, and no others."""
    token = projector.acquire(WATERMARKS).token
    make_projector(1).acquire(WATERMARKS)
    superuser.execute("INSERT INTO checkpoints VALUES ('dead_letters', $1, 0, 3)", (TOPIC,))

    projector.project(batch_of(some_events(5), token=token))

    rows = superuser.query("SELECT consumer, partition, next_offset, read_models FROM checkpoints ORDER BY 1, 2")
    shared = [AGENTS.key]
    assert rows == [("dead_letters", 0, 3, []), ("projector", 0, 5, shared), ("projector", 1, 0, shared)]


def test_an_id_of_another_partition_is_no_repeat(
    make_projector: MakeProjector, projector: PartitionProjector, superuser: Session
) -> None:
    """Repeats are looked up in their own partition: another one's record is another event, whatever its id."""
    first, second, other = some_events(3)
    projector.project(batch_of([first, second], token=projector.acquire(WATERMARKS).token))
    neighbour = make_projector(1)
    token = neighbour.acquire(WATERMARKS).token

    neighbour.project(batch_of([other, other, first], token=token, partition=1))
    neighbour.project(batch_of([second], token=token, start=3, partition=1))

    rows = superuser.query('SELECT disposition::text FROM event_stream WHERE partition = 1 ORDER BY "offset"')
    assert [row[0] for row in rows] == ["applied", "repeat", "applied", "applied"]


def test_nothing_is_decoded_of_a_batch_that_can_not_be_applied(
    projector: PartitionProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of another token, after a hole, or already applied, costs no decoding."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(4), token=token))
    monkeypatch.setattr(engine, "prepare", lambda *_: pytest.fail("a batch was decoded"))

    assert projector.project(batch_of(some_events(4), token=token)) == 4
    with pytest.raises(OwnershipLost):
        projector.project(batch_of(some_events(4), token=token, start=5))
    assert projector.acquire(WATERMARKS).token == token + 1
    with pytest.raises(OwnershipLost, match=f"under token {token}"):
        projector.project(batch_of(some_events(4), token=token, start=4))


def test_a_batch_leaves_one_line_and_its_counts(projector: PartitionProjector) -> None:
    """Records by disposition, next offset and time: at info where a record was not applied, at debug otherwise."""
    first, second, third = some_events(3)
    token = projector.acquire(WATERMARKS).token
    with structlog.testing.capture_logs() as lines:
        projector.project(batch_of([first, second], token=token))
        projector.project(batch_of([second, third, (None, None)], token=token, start=2))

    milliseconds = [line.pop("duration_ms") for line in lines]
    where = {"event": "batch.projected", "topic": TOPIC, "partition": 0}
    assert lines == [
        {**where, "log_level": "debug", "next_offset": 2, "applied": 2},
        {**where, "log_level": "info", "next_offset": 5, "applied": 1, "repeat": 1, "poison": 1},
    ]
    assert min(milliseconds) > 0


def test_after_an_error_the_connection_is_closed(projector: PartitionProjector) -> None:
    """What a failed batch has left on its connection is never gone on with: the partition is acquired first."""
    token = projector.acquire(WATERMARKS).token
    with pytest.raises(OwnershipLost):
        projector.project(batch_of(some_events(4), token=token, start=1))

    with pytest.raises(DatabaseUnreachable, match="closed"):
        projector.project(batch_of(some_events(4), token=token))


def bad_records() -> list[tuple[str, Record]]:
    """Records that no consumer could use, each with what is wrong."""
    onboarded = next(event for event in some_events(50) if isinstance(event, AgentOnboarded))
    key, value = record(onboarded)
    other_key = record(some_events(2, seed=5)[1])[0]
    return [
        ("no value", (key, None)),
        ("empty", (key, b"")),
        ("not Avro", (key, b"\x00\x00\x00\x00\x01not avro at all")),
        ("unknown schema", (key, b"\x00\x00\x00\x27\x0f" + value[5:] if value else b"")),
        ("trailing bytes", (key, (value or b"") + b"\x00")),
        ("two records in one", (key, (value or b"") + (value or b"")[5:])),
        ("cut short", (key, (value or b"")[:-1])),
        ("no key", (None, value)),
        ("another entity's key", (other_key, value)),
        ("a key with other dashes", ((key or b"").replace(b"-", b"_"), value)),
        ("a key that is not UTF-8", (b"\xff" * 36, value)),
    ]


@pytest.mark.parametrize(("what", "bad"), bad_records(), ids=[what for what, _ in bad_records()])
def test_poison_is_logged_and_the_rest_applied(
    projector: PartitionProjector, superuser: Session, what: str, bad: Record
) -> None:
    """A record that can't be used costs nothing but itself."""
    batch: list[Event | Record] = [*some_events(40, seed=3)]
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
    onboarded = next(event for event in some_events(50) if isinstance(event, AgentOnboarded))
    inner = codec.encode(onboarded).decode("latin-1").replace("\x00", "\x01")[:200]
    forged = AgentOnboarded(
        event_id=some_events(1, seed=7)[0].event_id,
        agent_id=onboarded.agent_id,
        occurred_at=onboarded.occurred_at,
        name=inner,
        skill_ids=(),
    )
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of([*some_events(30, seed=3), forged, *some_events(30, seed=4)], token=token))

    assert dispositions(superuser) == ["applied"] * 61
    rows = superuser.query("SELECT name FROM agents_v1.agents WHERE agent_id::text = $1", (str(onboarded.agent_id),))
    assert rows == [(inner,)]


def test_a_refused_log_row_is_never_poison(projector: PartitionProjector, superuser: Session) -> None:
    """A row in the log where the checkpoint says there is none stops the partition with a named error."""
    token = projector.acquire(WATERMARKS).token
    superuser.script(f"SELECT make_log_range({sql_literal(TOPIC)}, 0, 0)")
    superuser.execute(
        'INSERT INTO log_records (topic, partition, "offset", created_at, disposition, headers, reason, hash)'
        " VALUES ($1, 0, 2, now(), 'poison', '\\x00000000', 'put there by hand', sha256(''))",
        (TOPIC,),
    )

    with pytest.raises(LogRefused):
        projector.project(batch_of(some_events(5), token=token))

    assert superuser.query("SELECT count(*) AS n FROM audit_log") == [(1,)]


def test_a_read_model_that_is_behind_catches_up_from_the_log(projector: PartitionProjector, superuser: Session) -> None:
    """A model whose checkpoint lags is folded from event_stream before its partition is read on."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([*some_events(200), *some_events(3)], token=token))
    live = superuser.query(AGENT_ROWS)
    superuser.execute("TRUNCATE agents_v1.agents")
    superuser.execute("UPDATE checkpoints SET read_models = '{}'")

    projector.acquire(WATERMARKS)

    assert superuser.query(AGENT_ROWS) == live
    assert superuser.query("SELECT DISTINCT next_offset FROM projection_checkpoints WHERE partition = 0") == [(203,)]


def test_catching_up_goes_slice_by_slice(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slice moves the checkpoint to its own end, so every record is folded, and none but applied ones."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 20)
    batch = [event for event in some_events(150, agents=150) if isinstance(event, AgentOnboarded)][:50]
    forged = msgspec.structs.replace(batch[0], name="Somebody else")
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([*batch, forged, (None, None)], token=token))
    live = superuser.query(AGENT_ROWS)
    assert live
    superuser.execute("TRUNCATE agents_v1.agents")
    superuser.execute("UPDATE checkpoints SET read_models = '{}'")

    projector.acquire(WATERMARKS)

    assert superuser.query(AGENT_ROWS) == live
    known = "SELECT reltuples::bigint AS rows FROM pg_class WHERE oid = 'agents_v1.agents'::regclass"
    assert superuser.query(known) == [(len(live),)], "the filled table was not analysed"


def test_a_model_ahead_of_the_log_stops_the_partition(projector: PartitionProjector, superuser: Session) -> None:
    """Its tables hold records that the log lacks: nothing can mend that but an operator. The log was not refused."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(5), token=token))
    superuser.execute("UPDATE checkpoints SET read_models = '{}'")
    superuser.execute("INSERT INTO model_checkpoints VALUES ('agents', 1, $1, 0, 6)", (TOPIC,))

    with pytest.raises(ReadModelAhead, match="ahead of the log"):
        projector.acquire(WATERMARKS)


def test_a_topic_made_again_stops_the_partition(projector: PartitionProjector) -> None:
    """Offsets of a topic that was deleted and made again mean other records."""
    projector.acquire(WATERMARKS)

    with pytest.raises(TopicRecreated):
        projector.acquire(Watermarks(0, 10, PARTITIONS, Leadership(UUID(int=TOPIC_ID.int + 1), 0)))


def test_a_topic_that_grew_stops_its_partitions(make_projector: MakeProjector, projector: PartitionProjector) -> None:
    """Keys change partition when a topic grows, old partitions and new ones alike."""
    projector.acquire(WATERMARKS)
    grown = Watermarks(0, 10, PARTITIONS + 4, WATERMARKS.leadership)
    fresh = make_projector(PARTITIONS)

    with pytest.raises(PartitionCountChanged):
        projector.acquire(grown)
    with pytest.raises(PartitionCountChanged):
        fresh.acquire(grown)


def _fields(batch: object) -> dict[str, object]:
    return {name: getattr(batch, name) for name in batch.__slots__}  # type: ignore[attr-defined]
