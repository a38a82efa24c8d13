"""Wiring of a GenesisEventProcessor: settings in, a processor that can wait for read models out."""

from __future__ import annotations

from projections.checkpoint_waiter import ReadModels
from runtime.settings import Settings
from streams.processor import GenesisEventProcessor
from streams.topics import EVENTS_TOPIC


def build_processor(
    settings: Settings,
    *,
    producer_name: str = "processor",
    source: str = "plant/processor",
    events_topic: str = EVENTS_TOPIC,
) -> GenesisEventProcessor:
    """Return a processor to be used as an async context manager. The options are GenesisEventProcessor's."""
    return GenesisEventProcessor(
        settings,
        ReadModels(settings),
        producer_name=producer_name,
        source=source,
        events_topic=events_topic,
    )
