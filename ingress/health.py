"""Whether a process can take webhooks."""

from __future__ import annotations

import asyncio
from typing import Final

from ingress.keys import Keyring
from runtime.clock import Clock
from streams.errors import StreamsError
from streams.producer import EventProducer

CHECK_EVERY_SECONDS: Final = 1.0
CHECK_AGAIN_SECONDS: Final = 0.1
READY_POLL_EVERY_SECONDS: Final = 0.05


class Readiness:
    """Readiness for webhooks: Kafka answers and the keys are loaded.

    Kafka is checked once a second at most, more often while it does not answer.
    """

    def __init__(self, keyring: Keyring, producer: EventProducer, clock: Clock) -> None:
        self._keyring = keyring
        self._producer = producer
        self._clock = clock
        self._checked_at = float("-inf")
        self._kafka = "not checked yet"
        self._checking = asyncio.Lock()

    async def faults(self) -> dict[str, str]:
        """Return what is missing, by part; empty when ready."""
        faults = {}
        async with self._checking:
            age_seconds = self._clock.monotonic_seconds() - self._checked_at
            if age_seconds >= (CHECK_EVERY_SECONDS if not self._kafka else CHECK_AGAIN_SECONDS):
                self._kafka = await self._check_kafka()
                self._checked_at = self._clock.monotonic_seconds()
        if self._kafka:
            faults["kafka"] = self._kafka
        if not self._keyring.loaded:
            faults["keys"] = "The signing keys are not loaded yet."
        return faults

    async def wait(self) -> None:
        """Return when webhooks can be accepted."""
        while await self.faults():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(READY_POLL_EVERY_SECONDS)

    async def _check_kafka(self) -> str:
        try:
            await self._producer.ping()
        except StreamsError as error:
            return str(error)
        return ""
