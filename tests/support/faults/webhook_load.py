"""A producer that keeps posting signed webhooks, remembers what was accepted, and sends the rest again."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import AVAILABLE, RATED, Sender, payload

ONBOARDED = "/webhook/genesis/agent-onboarded"
PAUSE_SECONDS = 0.05
THINK_SECONDS = 0.02
"""Between two webhooks of a connection: what is lost or doubled shows at a few hundred a second as at thousands."""


class WebhookLoad:
    """`connections` threads, a connection each. An id is sent again, unchanged, until its 200 has come.

    `accepted` maps event ids to the answered position; `answers` counts statuses, and `broken` connections that gave
    no answer; `retry_after` holds what 503s said. Nothing but a 200 is taken for success.
    """

    def __init__(self, sender: Sender, port: int, *, connections: int = 8, agents: int = 60, seed: int = 1) -> None:
        self.port = port
        self.accepted: dict[str, tuple[int, int]] = {}
        self.answers: Counter[str] = Counter()
        self.retry_after: set[str | None] = set()
        self._sender = sender
        self._stopping = threading.Event()
        self._gave_up = threading.Event()
        chance = random.Random(seed)
        self._agents = [str(UUID(int=chance.getrandbits(128))) for _ in range(agents)]
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._run, args=(random.Random(seed * 1000 + number), f"{seed}-{number}"), daemon=True
            )
            for number in range(connections)
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Post until the block ends, then wait until each id under way has its 200."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
        self._finish()

    def _finish(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = sum(thread.is_alive() for thread in self._threads)
        self._gave_up.set()
        assert late == 0, f"{late} webhooks have no 200: {self.answers}"

    @property
    def accepted_count(self) -> int:
        return len(self.accepted)

    def _run(self, chance: random.Random, name: str) -> None:
        connection: http.client.HTTPConnection | None = None
        number = 0
        while not self._stopping.is_set():
            number += 1
            path, body = self._event(chance, number)
            status = 0
            while status != 200 and not self._gave_up.is_set():
                connection, status = self._post(connection, path, body, f"msg_{name}_{number}")
                if status != 200:
                    self._gave_up.wait(PAUSE_SECONDS)
            self._stopping.wait(THINK_SECONDS)
        if connection is not None:
            connection.close()

    def _post(
        self, connection: http.client.HTTPConnection | None, path: str, body: bytes, message_id: str
    ) -> tuple[http.client.HTTPConnection | None, int]:
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request("POST", path, body, self._sender.headers(body, message_id=message_id))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            with self._lock:
                self.answers["broken"] += 1
            return None, 0
        with self._lock:
            self.answers[str(response.status)] += 1
            if response.status == 200:
                answer = json.loads(content)
                self.accepted[answer["event_id"]] = (answer["partition"], answer["offset"])
            elif response.status == 503:
                self.retry_after.add(response.getheader("retry-after"))
        return connection, response.status

    def _event(self, chance: random.Random, number: int) -> tuple[str, bytes]:
        agent_id = chance.choice(self._agents)
        kind = chance.random()
        if kind < 0.4:
            skills = [str(UUID(int=chance.getrandbits(128))) for _ in range(2)]
            return ONBOARDED, payload({"agent_id": agent_id, "name": f"agent {number}", "skill_ids": skills})
        if kind < 0.8:
            return AVAILABLE, payload({"agent_id": agent_id, "available": kind < 0.6})
        return RATED, payload({"agent_id": agent_id, "rater_id": self._agents[0], "rating": 1 + number % 5})
