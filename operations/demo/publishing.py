"""Publishing over HTTP: signed, bounded concurrency, and sent again with the same id where the answer says so."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from operations.demo.errors import DemoFailed
from operations.demo.messages import Message
from signing.signatures import sign
from streams.record_position import RecordPosition

CONCURRENCY: Final = 32
TIMEOUT_SECONDS: Final = 15.0
ATTEMPTS_MAX: Final = 6
PAUSE_MAX_SECONDS: Final = 5.0


class DemoTally:
    """What has been acknowledged, by event type and by record position."""

    def __init__(self) -> None:
        self.by_type: Counter[str] = Counter()
        self._offsets: dict[int, list[int]] = {}

    @property
    def published(self) -> int:
        return self.by_type.total()

    @property
    def first_offsets(self) -> dict[int, int]:
        """The first offset of this run in each partition that it wrote to."""
        return {partition: offsets[0] for partition, offsets in self._offsets.items()}

    def add(self, event_type: str, partition: int, offset: int) -> None:
        self.by_type[event_type] += 1
        insort(self._offsets.setdefault(partition, []), offset)

    def below(self, next_offsets: Mapping[int, int]) -> int:
        """Count this run's records below these checkpoints.

        >>> tally = DemoTally()
        >>> tally.add("t", 0, 7), tally.add("t", 0, 9), tally.add("t", 1, 2)
        (None, None, None)
        >>> tally.below({0: 9, 1: 0})
        1
        """
        return sum(bisect_left(offsets, next_offsets.get(partition, 0)) for partition, offsets in self._offsets.items())


class DemoPublisher:
    """Sends messages to one ingress, signed with one producer's secret. `alive` raises when there is no point left."""

    def __init__(self, url: str, secret: bytes, tally: DemoTally, alive: Callable[[], None]) -> None:
        self._secret = secret
        self._tally = tally
        self._alive = alive
        # Not through a proxy, whatever the environment says: ingress is on this machine.
        self._client = aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
            timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
            trust_env=False,
        )

    async def publish(self, messages: Iterable[Message]) -> None:
        """Send all of them; returns when each has been acknowledged. Raises DemoFailed."""
        shared = iter(messages)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(self._send_each(shared))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _send_each(self, messages: Iterator[Message]) -> None:
        for message in messages:
            await self.send(message)

    async def send(self, message: Message) -> RecordPosition:
        """Send one, and return the record's position once Kafka has acknowledged it. Raises DemoFailed."""
        why = ""
        for attempt in range(ATTEMPTS_MAX):
            self._alive()
            try:
                status, body = await self._post(message)
            except (aiohttp.ClientError, TimeoutError) as error:
                why = f"{type(error).__name__} {error}".strip()
            else:
                if status == 200:
                    position = _position_of(body)
                    self._tally.add(message.event_type, position.partition, position.offset)
                    return position
                why = f"ingress answered {status}: {body[:300].decode(errors='replace')}"
                if status not in (401, 429, 503):  # 401: a new key is known within about a second
                    break
            await asyncio.sleep(min(PAUSE_MAX_SECONDS, 0.25 * 2**attempt))
        raise DemoFailed(f"The message {message.id} was not taken.", why=why, next_step="plant doctor")

    async def _post(self, message: Message) -> tuple[int, bytes]:
        async with self._client.post(message.route, data=message.body, headers=self._headers(message)) as answer:
            return answer.status, await answer.read()

    def _headers(self, message: Message) -> dict[str, str]:
        message_id, seconds = message.id.encode(), b"%d" % int(time.time())
        return {
            "content-type": message.content_type,
            "webhook-id": message.id,
            "webhook-timestamp": seconds.decode(),
            "webhook-signature": sign(self._secret, message_id, seconds, message.body).decode(),
        }


def _position_of(body: bytes) -> RecordPosition:
    document: dict[str, Any] = msgspec.json.decode(body)
    return RecordPosition(document["topic"], document["partition"], document["offset"])
