"""A stock Kafka consumer, for what others read of our topics."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, TopicPartition

from runtime.settings import Settings

POLLS = 60


def read_record(settings: Settings, stored: dict[str, Any]) -> bytes:
    """The value at a position: an answer of ingress."""
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "unused"})
    try:
        consumer.assign([TopicPartition(stored["topic"], stored["partition"], stored["offset"])])
        for _ in range(POLLS):
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                value = message.value()
                assert isinstance(value, bytes)
                return value
    finally:
        consumer.close()
    raise AssertionError(f"nothing at {stored}")
