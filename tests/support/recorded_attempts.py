"""Attempts that are recorded as a recorder does, and the endpoints that they went to."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from deliveries.state.recorder import AttemptRecorder
from deliveries.state.retention import DeliveryRetention
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from tests.conftest import Database
from tests.support.made_attempts import WATERMARKS, attempt_batch

OTHER_ENDPOINT: Final = UUID(int=0xE1)
ADD_ENDPOINT: Final = """
INSERT INTO endpoints (id, governance_agent_id, url, event_types, payload_form, ordering, after_dead_letter,
                       retry_schedule, timeout_seconds, start_offsets)
VALUES ('{}', 'genesis', 'https://hooks.example.com', '{{*}}', 'standard', 'none', 'proceed', 'short', 15, '{{0}}')
"""


def record(database: Database, *records: DeliveryAttempted) -> None:
    """Record attempts, after those that were before."""
    recorder = AttemptRecorder(database.deliverer_url, ATTEMPTS_TOPIC, 1, DeliveryRetention(30))
    acquired = recorder.acquire(WATERMARKS)
    recorder.project(attempt_batch(records, token=acquired.token, start=acquired.log_end.next_offset, partition=1))
    recorder.close()
