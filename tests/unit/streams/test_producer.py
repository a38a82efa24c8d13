"""The parts of the Kafka client side that need no broker: partitioning, deadlines, starts, connection options."""

from __future__ import annotations

import asyncio
import doctest
from typing import Any
from uuid import UUID

import pytest
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigurationError
from runtime.settings import Settings
from streams import partitioning, start, topics
from streams import record_position as position
from streams.deadlines import Deadlines
from streams.kafka.connection import connection_options


@given(st.binary(max_size=80))
def test_partitioning_is_kafkas_own(key: bytes) -> None:
    """Any key's hash is that of Kafka's Java client, as aiokafka has it too."""
    assert partitioning.murmur2(key) == reference(key) & 0xFFFFFFFF


@given(st.uuids())
def test_entity_ids_have_a_partition(entity_id: UUID) -> None:
    """An entity id's partition is within the topic."""
    assert 0 <= partitioning.partition_of(str(entity_id).encode(), 8) < 8


class Late(Exception):
    pass


async def test_deadlines_give_up_and_leave_the_shared_future_alone() -> None:
    """A waiter gets its error in time, its future goes on, and later waiters get their result."""
    deadlines: Deadlines[int] = Deadlines(0.02, Late)
    shared: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(Late):
        await deadlines.wait(shared)
    assert not shared.done()
    later = asyncio.create_task(deadlines.wait(shared))
    await asyncio.sleep(0)
    shared.set_result(7)
    assert await later == 7
    assert await deadlines.wait(shared) == 7


async def test_waiters_that_gave_up_are_forgotten() -> None:
    """A future that is waited for again and again, as while Kafka is away, holds none of those who gave up."""
    deadlines: Deadlines[int] = Deadlines(0.01, Late)
    shared = _Counted(loop=asyncio.get_running_loop())
    waiting = [asyncio.create_task(deadlines.wait(shared)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {
        Late,
        asyncio.CancelledError,
    }
    assert shared.callbacks == 0


class _Counted(asyncio.Future[int]):
    """Counts who waits."""

    callbacks = 0

    def add_done_callback(self, callback: Any, *, context: Any = None) -> None:
        self.callbacks += 1
        super().add_done_callback(callback, context=context)

    def remove_done_callback(self, callback: Any, /) -> int:
        removed = super().remove_done_callback(callback)
        self.callbacks -= removed
        return removed


async def test_deadlines_keep_their_order_and_pass_errors_on() -> None:
    """Several waiters share one timer; each gets its own future's outcome, errors and cancellation included."""
    deadlines: Deadlines[int] = Deadlines(0.05, Late)
    loop = asyncio.get_running_loop()
    good, bad, dropped, slow = (loop.create_future() for _ in range(4))
    tasks = [asyncio.create_task(deadlines.wait(shared)) for shared in (good, bad, dropped, slow)]
    await asyncio.sleep(0)
    good.set_result(1)
    bad.set_exception(OSError("x"))
    dropped.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[0] == 1
    assert [type(outcome) for outcome in outcomes[1:]] == [OSError, asyncio.CancelledError, Late]


def test_connection_options_follow_the_settings() -> None:
    """Plain, TLS and SASL settings become aiokafka's arguments; no address is a configuration error."""
    plain = connection_options(Settings(kafka_bootstrap_servers="k:1"))
    assert plain == {"bootstrap_servers": "k:1", "security_protocol": "PLAINTEXT"}
    secured = connection_options(
        Settings(
            kafka_bootstrap_servers="k:1",
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_username="u",
            kafka_sasl_password="p",
        )
    )
    assert (secured["sasl_mechanism"], secured["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
    assert "ssl_context" in secured
    with pytest.raises(ConfigurationError):
        connection_options(Settings())


def test_the_docstrings_are_right() -> None:
    """The examples in the modules hold."""
    for module in (partitioning, position, start, topics):
        assert doctest.testmod(module).failed == 0
