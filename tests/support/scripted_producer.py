"""A producer without Kafka, whose outcomes a test decides: those that a real broker does not give on demand."""

from __future__ import annotations

import asyncio
from collections import deque

from runtime.settings import Settings
from schemas.events import Event
from streams.errors import StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer, SenderHeaders
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC


class ScriptedProducer(EventProducer):
    """It acknowledges every event at the next offset of partition 0, unless the script has another outcome first."""

    def __init__(self) -> None:
        super().__init__(Settings(kafka_bootstrap_servers="127.0.0.1:1"), topics=(EVENTS_TOPIC,))
        self.script: deque[StreamsError | None] = deque()
        """What `submit` raises, in order; None: nothing."""
        self.refused: deque[StreamsError | None] = deque()
        """What Kafka answers, in order; None: an acknowledgement."""
        self.submitted: list[Event] = []
        self.senders: list[dict[str, bytes]] = []
        """The headers of each event's sender."""

    def submit(
        self,
        event: Event,
        *,
        source: str,
        traceparent: str | None = None,
        value: bytes | None = None,
        sender: SenderHeaders = (),
    ) -> PendingPublish:
        """Return a publish whose outcome is known."""
        if self.script and (error := self.script.popleft()) is not None:
            raise error
        answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
        if self.refused and (error := self.refused.popleft()) is not None:
            answer.set_exception(error)
            answer.exception()
        else:
            answer.set_result(RecordPosition(EVENTS_TOPIC, 0, len(self.submitted)))
        self.submitted.append(event)
        self.senders.append(dict(sender))
        return PendingPublish(answer, 0)
