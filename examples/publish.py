"""Publish one event to Plant by a signed webhook: the shortest way; `producer.py` shows when to send again.

export PLANT_WEBHOOK_SECRET=$(plant keys add example)
python examples/publish.py http://127.0.0.1:8080
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import uuid4

import httpx
from standardwebhooks import Webhook


def onboard(url: str, secret: str, message_id: str, agent: dict[str, object]) -> str:
    now, body = datetime.now(UTC), json.dumps({"timestamp": "2026-11-23T08:00:00Z", "data": agent})
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,  # the same id and body again are the same event
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }
    answer = httpx.post(f"{url}/webhook/genesis/agent-onboarded", content=body, headers=headers)
    return answer.raise_for_status().text  # every in-sync replica of Kafka has the event


if __name__ == "__main__":
    import os
    import sys

    agent: dict[str, object] = {"agent_id": str(uuid4()), "name": "Example agent", "skill_ids": []}
    print(onboard(sys.argv[1], os.environ["PLANT_WEBHOOK_SECRET"], str(uuid4()), agent))
