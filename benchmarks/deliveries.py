"""Deliveries: a deliverer that works off a full topic, next to a bare client that signs and sends the same.

What counts is what healthy endpoints accept: from the first to the last of it. Where some are sick that is compared
with the rate where all are good, and with what the same endpoints had of it. Each rate is the middle one of some turns,
the client's and each shape's one after the other. Then deliveries come at half of the full rate, and each one's time
from the topic to its subscriber is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import aiohttp
import uvloop

from benchmarks.delivering import (
    DATA,
    LOCAL,
    SECRET,
    Receiver,
    add_endpoints,
    deliverer,
    make_topics,
    new_generation,
    publish_records,
    queued_deliveries,
    receiver,
    wait_until_received,
)
from benchmarks.stage import Stage, clean_database, tree_cpu_seconds
from deliveries.endpoints import EndpointId
from deliveries.signed_request import EndpointKeys, OutgoingEvent, sign_attempt
from devstack.stack import Stack
from schemas import codec
from schemas.delivery_records import DELIVERIES_TOPIC
from streams.producer import EventProducer

DELIVERIES = 40_000
MANY_DELIVERIES = 120_000
"""To 10,000 endpoints: with twelve each most of them come once breakers have opened, with four before that."""
CLIENT_SENDS = 20_000
CONCURRENCY = 64
ENDPOINTS = 200
MANY_ENDPOINTS = 10_000
TIMEOUT_SECONDS = 300.0
HALF_RATE_SECONDS = 10
GOLDEN_RATIO = 0.6180339887
"""Its multiples, without their whole part, lie evenly between 0 and 1: sick endpoints are spread among the healthy."""
TICKS_PER_SECOND = 50
TURNS = 3


@dataclass(frozen=True)
class Shape:
    """How many endpoints there are, what share of them fails, or hangs, and how many deliverers serve them."""

    name: str
    endpoints: int
    failing: float = 0.0
    hanging: float = 0.0
    deliverers: int = 1
    deliveries: int = DELIVERIES

    @property
    def healthy_share(self) -> float:
        """The share of the endpoints that accept: what they get where all do."""
        return sum(self.path(index) == "good" for index in range(self.endpoints)) / self.endpoints

    def path(self, index: int) -> str:
        """Return the path of an endpoint, which says what it does."""
        share = index * GOLDEN_RATIO % 1
        return "failing" if share < self.failing else "hanging" if share < self.failing + self.hanging else "good"


ALL_GOOD = Shape("200 endpoints, all good", ENDPOINTS)
SICK = Shape("a tenth hangs and a tenth fails", ENDPOINTS, failing=0.1, hanging=0.1)
SHAPES = (
    ALL_GOOD,
    Shape("a hundredth of the endpoints fails", ENDPOINTS, failing=0.01),
    Shape("a tenth of the endpoints fails", ENDPOINTS, failing=0.1),
    SICK,
    Shape("one endpoint takes everything", 1),
    Shape("200 endpoints, all good, two deliverers", ENDPOINTS, deliverers=2),
)
MANY = (
    Shape("10,000 endpoints, all good", MANY_ENDPOINTS, deliveries=MANY_DELIVERIES),
    Shape(
        "10,000 endpoints, a tenth hangs and a tenth fails",
        MANY_ENDPOINTS,
        failing=0.1,
        hanging=0.1,
        deliveries=MANY_DELIVERIES,
    ),
)


def run(stack: Stack) -> list[dict[str, object]]:
    """The bare client, then each shape, on topics and a database of its own; then two shapes at half of the rate."""
    with receiver() as there:
        bare, rates, cores = list[float](), dict[str, list[float]](), dict[str, dict[str, float]]()
        for number in range(TURNS):
            bare.append(uvloop.run(_send_bare(there)))
            in_turn = [*SHAPES, *MANY][:: -1 if number % 2 else 1]  # some machines are faster after a rest
            for shape in in_turn:
                rate, cores[shape.name] = _full_rate(stack, shape, there)
                rates.setdefault(shape.name, []).append(rate)
        rows: list[dict[str, object]] = [_rate_row("bare client that signs", bare)]
        for shapes in (SHAPES, MANY):
            good = statistics.median(rates[shapes[0].name])
            for shape in shapes:
                rate = statistics.median(rates[shape.name])
                rows.append(
                    _rate_row(shape.name, rates[shape.name])
                    | {
                        "percent_of_bare": round(100 * rate / statistics.median(bare)),
                        "percent_of_all_good": round(100 * rate / good),
                        "percent_of_their_own": round(100 * rate / (good * shape.healthy_share)),
                        "cores_used": cores[shape.name],
                    }
                )
        half = int(float(str(rows[1]["deliveries_per_second"])) / 2)
        return [*rows, *_at_half_rate(stack, there, half)]


def _rate_row(name: str, rates: list[float]) -> dict[str, object]:
    """Return the row of a rate, with those of its turns."""
    return {
        "name": name, "deliveries_per_second": round(statistics.median(rates)),
        "deliveries_per_second_of_turns": [round(rate) for rate in rates],
    }  # fmt: skip


async def _send_bare(there: Receiver) -> float:
    """Return the requests a second of aiohttp alone that signs, over as many connections as there are turns."""
    left = iter(range(CLIENT_SENDS))
    keys = EndpointKeys(secrets=(SECRET,))
    event = OutgoingEvent(
        id=str(uuid4()), type="genesis.agent.available", source="bench", occurred_at=datetime.now(UTC), data=DATA
    )

    async def turn(session: aiohttp.ClientSession) -> None:
        for _ in left:
            request = sign_attempt(event, "standard", keys, delivery_id=str(uuid4()), now=datetime.now(UTC))
            async with session.post(there.url("good"), data=request.body, headers=request.headers) as response:
                await response.read()

    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:
        await asyncio.gather(*(turn(session) for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - started
    there.take_received()
    return CLIENT_SENDS / seconds


def _full_rate(stack: Stack, shape: Shape, there: Receiver) -> tuple[float, dict[str, float]]:
    """Return what healthy endpoints accept a second of a full topic, and the cores that were busy meanwhile."""
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        endpoint_ids = asyncio.run(_prepare(stage, shape, there, generation))
        healthy = sum(shape.path(number % shape.endpoints) == "good" for number in range(shape.deliveries))
        records = queued_deliveries(endpoint_ids, 0, shape.deliveries)
        asyncio.run(publish_records(stage, DELIVERIES_TOPIC + generation, records))
        with contextlib.ExitStack() as running:
            processes = [running.enter_context(deliverer(stage, generation)) for _ in range(shape.deliverers)]

            def cpu() -> dict[str, float]:
                return stage.cpu_seconds() | {"deliverers": sum(tree_cpu_seconds(each.pid) for each in processes)}

            first = wait_until_received(there, 1, TIMEOUT_SECONDS)
            started, before = time.monotonic(), cpu()
            accepted = wait_until_received(there, healthy, TIMEOUT_SECONDS, first)
            seconds, after = time.monotonic() - started, cpu()
    times = sorted(accepted.values())
    cores = {part: round((spent - before[part]) / seconds, 2) for part, spent in after.items()}
    return len(times) / (times[-1] - times[0]), cores


def _at_half_rate(stack: Stack, there: Receiver, rate: int) -> list[dict[str, object]]:
    """Return the delays of healthy endpoints' deliveries where all are good, and where some hang and some fail."""
    rows: list[dict[str, object]] = []
    for shape in (ALL_GOOD, SICK):
        delays = sorted(_delays(stack, shape, there, rate))
        rows.append(
            {
                "name": f"{shape.name}: at {rate}/s",
                "p50_ms": round(statistics.median(delays) * 1000, 1),
                "p99_ms": round(delays[int(len(delays) * 0.99)] * 1000, 1),
            }
        )
    rows[1]["p99_times_all_good"] = round(float(str(rows[1]["p99_ms"])) / float(str(rows[0]["p99_ms"])), 2)
    return rows


