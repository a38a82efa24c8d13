"""The processor's times, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from runtime.clock import FixedClock
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas.errors import Unencodable
from streams.processor import GenesisEventProcessor
from streams.record_position import RecordPosition

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_time_without_a_zone_is_refused_by_name() -> None:
    """It would be read in the zone of whatever machine the caller runs on."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    processor = GenesisEventProcessor(settings, clock=FixedClock(NOW))
    with pytest.raises(Unencodable, match="occurred_at 2026-01-01T08:00:00 has no time zone"):
        await processor.process_agent_available(uuid4(), occurred_at=datetime(2026, 1, 1, 8))


async def test_without_a_waiter_it_publishes_and_does_not_wait() -> None:
    """The error names what makes a processor that waits."""
    processor = GenesisEventProcessor(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match="can't wait for a read model"):
        await processor.wait_for(RecordPosition("genesis.events", 0, 0))
