"""What a fault must leave behind: each record logged once, whole chains, a read model equal to a fold from zero."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Consumer, TopicPartition

from audit.verifier.chains import verify_chains
from database.errors import DatabaseUnreachable
from projections.fold import fold_slice
from projections.session import Session
from projections.staging import Staging
from projections.statements import split_statements
from tests.support.faults.scene import Scene
from tests.support.made_models import AGENTS
from tests.support.waiting import DEADLINE_SECONDS, wait_until


def log_ends(scene: Scene, topic: str | None = None) -> dict[int, int]:
    """Each partition's end on the broker, control records included; of the scene's topic if none is named."""
    topic = topic or scene.topic
    consumer = Consumer({"bootstrap.servers": scene.settings.kafka_address(), "group.id": secrets.token_hex(4)})
    try:
        partitions = consumer.list_topics(topic, timeout=DEADLINE_SECONDS).topics[topic].partitions
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=DEADLINE_SECONDS)[1]
            for partition in partitions
        }
    finally:
        consumer.close()


def checkpoints(scene: Scene) -> dict[int, int]:
    """Each partition's lowest checkpoint, of those that follow the log."""
    sql = "SELECT partition, min(next_offset) FROM projection_checkpoints WHERE topic = $1 GROUP BY 1"
    rows = scene.query(sql, (scene.topic,))
    return {int(str(partition)): int(str(offset)) for partition, offset in rows}


def wait_until_caught_up(scene: Scene, seconds: float = DEADLINE_SECONDS) -> float:
    """Wait until every checkpoint has reached its partition's end; the seconds it took. Nothing may be publishing."""
    ends = {partition: end for partition, end in log_ends(scene).items() if end}
    return wait_until(
        lambda: ends.items() <= checkpoints(scene).items(),
        lambda: f"checkpoints at {ends}, they are at {checkpoints(scene)}",
        seconds,
    )


def dispositions(scene: Scene) -> Counter[str]:
    """Return how many rows of the log have each disposition."""
    rows = scene.query(
        "SELECT disposition::text, count(*) FROM event_stream WHERE topic = $1 GROUP BY 1", (scene.topic,)
    )
    return Counter({str(disposition): int(str(count)) for disposition, count in rows})


def applied(scene: Scene) -> int:
    """Return how many events are applied, or -1 while the database is away."""
    try:
        return dispositions(scene)["applied"]
    except DatabaseUnreachable:
        return -1


def is_applied(scene: Scene, event_id: str) -> bool:
    """Tell whether this event is applied; False while the database is away."""
    sql = "SELECT 1 AS found FROM event_stream WHERE event_id = $1::uuid AND disposition = 'applied'"
    try:
        return bool(scene.query(sql, (event_id,)))
    except DatabaseUnreachable:
        return False


def assert_exactly_once(scene: Scene, accepted: Iterable[str], gaps: bool = False) -> Counter[str]:
    """Check everything that a fault must not touch; the dispositions found.

    `accepted` are the event ids that were acknowledged. Without `gaps` every offset of the topic must have its row.
    """
    found = dispositions(scene)
    rows = scene.query(
        "SELECT event_id::text, count(*) FROM event_stream WHERE topic = $1 AND disposition = 'applied' GROUP BY 1",
        (scene.topic,),
    )
    applied = {str(event_id): int(str(count)) for event_id, count in rows}
    wrong = {event_id: applied.get(event_id, 0) for event_id in accepted if applied.get(event_id, 0) != 1}
    assert not wrong, f"{len(wrong)} accepted events are not applied exactly once: {list(wrong.items())[:5]}"
    assert max(applied.values(), default=1) == 1
    if not gaps:
        assert found.total() == sum(log_ends(scene).values())
    assert_chains_whole(scene, found.total())
    assert_equal_to_fold(scene)
    return found


def wait_until_full_ranges_are_closed(scene: Scene) -> int:
    """Wait until a worker has closed every range behind which the log has gone on; returns how many these are.

    The next one is made before the last one is full.
    """
    full = """
        SELECT count(*) FILTER (WHERE closed_at IS NULL) AS open, count(*) AS n FROM log_ranges AS r
        WHERE EXISTS (
            SELECT FROM log_records AS l
            WHERE l.topic = r.topic AND l.partition = r.partition AND l."offset" >= r.first_offset + log_range_offsets()
        ) AND topic = $1
    """
    wait_until(lambda: scene.query(full, (scene.topic,))[0][0] == 0, "all full ranges are closed")
    return int(str(scene.query(full, (scene.topic,))[0][1]))


def assert_chains_whole(scene: Scene, rows: int) -> None:
    """Every chain verifies, by the auditor's own code, and covers every row."""
    url = scene.settings.database_address("auditor")
    with ThreadPoolExecutor(1) as pool:  # the verifier runs an event loop of its own
        verdicts = pool.submit(lambda: verify_chains(url, topic=scene.topic, jobs=1)).result()
    assert [verdict for verdict in verdicts if verdict.state != "good"] == []
    assert rows, "the log is empty: nothing was checked"
    assert sum(verdict.entries for verdict in verdicts) == rows


def assert_equal_to_fold(scene: Scene) -> None:
    """Check that the live read model is, row for row, what a fold of the log from zero gives."""
    schema = f"refold_{secrets.token_hex(4)}"
    session = Session(scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
    try:
        session.execute(f"CREATE SCHEMA {schema}")
        for statement in split_statements(AGENTS.tables_in(schema)):
            session.execute(statement)
        staging = Staging([AGENTS])
        staging.open(session)
        for partition, end in checkpoints(scene).items():
            at = 0
            while at < end:
                session.begin()
                at = fold_slice(session, staging, [AGENTS], scene.topic, partition, (at, end), schema=schema)
                session.commit()
        live, fresh = f"SELECT * FROM {AGENTS.schema}.agents", f"SELECT * FROM {schema}.agents"
        for one, other in ((live, fresh), (fresh, live)):
            ((differing,),) = session.query(f"SELECT count(*) FROM ({one} EXCEPT {other}) AS d")
            assert differing == 0, f"{differing} rows of the read model differ from a fold from zero"
        session.execute(f"DROP SCHEMA {schema} CASCADE")
    finally:
        session.close()
