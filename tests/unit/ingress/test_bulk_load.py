"""Bulk loads while their lines are published: how a body is cut into lines, and what stops a load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.bulk_load import CHUNK_MAX_BYTES, BodyLines, BulkLoad, Line
from ingress.producers import ProducerPolicy
from ingress.publishing import IngressPublisher
from runtime.clock import FixedClock
from server.problems import Problem
from streams.errors import KafkaUnavailable, Overloaded
from tests.support.asgi_peers import Answered, peer
from tests.support.scripted_producer import ScriptedProducer

POLICY = ProducerPolicy(name="genesis", event_types=None, rate_per_second=10, burst=1_000, disabled=False)
LINE_MAX_BYTES = 1_000


def event() -> bytes:
    """A rating as a line."""
    data = {"agent_id": str(uuid4()), "rater_id": str(uuid4()), "rating": 4}
    attributes = {"specversion": "1.0", "source": "urn:test", "time": "2026-11-23T08:00:00Z"}
    return json.dumps({"id": uuid4().hex, "type": "genesis.agent.rated", "data": data, **attributes}).encode()


def taken(body: bytes, count: int = 2, line_max_bytes: int = 5) -> list[Line]:
    """Every line of a body."""
    lines, found = BodyLines(body, line_max_bytes), []
    while not lines.at_end():
        found += lines.take(count)
    return found


def test_a_body_is_cut_into_lines() -> None:
    """Blank lines are left out, the last line needs no newline, and a long one is cut one byte after the limit."""
    body = b"a\r\n\n  \nbb\n" + b"c" * 9 + b"\n" + b"d" * 6 + b"\ne"
    assert taken(body) == [(1, b"a\r"), (4, b"bb"), (5, b"c" * 6), (6, b"d" * 6), (7, b"e")]
    assert taken(b"") == taken(b"\n\n") == taken(b" \n\t") == []


@given(st.text("ab \t\r\n", max_size=30), st.integers(1, 4))
def test_lines_are_those_of_the_body(text: str, count: int) -> None:
    """Numbers and contents are what splitting at newlines gives, however many are taken at a time."""
    split = enumerate(text.encode().split(b"\n"), 1)
    assert taken(text.encode(), count, 100) == [(number, line) for number, line in split if line.strip()]


@pytest.mark.parametrize(
    ("part", "mib"), [(b"\n", 8), (b" ", 8), (b"\r\n", 8), (b"x", 8), (b"{}\n", 1), (b"{}\n\n", 1)]
)
def test_no_step_over_a_large_body_is_long(part: bytes, mib: int) -> None:
    """Megabytes of newlines, of one line, of short lines: each step takes less than 50 ms of the loop's time."""
    lines, longest = BodyLines(part * (mib * 1024 * 1024 // len(part)), 256 * 1024), 0.0
    while not lines.at_end():
        before = time.thread_time()
        chunk = lines.take(250)
        longest = max(longest, time.thread_time() - before)
        assert sum(len(line.content) for line in chunk) <= CHUNK_MAX_BYTES + 256 * 1024 + 1
    assert longest < 0.05


class Scene:
    """A load on a producer whose outcomes are scripted."""

    def __init__(self) -> None:
        self.clock = FixedClock(datetime(2026, 11, 23, tzinfo=UTC))
        self.producer = ScriptedProducer()
        self.publisher = IngressPublisher(self.producer, self.clock)
        self.current_policy: Callable[[], ProducerPolicy] = lambda: POLICY
        self.refused: list[tuple[int, Problem]] = []
        self.stop_reason: Callable[[], Problem | None] = lambda: None

    async def load(self, body: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Run a load; its result lines and its last line."""
        answered = Answered()
        load = BulkLoad(
            self.publisher, lambda: self.current_policy(), lambda: self.stop_reason(), self.refused.extend, None,
            line_max_bytes=LINE_MAX_BYTES,
        )  # fmt: skip
        await load.answer(body, peer(), answered)
        assert answered.status == 200
        *results, last = [msgspec.json.decode(line) for line in answered.body.splitlines()]
        return results, last

    def tokens(self) -> float:
        """Events that the producer may send before its rate counts."""
        self.publisher.wait_seconds(POLICY)
        return self.publisher._rates._buckets["genesis"].tokens


async def test_a_load_that_may_not_go_on_stops_between_chunks() -> None:
    """A revoked key after the second chunk: what was submitted is answered, and the rest is named by its line."""
    scene, asked = Scene(), 0

    def current_policy() -> ProducerPolicy:
        nonlocal asked
        asked += 1
        if len(scene.producer.submitted) >= 20:
            raise Problem("signature", "The key was revoked or has expired.")
        return POLICY

    scene.current_policy = current_policy
    body = b"\n".join([b"", *(event() for _ in range(95))])
    results, last = await scene.load(body)
    assert len(results) == len(scene.producer.submitted) == last["accepted"] == 20
    assert (last["complete"], last["next_line"], last["problem"]["status"]) == (False, 22, 401)
    scene.current_policy = lambda: POLICY
    rest = b"\n".join(body.split(b"\n")[last["next_line"] - 1 :])
    _, last = await scene.load(rest)
    assert last == {"accepted": 75, "refused": 0, "complete": True}
    assert scene.tokens() == POLICY.burst - 95


async def test_a_disabled_producer_stops_while_kafka_has_no_room() -> None:
    """A load that waits for room looks at its policy too, and pays for nothing that was not submitted."""
    scene = Scene()
    scene.producer.script.extend([None, *[Overloaded()] * 1_000])

    def current_policy() -> ProducerPolicy:
        if scene.producer.submitted:
            raise Problem("forbidden", "This producer is disabled.")
        return POLICY

    scene.current_policy = current_policy
    results, last = await scene.load(b"\n".join(event() for _ in range(8)))
    assert (len(results), last["next_line"], last["problem"]["status"]) == (1, 2, 403)
    assert scene.tokens() == POLICY.burst - 1


async def test_a_changed_policy_holds_for_the_lines_that_follow() -> None:
    """Event types that are taken away in the middle of a load are refused from the next chunk on."""
    scene = Scene()
    narrow = msgspec.structs.replace(POLICY, event_types=frozenset({"genesis.skill.validated"}))
    scene.current_policy = lambda: narrow if len(scene.producer.submitted) >= 10 else POLICY
    results, last = await scene.load(b"\n".join(event() for _ in range(30)))
    assert last == {"accepted": 10, "refused": 20, "complete": True}
    assert {result["problem"]["status"] for result in results[10:]} == {403}
    assert [number for number, _ in scene.refused] == list(range(11, 31))


async def test_a_load_that_is_sent_again_pays_once() -> None:
    """The first line that Kafka did not take is the one to go on from; the whole again costs what was not stored."""
    scene = Scene()
    scene.producer.refused.extend([None, None, KafkaUnavailable(), None])
    body = b"\n".join(event() for _ in range(4))
    _, last = await scene.load(body)
    assert (last["accepted"], last["refused"], last["next_line"]) == (3, 1, 3)
    assert scene.tokens() == POLICY.burst - 3
    results, last = await scene.load(body)
    assert last == {"accepted": 4, "refused": 0, "complete": True}
    assert len({result["offset"] for result in results}) == 4
    assert scene.tokens() == POLICY.burst - 4


async def test_a_reason_of_the_process_stops_a_load() -> None:
    """Its end, or the longest time of a load; the earliest line without a result is named."""
    scene = Scene()
    scene.stop_reason = lambda: Problem("starting") if len(scene.producer.submitted) >= 10 else None
    _, last = await scene.load(b"\n".join(event() for _ in range(30)))
    assert (last["accepted"], last["next_line"], last["problem"]["status"]) == (10, 11, 503)
