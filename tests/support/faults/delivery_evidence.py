"""What fault tests know of deliveries: counts, records of attempts, dead letters, and the owners of partitions."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from aiokafka.structs import ConsumerRecord

from devstack import sql
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted, DeliveryQueued
from streams.topics import DEAD_DELIVERIES_TOPIC
from tests.support.faults.attempts_in_flight import AttemptRecord, Ownership
from tests.support.faults.scene import Scene
from tests.support.raw_records import read_records

NOTE_OWNERSHIPS = (
    "CREATE SCHEMA noted",
    "CREATE TABLE noted.ownerships (partition integer, token bigint, worker text, began_at timestamptz)",
    """
    CREATE FUNCTION noted.note_ownership() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO noted.ownerships VALUES (NEW.partition, NEW.token, NEW.worker, NEW.taken_at);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_ownership AFTER INSERT OR UPDATE OF token ON delivery_owners
    FOR EACH ROW WHEN (NEW.consumer = 'deliverer') EXECUTE FUNCTION noted.note_ownership()
    """,
)
"""`delivery_owners` has the last owner of a partition alone; this keeps the former ones."""

COUNTS = """
    SELECT (SELECT count(*) FROM event_stream WHERE topic = 'genesis.events' AND disposition = 'applied') AS applied,
           count(*) FILTER (WHERE state = 'delivered') AS delivered,
           count(*) FILTER (WHERE state = 'waiting') AS waiting,
           count(*) FILTER (WHERE state = 'dead') AS dead
    FROM webhook_deliveries
"""


class DeliveryCounts(NamedTuple):
    """Events that are applied, and deliveries by what is recorded of them."""

    applied: int
    delivered: int
    waiting: int
    dead: int

    @property
    def recorded(self) -> int:
        """Deliveries of which an attempt is recorded."""
        return self.delivered + self.waiting + self.dead


def count_deliveries(scene: Scene) -> DeliveryCounts:
    """Return the counts of one moment."""
    (row,) = scene.query(COUNTS)
    return DeliveryCounts(*(int(str(value)) for value in row))


def dead_deliveries(scene: Scene) -> dict[str, int]:
    """Return the ids of the deliveries that are dead, and how many attempts each has had."""
    rows = scene.query("SELECT id::text, attempts FROM webhook_deliveries WHERE state = 'dead'")
    return {str(delivery): int(str(attempts)) for delivery, attempts in rows}


def note_ownerships(scene: Scene) -> None:
    """Have Postgres note who owns the deliveries of a partition, from now on."""
    sql.execute(scene.environ["PLANT_DATABASE_SUPERUSER_URL"], NOTE_OWNERSHIPS)


def noted_ownerships(scene: Scene) -> list[Ownership]:
    """Return all that was noted."""
    rows = scene.query(
        "SELECT partition, token, split_part(worker, ':', 2)::int AS pid, extract(epoch FROM began_at)::float8 AS began"
        " FROM noted.ownerships"
    )
    return [
        Ownership(int(str(partition)), int(str(token)), int(str(pid)), float(str(began)))
        for partition, token, pid, began in rows
    ]


def attempt_records(scene: Scene) -> list[AttemptRecord]:
    """Return the records of attempts that were made; what a deliverer published again is there once."""
    found: dict[tuple[object, ...], AttemptRecord] = {}
    for record in _records_of(scene, ATTEMPTS_TOPIC):
        made = codec.decode_record(record.value)
        assert isinstance(made, DeliveryAttempted)
        if made.outcome not in ("postponed", "cancelled"):
            began_at, appended_at = made.attempted_at.timestamp(), record.timestamp / 1000
            its_own = str(made.delivery_id), made.attempt, record.partition, made.token, began_at
            found.setdefault(its_own, AttemptRecord(*its_own, appended_at))
    return list(found.values())


def dead_letters(scene: Scene) -> list[str]:
    """Return the id of the delivery of each dead letter."""
    letters = [codec.decode_record(record.value) for record in _records_of(scene, DEAD_DELIVERIES_TOPIC)]
    return [str(letter.delivery_id) for letter in letters if isinstance(letter, DeliveryQueued)]


def _records_of(scene: Scene, topic: str) -> list[ConsumerRecord]:
    return asyncio.run(read_records(scene.settings, topic, scene.settings.topic_partitions))
