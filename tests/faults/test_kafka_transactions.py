"""Transactions of others on the topic: only what they committed counts, and nothing waits for what they aborted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from runtime.settings import Settings
from schemas import codec
from schemas.events import Event
from tests.conftest import Database
from tests.support.faults.evidence import assert_exactly_once, dispositions, log_ends, wait_until_caught_up
from tests.support.faults.scene import Scene, scene_of
from tests.support.load import events, fill
from tests.support.waiting import DEADLINE_SECONDS, wait_until


@pytest.fixture
def scene(settings: Settings, database: Database, topic: str, tmp_path: Path) -> Iterator[Scene]:
    with scene_of(settings, database.superuser_url, topic, tmp_path) as made:
        yield made


@pytest.fixture
def producer(scene: Scene) -> Producer:
    """A transactional producer."""
    made = Producer(
        {
            "bootstrap.servers": scene.settings.kafka_address(),
            "transactional.id": scene.topic,
            # The broker would abort it by itself; a busy machine takes its time until the test does.
            "transaction.timeout.ms": 900_000,
            "partitioner": "murmur2_random",
        }
    )
    made.init_transactions(DEADLINE_SECONDS)
    return made


def send(producer: Producer, topic: str, load: Iterable[Event]) -> list[str]:
    """Write to the open transaction, and wait until the broker has it."""
    sent = []
    for event in load:
        producer.produce(topic, codec.encode(event), codec.key(event))
        sent.append(str(event.event_id))
    assert producer.flush(DEADLINE_SECONDS) == 0
    return sent


def applied_of(scene: Scene, event_ids: list[str]) -> int:
    rows = scene.query("SELECT event_id::text FROM event_stream WHERE topic = $1", (scene.topic,))
    return len({str(row[0]) for row in rows} & set(event_ids))


def test_aborted_records_have_no_effect_and_hold_up_nothing(scene: Scene, producer: Producer) -> None:
    """Aborted and committed transactions among plain records: aborted ones leave no row, and the lag goes to 0 though
    the log ends in control records."""
    fill(scene.settings, scene.topic, events(500))
    worker = scene.worker(PLANT_WORKER_SESSION_TIMEOUT_SECONDS="300")  # each partition is acquired once
    committed, aborted = [], []
    for number in range(6):
        producer.begin_transaction()
        sent = send(producer, scene.topic, events(200, seed=100 + number))
        if number % 2:
            producer.commit_transaction(DEADLINE_SECONDS)
            committed += sent
        else:
            producer.abort_transaction(DEADLINE_SECONDS)
            aborted += sent
        fill(scene.settings, scene.topic, events(50, seed=200 + number))
    wait_until_caught_up(scene)
    producer.begin_transaction()
    aborted += send(producer, scene.topic, events(50, seed=300))
    producer.abort_transaction(DEADLINE_SECONDS)

    wait_until_caught_up(scene)

    assert applied_of(scene, aborted) == 0
    found = assert_exactly_once(scene, committed, gaps=True)
    assert found == {"applied": 500 + 6 * 50 + 3 * 200}
    assert sum(log_ends(scene).values()) > found.total()
    assert worker.stop() == 0
    assert len(worker.logged("partition.acquired")) == 4


def test_an_open_transaction_delays_what_follows_it_and_loses_nothing(scene: Scene, producer: Producer) -> None:
    """Records after an open transaction wait until it ends, whichever way; a worker that starts meanwhile waits too."""
    fill(scene.settings, scene.topic, events(300))
    producer.begin_transaction()
    aborted = send(producer, scene.topic, events(100, seed=100))
    fill(scene.settings, scene.topic, events(300, seed=2))
    scene.worker()
    wait_until(lambda: dispositions(scene)["applied"] == 300, "what came before the transaction is applied")

    producer.abort_transaction(DEADLINE_SECONDS)
    wait_until_caught_up(scene)

    assert applied_of(scene, aborted) == 0
    assert assert_exactly_once(scene, [], gaps=True) == {"applied": 600}