def _delays(stack: Stack, shape: Shape, there: Receiver, rate: int) -> list[float]:
    """Return the seconds from the topic to a healthy endpoint, without those of the first fifth."""
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        endpoint_ids = asyncio.run(_prepare(stage, shape, there, generation))
        healthy = {each for index, each in enumerate(endpoint_ids) if shape.path(index) == "good"}
        with deliverer(stage, generation):
            asyncio.run(_publish_steadily(stage, generation, endpoint_ids, range(len(endpoint_ids)), rate))
            wait_until_received(there, len(healthy), TIMEOUT_SECONDS)
            numbers = range(len(endpoint_ids), len(endpoint_ids) + rate * HALF_RATE_SECONDS)
            queued = asyncio.run(_publish_steadily(stage, generation, endpoint_ids, numbers, rate))
            due = {message_id: at for message_id, (at, endpoint_id) in queued.items() if endpoint_id in healthy}
            accepted = wait_until_received(there, len(due), TIMEOUT_SECONDS)
    in_order = sorted(due, key=due.__getitem__)
    return [accepted[message_id] - due[message_id] for message_id in in_order[len(in_order) // 5 :]]


async def _publish_steadily(
    stage: Stage, generation: str, endpoint_ids: list[EndpointId], numbers: range, rate: int
) -> dict[str, tuple[float, EndpointId]]:
    """Queue deliveries at a rate; return when each was handed to the producer, by its id, and its endpoint."""
    topic = DELIVERIES_TOPIC + generation
    queued: dict[str, tuple[float, EndpointId]] = {}
    publishes = []
    async with EventProducer(stage.settings, topics=(topic,)) as producer:
        started = time.monotonic()
        for index, each in enumerate(queued_deliveries(endpoint_ids, numbers.start, numbers.stop)):
            due = started + index // (rate / TICKS_PER_SECOND) / TICKS_PER_SECOND
            if (wait_seconds := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_seconds)
            queued[str(each.delivery_id)] = time.monotonic(), each.endpoint_id
            key = str(each.endpoint_id).encode()
            publishes.append(producer.submit_record(topic, key, codec.encode_checked(each), []))
        await producer.await_each(publishes)
    return queued


async def _prepare(stage: Stage, shape: Shape, there: Receiver, generation: str) -> list[EndpointId]:
    there.take_received()
    await make_topics(stage, generation)
    return await add_endpoints(stage, [there.url(shape.path(index)) for index in range(shape.endpoints)])
