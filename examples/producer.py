"""Send one signed webhook to Plant with the public `standardwebhooks` package.

    . .venv/bin/activate; plant up; plant ingress &    # a demo stops its stack when it ends
    export PLANT_WEBHOOK_SECRET=$(plant keys add example)
    python examples/producer.py http://127.0.0.1:8080

Sending the same message again (same id, same body) stores it once. So retry on a lost connection, 429 and 503, after
the seconds that Retry-After names; any other answer is final.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

import httpx
from standardwebhooks import Webhook

ATTEMPTS = 5


def send(url: str, secret: str, event_type: str, data: dict[str, object]) -> dict[str, object]:
    """Send one event until it is stored; return its id and position."""
    message_id = f"msg_{uuid4().hex}"
    body = json.dumps({"type": event_type, "timestamp": datetime.now(UTC).isoformat(), "data": data})
    path = event_type.removeprefix("genesis.").replace(".", "-")
    for attempt in range(ATTEMPTS):
        now = datetime.now(UTC)  # a fresh timestamp and signature for each attempt; the id stays
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(message_id, now, body),
        }
        pause_seconds = 2.0**attempt
        try:
            answer = httpx.post(f"{url}/webhook/genesis/{path}", content=body, headers=headers, timeout=10)
        except httpx.TransportError as error:
            print(f"no answer: {error!r}", file=sys.stderr)
        else:
            if answer.status_code == 200:
                stored: dict[str, object] = answer.json()
                return stored
            if answer.status_code not in (429, 503):
                raise SystemExit(f"refused: {answer.text}")
            pause_seconds = float(answer.headers.get("retry-after", pause_seconds))
        time.sleep(pause_seconds)
    raise SystemExit("Plant did not take the event")


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    agent = {"agent_id": str(uuid4()), "name": "Example agent", "skill_ids": []}
    print(json.dumps(send(address, os.environ["PLANT_WEBHOOK_SECRET"], "genesis.agent.onboarded", agent)))
