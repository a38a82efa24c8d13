"""kill -9 of the deliverer of endpoints that fail: what is blocked stays blocked, and a streak goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import msgspec
import pytest

from deliveries.hops import first_hop
from devstack.stack import Stack
from schemas.delivery_records import DELIVERIES_TOPIC, DeliveryQueued
from tests.support.delivering import LAST_ATTEMPT, add_endpoint, publish, queued
from tests.support.faults.scene import Scene, private_scene
from tests.support.faults.subscribers import subscribers
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("failing-endpoints")) as made:
        yield made


def send(scene: Scene, *records: DeliveryQueued) -> None:
    asyncio.run(publish(scene.settings, DELIVERIES_TOPIC, records))


def count(scene: Scene, query: str) -> int:
    ((found,),) = scene.query(f"SELECT count(*) AS n FROM {query}")
    assert isinstance(found, int)
    return found


def test_an_entity_is_blocked_behind_its_dead_letter_until_that_is_redriven(scene: Scene) -> None:
    """Whoever owns the partition meanwhile; other entities go on, and then all comes in order."""
    with subscribers(0, failing_share=1.0) as there:
        url = f"http://127.0.0.1:{there.port}/failing"
        endpoint_id = asyncio.run(add_endpoint(scene.settings, url, ordering="per_entity", after_dead_letter="block"))
        entity, waits = uuid4(), f"delivery_waits WHERE endpoint_id = '{endpoint_id}'"
        first, *later = [queued(endpoint_id, offset, entity_id=entity) for offset in range(1, 5)]
        other = queued(endpoint_id, 5)
        deliverer = scene.deliverer()
        send(scene, first, *later[:2])
        dead = f"{waits} AND record IS NULL AND due_at = 'infinity'"
        wait_until(lambda: count(scene, dead) == 1, "the first one is dead")
        deliverer.kill()
        there.failing_share = 0.0
        deliverer = scene.deliverer()
        send(scene, later[2])
        wait_until(lambda: count(scene, waits) == 4, "all wait behind it")
        deliverer.kill()
        deliverer = scene.deliverer()
        send(scene, other)
        wait_until(lambda: there.accepted, "another entity's is delivered")
        assert {delivery for _, delivery in there.came} == {str(first.delivery_id), str(other.delivery_id)}
        send(scene, msgspec.structs.replace(first, stream="redrive", hop=first_hop(1)))
        wait_until(lambda: len(there.accepted) == 5, "it is redriven, and the others follow")
        wait_until(lambda: count(scene, waits) == 0, "nothing waits any more")
        deliverer.kill()
    in_order = [other, first, *later]
    assert [delivery for _, delivery in there.accepted] == [str(each.delivery_id) for each in in_order]


def test_a_streak_goes_on_after_its_deliverer_is_killed(scene: Scene) -> None:
    """Failures of before count, and those who failed for long are disabled by the next deliverer."""
    policy = {"PLANT_DELIVERIES_DISABLE_AFTER_HOURS": "1", "PLANT_DELIVERIES_DISABLE_AFTER_ATTEMPTS": "4"}
    with subscribers(0, failing_share=1.0) as there:
        endpoint_id = asyncio.run(add_endpoint(scene.settings, f"http://127.0.0.1:{there.port}/failing"))
        streak, events = (
            f"{table} WHERE endpoint_id = '{endpoint_id}'" for table in ("endpoint_streaks", "endpoint_events")
        )
        # Behind the events of the test before: in one partition a record that is not would be taken for a copy. All are
        # in their last attempt: with retries to come the streak would grow on until the kill, and after it.
        *failing, late = [queued(endpoint_id, offset, attempt=LAST_ATTEMPT) for offset in range(10, 15)]
        deliverer = scene.deliverer(**policy)
        send(scene, *failing[:2])
        wait_until(lambda: count(scene, f"{streak} AND attempts = 2"), "two attempts have failed")
        deliverer.kill()
        assert count(scene, events) == 0
        moved = f"UPDATE endpoint_streaks SET began_at = now() - interval '2 hours' WHERE endpoint_id = '{endpoint_id}'"
        assert scene.query(f"{moved} RETURNING attempts") == [(2,)]
        deliverer = scene.deliverer(**policy)
        send(scene, *failing[2:])
        wait_until(lambda: count(scene, f"{events} AND type = 'plant.endpoint.disabled'"), "it is disabled")
        send(scene, late)
        cancelled = f"webhook_deliveries WHERE id = '{late.delivery_id}' AND state = 'cancelled'"
        wait_until(lambda: count(scene, cancelled), "what comes later is cancelled")
        deliverer.kill()
    assert {delivery for _, delivery in there.came} == {str(each.delivery_id) for each in failing}
    assert count(scene, f"{events} AND type = 'plant.endpoint.warned'") == 4
