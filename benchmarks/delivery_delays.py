"""How late deliveries are: from HTTP 200 to the subscriber, and retries after the time at which they are due."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.delivering import (
    LOCAL,
    PARTITIONS,
    Receiver,
    add_endpoints,
    delays_ms,
    deliverer,
    make_topics,
    new_generation,
    publish_records,
    queued_deliveries,
    receiver,
    wait_until_received,
)
from benchmarks.ingress import add_key, revoke_key, wait_ready
from benchmarks.latency import WARMING, ShownEvent, send_and_watch, without_warm_up
from benchmarks.stage import Stage, clean_database, process
from deliveries.endpoints import EndpointId
from devstack.stack import Stack
from schemas import codec
from schemas.delivery_records import DeliveryQueued
from signing.hmac_secrets import new_secret
from streams import topics
from streams.partitioning import partition_of
from streams.topics import RETRY_TOPICS
from tests.support.waiting import wait_until

RATE = 200
WARMING_RATES = (1_000, 1_000, 1_000)
"""A broker that was just started compiles its code: for minutes, where requests are few, with a quarter of a core."""
PENDING = 10_000
ENDPOINTS = 200
DUE_OVER = timedelta(seconds=16)
"""The time over which what is pending falls due."""
BEFORE_DUE = timedelta(seconds=20)
OVERDUE_SHARE = 0.25
"""What falls due, about, from the end of one deliverer to the moment in which the next one owns all."""
TIMEOUT_SECONDS = 180.0
OWNED = "SELECT count(*)::bigint AS n FROM delivery_owners WHERE consumer = 'deliverer' AND token > {token}"
TOKEN = "SELECT coalesce(max(token), 0)::bigint AS n FROM delivery_owners"


def run(stack: Stack) -> list[dict[str, object]]:
    """Events to their subscriber; then retries that wait in a topic, in Postgres, and across a restart."""
    stack.down(delete_data=True)  # deliveries of other benchmarks' topics are of other databases
    stack.up()
    with receiver() as there:
        return [
            _from_ingress(stack, there),
            _retries(stack, there, "a retry topic", in_topic=True),
            _retries(stack, there, "Postgres", in_topic=False),
            _retries(stack, there, "a retry topic, the deliverer started again", in_topic=True, restarts=True),
        ]


def _from_ingress(stack: Stack, there: Receiver) -> dict[str, object]:
    """Return the delays from HTTP 200 to the subscriber, and to the visible row in the same run."""
    with clean_database(stack, **LOCAL) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        secret, ready = new_secret(), Path(folder) / "ready.json"
        key_id = asyncio.run(add_key(stage.settings, secret))
        (endpoint_id,) = asyncio.run(add_endpoints(stage, [there.url("good")]))
        try:
            with (
                process(stage, "-m", "benchmarks.variant", "five models"),
                process(stage, "-m", "operations", "dispatcher"),
                process(stage, "-m", "operations", "deliverer"),
                process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)),
            ):
                target = wait_ready(ready), secret, stage.settings.database_api_url
                for rate in (*WARMING_RATES, RATE):  # until all services are up, and have nothing to do
                    warm_up = asyncio.run(send_and_watch(*target, rate))
                    wait_until_received(there, len(warm_up) + WARMING, TIMEOUT_SECONDS)
                shown = asyncio.run(send_and_watch(*target, RATE))
                accepted = wait_until_received(there, len(shown) + WARMING, TIMEOUT_SECONDS)
        finally:
            asyncio.run(revoke_key(stage.settings, key_id))
    return _delays_row(without_warm_up(shown), endpoint_id, accepted)


def _delays_row(shown: Sequence[ShownEvent], endpoint_id: EndpointId, accepted: dict[str, float]) -> dict[str, object]:
    visible = sorted((event.visible_at - event.answered_at) * 1000 for event in shown)
    received = delays_ms({event.event_id: event.answered_at for event in shown}, accepted, endpoint_id)
    row: dict[str, object] = {"name": f"HTTP 200 to receipt at {RATE}/s"}
    for name, delays in (("receipt", received), ("row", visible)):
        row[f"{name}_p50_ms"] = round(statistics.median(delays), 1)
        row[f"{name}_p99_ms"] = round(delays[int(len(delays) * 0.99)], 1)
    row["p50_more_ms"] = round(statistics.median(received) - statistics.median(visible), 1)
    row["p99_more_ms"] = round(received[int(len(received) * 0.99)] - visible[int(len(visible) * 0.99)], 1)
    return row


def _retries(stack: Stack, there: Receiver, where: str, *, in_topic: bool, restarts: bool = False) -> dict[str, object]:
    """Return how late retries are, of which many are pending: after their time, or the one at which all is owned.

    Where the deliverer is started again, some of them fall due while none runs. Raises RuntimeError where none did.
    """
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        there.take_received()
        asyncio.run(make_topics(stage, generation))
        endpoint_ids = asyncio.run(add_endpoints(stage, [there.url("good")] * ENDPOINTS))
        row: dict[str, object] = {"name": f"lateness of retries in {where}", "pending": PENDING}
        due = _fill(stage, endpoint_ids, generation, in_topic=in_topic)
        if restarts:
            with deliverer(stage, generation) as first:
                _wait_until_owned(stage, 0)
                _wait_to_kill(stage, due)
                first.kill()
        token, began_at = stage.number(TOKEN), time.monotonic()
        with deliverer(stage, generation):
            ready_at = _wait_until_owned(stage, token)
            row["seconds_until_ready"] = round(ready_at - began_at, 1)
            row["overdue_when_ready"] = overdue = sum(at < ready_at for at in due.values())
            if restarts and not overdue:
                raise RuntimeError("nothing fell due while no deliverer ran: the next one was ready too early")
            accepted = wait_until_received(there, PENDING, TIMEOUT_SECONDS)
    late = sorted((accepted[each] - max(at, ready_at)) * 1000 for each, at in due.items())
    if min(accepted[each] - at for each, at in due.items()) < 0:
        raise RuntimeError("a retry was made before its time")
    row["p50_ms"], row["p99_ms"] = round(statistics.median(late), 1), round(late[int(len(late) * 0.99)], 1)
    return row


def _wait_to_kill(stage: Stage, due: Mapping[str, float]) -> None:
    """Return so late that a part of the retries is overdue once the group has given up who was killed."""
    first = min(due.values())
    wanted = first + OVERDUE_SHARE * DUE_OVER.total_seconds() - stage.settings.worker_session_timeout_seconds
    if time.monotonic() > first:
        raise RuntimeError("retries fell due before the deliverer owned all: too slow to measure")
    time.sleep(max(0.0, min(first, wanted) - time.monotonic()))


def _fill(stage: Stage, endpoint_ids: list[EndpointId], generation: str, *, in_topic: bool) -> dict[str, float]:
    """Have deliveries wait for their second attempt; return when each is due, by the monotonic clock."""
    first, started = datetime.now(UTC) + BEFORE_DUE, time.monotonic()
    waiting = [
        msgspec.structs.replace(each, attempt=2, hop=1, due_at=first + number * DUE_OVER / PENDING)
        for number, each in enumerate(queued_deliveries(endpoint_ids, 0, PENDING))
    ]
    values = ", ".join(_row(each, in_topic) for each in waiting)
    stage.execute(
        "INSERT INTO delivery_waits (delivery_id, partition, endpoint_id, hop, due_at, record, source_partition,"
        f" source_offset, source_rank) VALUES {values}"
    )
    if in_topic:
        asyncio.run(publish_records(stage, RETRY_TOPICS[-1] + generation, waiting))
    filled_at = datetime.now(UTC)
    if filled_at > first:
        raise RuntimeError(
            f"filling took {(filled_at - first + BEFORE_DUE).total_seconds():.1f} s: too slow to measure"
        )
    zero = started + BEFORE_DUE.total_seconds()
    return {
        str(each.delivery_id): zero + number * DUE_OVER.total_seconds() / PENDING for number, each in enumerate(waiting)
    }


def _row(queued: DeliveryQueued, in_topic: bool) -> str:
    assert queued.due_at is not None
    partition = partition_of(str(queued.endpoint_id).encode(), PARTITIONS)
    record = "NULL" if in_topic else f"'\\x{codec.encode_checked(queued).hex()}'::bytea"
    return (
        f"('{queued.delivery_id}', {partition}, '{queued.endpoint_id}', {queued.hop}, '{queued.due_at.isoformat()}',"
        f" {record}, {queued.source_partition}, {queued.source_offset}, {queued.source_rank})"
    )


def _wait_until_owned(stage: Stage, token: int) -> float:
    """Return when every partition had an owner with a later token."""
    owned = OWNED.format(token=token)
    wait_until(lambda: stage.number(owned) == PARTITIONS, "every partition has an owner", TIMEOUT_SECONDS)
    return time.monotonic()
