"""kill -9 of dispatcher, deliverer, broker and database, and a frozen deliverer, while events are being delivered.

`PLANT_FAULT_ROUNDS` (1) says how many times each is killed, `PLANT_FAULT_SEED` where and in what order; both are
printed, and for each harm the counts before and after, what was in flight, and what was sent again.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest

from deliveries.deliverer.delivery_process import DelivererLimits
from deliveries.endpoints import EndpointId, new_endpoint_id
from devstack.stack import Stack
from streams.partitioning import partition_of
from tests.support.delivering import LAST_ATTEMPT, add_endpoint
from tests.support.faults.attempts_in_flight import AttemptsInFlight, Harm
from tests.support.faults.delivery_evidence import (
    DeliveryCounts,
    attempt_records,
    count_deliveries,
    dead_deliveries,
    dead_letters,
    note_ownerships,
    noted_ownerships,
)
from tests.support.faults.evidence import wait_until_caught_up
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.faults.subscribers import Subscribers, subscribers
from tests.support.faults.webhook_load import WebhookLoad
from tests.support.waiting import wait_until
from tests.support.webhooks import add_key

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
AFTER_SECONDS = (0.2, 2.5)
PATHS = ("/good", "/failing", "/refusing")
LAST_LINES = 20
COLUMNS = {"applied": 14, "accepted": 14, "delivered": 14, "waiting": 12, "dead": 9}
"""Counts before and after a harm, and how wide each column is."""
FROZEN_SECONDS = 12.0
"""Longer than a group waits for a member: the other deliverer takes over meanwhile."""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("delivery-kills")) as made:
        note_ownerships(made)
        yield made


class Deliveries:
    """A worker, a dispatcher and two deliverers, some of which are killed and started again."""

    def __init__(self, scene: Scene, stack: Stack) -> None:
        self.scene = scene
        self.stack = stack
        self.worker: Process = scene.worker()
        self.dispatcher = scene.dispatcher()
        self.deliverers = [scene.deliverer(), scene.deliverer()]

    def supervise(self) -> None:
        """Start again what has ended by itself: a deliverer that finds no broker as it starts says so, and ends."""
        if not self.dispatcher.alive:
            self.dispatcher = self.scene.dispatcher()
        self.deliverers = [each if each.alive else self.scene.deliverer() for each in self.deliverers]

    def wait_until(self, condition: Callable[[], bool], what: str, there: Subscribers) -> None:
        """Wait for a condition while what has ended is started again."""

        def is_so() -> bool:
            self.supervise()
            return condition()

        wait_until(is_so, lambda: f"{what}: {state(self.scene, there)}")

    def harm(self, part: str, chance: random.Random) -> Harm:
        """Kill a part and start it again at once, or freeze a deliverer for a while."""
        which = chance.randrange(2)
        pid, began_at = self.deliverers[which].pid, time.time()
        match part:
            case "dispatcher":
                self.dispatcher.kill()
                self.dispatcher = self.scene.dispatcher()
                return Harm(part, began_at, ends_owners=False)
            case "deliverer":
                self.deliverers[which].kill()
                self.deliverers[which] = self.scene.deliverer()
                return Harm(part, began_at, pid)
            case "frozen deliverer":
                self.deliverers[which].freeze()
                threading.Event().wait(FROZEN_SECONDS)
                thawed_at = time.time()
                self.deliverers[which].thaw()
                return Harm(part, began_at, pid, thawed_at)
            case "kafka":
                self.stack.kill_kafka()
                self.stack.start_kafka()
            case "postgres":
                self.stack.kill_postgres()
                self.stack.start_postgres()
        return Harm(part, began_at)


class Sample(NamedTuple):
    """The counts of one moment, and how many deliveries receivers had accepted a moment later."""

    counts: DeliveryCounts
    accepted: int

    def assert_follows(self, before: Sample) -> None:
        """Nothing that was applied, recorded or accepted is gone, and nothing is recorded that was not."""
        assert self.counts.applied >= before.counts.applied
        assert self.counts.recorded >= before.counts.recorded
        assert self.accepted >= before.accepted
        assert self.counts.recorded <= len(PATHS) * self.counts.applied
        assert self.counts.delivered <= self.accepted


class SampledHarm(NamedTuple):
    """A harm, and what was counted before it, and once deliveries had gone on."""

    harm: Harm
    before: Sample
    after: Sample


def test_every_applied_event_reaches_each_endpoint_whatever_is_killed(scene: Scene, private_stack: Stack) -> None:
    """Delivered or dead, none lost; what is repeated was in flight, and has the id of the delivery that it repeats."""
    _, sender = asyncio.run(add_key(scene.settings))
    with subscribers(SEED) as there:
        for partition, path in enumerate(PATHS):
            url = f"http://127.0.0.1:{there.port}{path}"
            asyncio.run(add_endpoint(scene.settings, url, endpoint_id=endpoint_in(scene, partition)))
        deliveries = Deliveries(scene, private_stack)
        _, port = scene.ingress()
        load = WebhookLoad(sender, port, seed=SEED)
        # It goes on to the end: with nothing to accept, a breaker would open on the last retries of what is refused.
        trickle = WebhookLoad(sender, port, connections=1, seed=SEED + 1)
        with trickle.running():
            # The first of what is refused is dead 16 s later: so deliveries die while parts are killed, and after it.
            deliveries.wait_until(lambda: max(there.came.values(), default=0) >= LAST_ATTEMPT - 1, "some fail", there)
            with load.running():
                harmed = harm_all(deliveries, there, random.Random(SEED))
            there.relent()
            refused = there.refused
            deliveries.wait_until(lambda: refused <= dead_deliveries(scene).keys(), "what is refused is dead", there)
        wait_until_caught_up(scene)
        deliveries.wait_until(lambda: undone(scene) == 0, "all is delivered or dead", there)
    harms = [each.harm for each in harmed]
    evidence = AttemptsInFlight(there.requests, attempt_records(scene), noted_ownerships(scene))
    print_harms(harmed, evidence)
    assert_all_arrived(scene, there, load.accepted_count + trickle.accepted_count)
    assert_repeated_were_in_flight(harms, evidence)
    assert_refused_are_dead(scene, there, evidence)
    for one, other in pairwise([sample for each in harmed for sample in (each.before, each.after)]):
        other.assert_follows(one)


def harm_all(deliveries: Deliveries, there: Subscribers, chance: random.Random) -> list[SampledHarm]:
    """Kill or freeze each part in random order, and wait each time until deliveries go on."""
    parts = ["dispatcher", "deliverer", "frozen deliverer", "kafka", "postgres"] * ROUNDS
    chance.shuffle(parts)
    harmed = []
    for part in parts:
        threading.Event().wait(chance.uniform(*AFTER_SECONDS))
        before = make_sample(deliveries.scene, there)
        harm = deliveries.harm(part, chance)
        accepted = there.accepted.total()
        deliveries.wait_until(partial(has_more, there, accepted), f"deliveries go on after {part}", there)
        harmed.append(SampledHarm(harm, before, make_sample(deliveries.scene, there)))
    return harmed


def has_more(there: Subscribers, accepted: int) -> bool:
    """Tell whether more was accepted by now."""
    return there.accepted.total() > accepted


def make_sample(scene: Scene, there: Subscribers) -> Sample:
    """Return the counts of now."""
    return Sample(count_deliveries(scene), len(there.accepted))


def endpoint_in(scene: Scene, partition: int) -> EndpointId:
    """Return an id whose deliveries are in a partition: each of the deliverers has something to do."""
    while True:
        endpoint_id = new_endpoint_id()
        if partition_of(str(endpoint_id).encode(), scene.settings.topic_partitions) == partition:
            return endpoint_id


def print_harms(harmed: Sequence[SampledHarm], evidence: AttemptsInFlight) -> None:
    """Print a line for each harm: counts before and after, what was in flight, what was lost by it, and repeated."""
    harms = [each.harm for each in harmed]
    lost, repeated = evidence.by_harm(evidence.lost, harms), evidence.by_harm(evidence.repeated, harms)
    print(f"seed {SEED}; in flight: sent, and without a record at that moment; lost: without one as the next owner of"
          f" its partition began; before the first harm {lost[0]} were lost and {repeated[0]} repeated")  # fmt: skip
    titles = " ".join(f"{title:>{width}}" for title, width in COLUMNS.items())
    print(f"{'harm':16} {titles} {'in flight':>9} {'lost':>5} {'repeated':>8}")
    for number, (harm, before, after) in enumerate(harmed, start=1):
        one, other = ((each.counts.applied, each.accepted, *each.counts[1:]) for each in (before, after))
        columns = " ".join(f"{f'{a} > {b}':>{width}}" for a, b, width in zip(one, other, COLUMNS.values(), strict=True))
        print(f"{harm.part:16} {columns} {evidence.in_flight_at(harm.began_at):>9} {lost[number]:>5}"
              f" {repeated[number]:>8}")  # fmt: skip
    print(f"in all {evidence.lost.total()} lost, {evidence.repeated.total()} repeated")


def assert_all_arrived(scene: Scene, there: Subscribers, events: int) -> None:
    """Each applied event came to each endpoint with one id, and was accepted there or is dead."""
    counts = count_deliveries(scene)
    accepted = {path: len(there.accepted_at(path)) for path in PATHS}
    # An attempt that a kill left unrecorded is repeated: what was accepted may be dead by its last one.
    dead_alone = dead_deliveries(scene).keys() - {delivery for _, delivery in there.accepted}
    again = there.accepted.total() - len(there.accepted)
    print(f"{events} events accepted, {counts.applied} applied; of their deliveries {counts.delivered}"
          f" delivered, {counts.dead} dead; accepted {accepted}, {len(dead_alone)} dead alone, {again} accepted a"
          f" second time, {there.came.total()} requests")  # fmt: skip
    assert counts.applied > 0
    assert {path: len(there.ids_at(path)) for path in PATHS} == dict.fromkeys(PATHS, counts.applied)
    assert sum(accepted.values()) + len(dead_alone) == len(PATHS) * counts.applied
    assert accepted["/good"] == counts.applied
    assert (counts.recorded, counts.waiting) == (len(PATHS) * counts.applied, 0)


def assert_refused_are_dead(scene: Scene, there: Subscribers, evidence: AttemptsInFlight) -> None:
    """What is refused for ever is dead after six attempts, and those that were in flight; it has a dead letter.

    A dead letter may be published again by the next owner, where the end of its delivery was not written down.
    """
    dead = dead_deliveries(scene)
    letters = Counter(dead_letters(scene))
    refused = there.refused
    came = {delivery: there.came["/refusing", delivery] for delivery in refused}
    print(f"{len(refused)} refused for ever: {len(refused & dead.keys())} are dead, with"
          f" {sum(letters[delivery] for delivery in refused)} dead letters, in {sum(came.values())} requests"
          f" ({len(dead)} dead in all, with {letters.total()} dead letters)")  # fmt: skip
    assert refused
    assert refused <= dead.keys() <= letters.keys()
    assert {dead[delivery] for delivery in refused} == {LAST_ATTEMPT}
    more = {each: count for each, count in came.items() if count > LAST_ATTEMPT + evidence.lost_of[each]}
    assert not more, f"{len(more)} deliveries came more often than attempts were made and lost: {more}"


def assert_repeated_were_in_flight(harms: Sequence[Harm], evidence: AttemptsInFlight) -> None:
    """An attempt that Kafka had a record of was never made again; what was lost is within the bound."""
    lost, repeated = evidence.by_harm(evidence.lost, harms), evidence.by_harm(evidence.repeated, harms)
    parts = ["start", *(harm.part for harm in harms)]
    more = [each for each in zip(parts, lost, repeated, strict=True) if each[1] < each[2]]
    assert not more, f"more was repeated than was without a record: {more}"
    twice = evidence.recorded_twice
    assert not twice, f"{len(twice)} attempts were made again though Kafka had their records: {twice[:3]}"
    assert max(evidence.lost.values(), default=0) <= DelivererLimits().unrecorded_max


def undone(scene: Scene) -> int:
    """How many deliveries are neither delivered nor dead, by what is recorded."""
    counts = count_deliveries(scene)
    return len(PATHS) * counts.applied - counts.delivered - counts.dead


def state(scene: Scene, there: Subscribers) -> str:
    """Return what waits, for what, and what each process has said last."""
    waits = scene.query(
        "SELECT partition, left(endpoint_id::text, 8) AS endpoint, hop, record IS NULL AS in_topic,"
        " due_at < now() AS overdue, count(*) AS n FROM delivery_waits GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    )
    said = "\n".join(
        f"{each.name} {'runs' if each.alive else 'has ended'}: "
        + " | ".join(each.log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:])
        for each in scene.processes
    )
    accepted = Counter(path for path, _ in list(there.accepted))
    return f"{count_deliveries(scene)}, {accepted} accepted; waits {waits}\n{said}"
