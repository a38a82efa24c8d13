"""What can go wrong between Plant and Kafka."""

from __future__ import annotations

import shlex
from uuid import UUID

from runtime.errors import CheckFailed, ConfigurationError, PlantError, Unreachable


class StreamsError(PlantError):
    """Kafka and Plant disagree."""


class KafkaUnavailable(Unreachable, StreamsError):
    """Kafka does not answer."""

    def __init__(
        self,
        what: str = "",
        *,
        why: str = "",
        next_step: str = "plant status",
        retry_after_seconds: int = 1,
    ) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.retry_after_seconds = retry_after_seconds


class ConnectionRefused(KafkaUnavailable):
    """Kafka refused this client's connection."""

    def __init__(self, what: str = "", *, why: str = "", next_step: str = "plant settings    # PLANT_KAFKA_…") -> None:
        super().__init__(what, why=why, next_step=next_step)


class RepairMisfit(StreamsError, ConfigurationError):
    """A repair of Plant's does not fit the installed version of aiokafka."""

    def __init__(self, what: str = "", *, why: str = "", next_step: str = "uv sync") -> None:
        super().__init__(what, why=why, next_step=next_step)


class OutcomeUnknown(KafkaUnavailable):
    """Kafka has not acknowledged the event in time; it may still be written. Publish it again with the same id."""


class Overloaded(KafkaUnavailable):
    """Too many events wait for Kafka; nothing was sent. Publish again later."""


class RecordTooLarge(StreamsError):
    """The event is larger than Kafka takes."""


class PublishRefused(StreamsError):
    """Kafka refused the event; it was not written."""


class PartitionUnknown(StreamsError):
    """The topic has no such partition; nothing was sent."""

    def __init__(self, what: str = "", *, why: str = "", next_step: str = "plant topics list") -> None:
        super().__init__(what, why=why, next_step=next_step)


class TopicMissing(StreamsError, ConfigurationError):
    """The topic does not exist."""


class TooFewReplicas(StreamsError, CheckFailed):
    """A topic has fewer replicas than the settings ask for: the loss of a broker could lose events or stop them."""


class TopicRefused(StreamsError):
    """Kafka refused to create the topic."""


class UnknownStart(StreamsError, ConfigurationError):
    """The start or the end is none that can be read from."""


class CaughtUpTooLate(StreamsError):
    """The read model has not reached the position in time; a worker may be down or behind."""


class UnmappableRow(StreamsError):
    """No event can be made of a row of the outbox."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(why=reason)


class OutboxBlocked(StreamsError, CheckFailed):
    """Rows of the outbox wait for an operator: no event can be made of them."""


class AnotherRelayActive(Unreachable, StreamsError):
    """Another relay is active, and one at a time publishes."""


class OwnershipLost(StreamsError):
    """Another worker has taken the partition; what this one was writing has no effect."""


class LeaderChanged(StreamsError):
    """The partition has had an election, which may have cost the end of its log: it is compared before reading."""


class ReadModelsChanged(StreamsError):
    """There are read models to feed that were not there before: the partition is acquired again, with them."""


class PartitionStopped(StreamsError):
    """A partition can't go on without a decision by an operator; the others go on."""


class CheckpointOutOfLog(PartitionStopped):
    """A checkpoint lies outside the log, so records that it refers to were removed or never written."""

    def __init__(
        self, topic: str, partition: int, checkpoint: int, start: int | None = None, end: int | None = None
    ) -> None:
        bounds = "" if start is None else f" The log holds offsets {start} to {end}."
        super().__init__(
            f"The checkpoint of {topic}/{partition} lies outside the log.",
            why=f"Offset {checkpoint} is to be read next.{bounds} Going elsewhere would skip events or repeat them.",
            next_step=f"plant topics list --topic {shlex.quote(topic)}",
        )


class LogTruncated(PartitionStopped):
    """Kafka lost the end of a log that was read already, so the records that it holds there now are others."""

    def __init__(self, topic: str, partition: int, difference: str) -> None:
        super().__init__(
            f"Kafka's log of {topic}/{partition} is not the one that was read.",
            why=f"{difference}. Records up to the checkpoint were lost and others took their offsets: going on would"
            " skip these.",
            next_step="see docs/how-to/log-truncated.md",
        )


class TopicRecreated(PartitionStopped):
    """A topic was deleted and made again under the same name, so its offsets mean other records."""

    def __init__(self, topic: str, partition: int, recorded: UUID, current: UUID) -> None:
        super().__init__(
            f"The topic {topic} was made again since {topic}/{partition} was last read.",
            why=f"Its id was {recorded} and is now {current}; checkpoints of the former topic don't apply.",
            next_step=f"plant topics list --topic {shlex.quote(topic)}",
        )


class RecordUnreadable(PartitionStopped):
    """The broker's bytes don't fit their checksum or Kafka's format: the log is damaged."""

    def __init__(self, topic: str, partition: int, position: int, error: BaseException) -> None:
        super().__init__(
            f"A record of {topic}/{partition} can't be read.",
            why=f"At offset {position} or shortly after it: {error}. Going on would skip events.",
            next_step=f"plant topics list --topic {shlex.quote(topic)}",
        )


class LogRefused(PartitionStopped):
    """Postgres refused a row of the log itself, which is never the record's fault."""


class SchemaNewer(PartitionStopped):
    """A record's schema is one of a later release of Plant: its partition waits for a worker that knows it."""

    def __init__(self, topic: str, partition: int, offset: int, schema_id: int) -> None:
        self.offset = offset
        self.schema_id = schema_id
        super().__init__(
            f"A record of {topic}/{partition} has a schema of a later release of Plant.",
            why=f"{self._record_at(offset)} has the schema id {schema_id}, which this release does not know. Going"
            " on would skip an event that a later release knows.",
            next_step="start workers of the release that wrote it, with its PLANT_SCHEMA_IDS_FILE where there is one;"
            f" if no release did: plant dead-letters skip {shlex.quote(topic)}/{partition}/{offset}",
        )

    @classmethod
    def waits_at(cls, stop_reason: str, offset: int) -> bool:
        """Return whether a stop reason, as a partition's owner writes it down, is this one, at an offset."""
        return stop_reason.startswith(cls.__name__) and f"{cls._record_at(offset)} " in stop_reason

    @staticmethod
    def _record_at(offset: int) -> str:
        return f"The record at offset {offset}"


class TooMuchParked(PartitionStopped):
    """More waits behind poison than a worker may keep. Control records further on in the log may release some of it."""

    def __init__(self, what: str, offset: int, *, why: str, next_step: str) -> None:
        self.offset = offset
        super().__init__(what, why=why, next_step=next_step)


class AppliedEventUnreadable(PartitionStopped):
    """A record that the log calls applied can't be decoded, so a fold of the log would leave its event out."""

    def __init__(self, topic: str, partition: int, offset: int, reason: str) -> None:
        super().__init__(
            f"The log of {topic}/{partition} holds an applied record that can't be decoded.",
            why=f"At offset {offset}: {reason}. Going on would leave its event out of the read model.",
            next_step="plant audit verify",
        )


class PartitionCountChanged(PartitionStopped, CheckFailed):
    """A topic's partition count is not the one that it was made with."""

    def __init__(self, topic: str, expected: int, actual: int, *, next_step: str = "") -> None:
        super().__init__(
            f"The topic {topic} has {actual} partitions, not {expected}.",
            why="A partition count never changes: keys change partition, and lose their order and their repeat check.",
            next_step=next_step or f"plant topics list --topic {topic}",
        )
