"""One signed webhook to the application of ingress: what it answers is what the command has advice for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from operations.signed_request import WebhookRefused, check_answer, example_body, send_request, sign_request
from operations.signing_keys import SharedSecret
from streams.record_position import RecordPosition
from tests.support.serving import Serving
from tests.support.webhooks import read_at


async def test_a_test_webhook_is_stored_or_refused_with_advice(serving: Serving) -> None:
    """Taken with the producer's key; 401 for another key and an old timestamp, 409, and 422 with the field."""
    now = datetime.now(UTC)
    key, other = SharedSecret(serving.sender.secret), SharedSecret(bytes(32))

    async def sent(key: SharedSecret, body: bytes, now: datetime = now, message_id: str | None = None) -> object:
        request = sign_request(key, body, message_id=message_id, producer="genesis", now=now)
        answer = await send_request(serving.client, "", request, now)
        check_answer(answer, request)
        return answer.document

    taken = await sent(key, example_body(now), message_id="msg_test")
    assert isinstance(taken, dict)
    stored = await read_at(serving.settings, RecordPosition(taken["topic"], taken["partition"], taken["offset"]))
    assert str(stored.event.event_id) == taken["event_id"]
    for refused, words in (
        (sent(other, example_body(now)), "401"),
        (sent(key, example_body(now), now - timedelta(hours=1)), "401"),
        (sent(key, example_body(now), message_id="msg_test"), "409"),
        (sent(key, b'{"type": "genesis.agent.rated", "timestamp": "2026-11-23T08:00:00Z", "data": {}}'), "422"),
    ):
        with pytest.raises(WebhookRefused, match=words):
            await refused
