"""The factory of Kafka clients. Each comes with the settings' connection options and with every repair.

`REPAIRS` lists the repairs of aiokafka. Each stands in its module with the version that needs it, the reason, and when
it can go. `check_repairs` says which one does not fit the installed version.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from runtime.settings import Settings
from streams.kafka import (
    admin,
    closed_connections,
    compression,
    consumer,
    fetcher_restart,
    identified_fetches,
    lenient_records,
    producer,
    refused_connections,
    topic_ids,
    unresponsive_brokers,
)
from streams.kafka.admin import RepairedAdmin
from streams.kafka.closed_connections import expect_closed_connections
from streams.kafka.compression import compress_fast
from streams.kafka.connection import connection_options
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.lenient_records import parse_leniently
from streams.kafka.producer import RepairedProducer
from streams.kafka.refused_connections import tell_refusals
from streams.kafka.repair import Repair, check
from streams.kafka.unresponsive_brokers import skip_unresponsive_brokers

REPAIRS: Final[tuple[Repair, ...]] = (
    unresponsive_brokers.REPAIR,
    refused_connections.REPAIR,
    closed_connections.REPAIR,
    fetcher_restart.REPAIR,
    lenient_records.REPAIR,
    topic_ids.REPAIR,
    identified_fetches.REPAIR,
    consumer.REPAIR,
    producer.REPAIR,
    compression.REPAIR,
    admin.REPAIR,
)


@cache
def check_repairs() -> None:
    """Raise RepairMisfit where a repair does not fit the installed aiokafka. It connects to nothing."""
    check(REPAIRS)


def check_clients(settings: Settings) -> None:
    """Raise RepairMisfit, or ConfigurationError where no client could be made of the settings. It connects to nothing.

    For a process that would otherwise try again and again: what is wrong with its settings stays wrong.
    """
    check_repairs()
    connection_options(settings)


def make_producer(settings: Settings, **options: Any) -> RepairedProducer:
    """Return a producer that is not started. `options` are aiokafka's. Raises ConfigurationError, RepairMisfit."""
    check_repairs()
    compress_fast()
    tell_refusals()
    expect_closed_connections()
    producer = RepairedProducer(**options, **connection_options(settings))
    skip_unresponsive_brokers(producer.client)
    return producer


def make_consumer(settings: Settings, **options: Any) -> RepairedConsumer:
    """Return a consumer that is not started. `options` are aiokafka's. Raises ConfigurationError, RepairMisfit."""
    check_repairs()
    parse_leniently()
    tell_refusals()
    expect_closed_connections()
    consumer = RepairedConsumer(**options, **connection_options(settings))
    skip_unresponsive_brokers(consumer.client)
    return consumer


def make_admin(settings: Settings, **options: Any) -> RepairedAdmin:
    """Return an admin client that is not started. `options` are aiokafka's. Raises ConfigurationError, RepairMisfit."""
    check_repairs()
    tell_refusals()
    expect_closed_connections()
    admin = RepairedAdmin(**options, **connection_options(settings))
    skip_unresponsive_brokers(admin.client)
    return admin
