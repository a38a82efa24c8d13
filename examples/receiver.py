"""Receive Plant's webhooks and verify each with the public `standardwebhooks` package.

    export PLANT_WEBHOOK_SECRET=$(plant endpoints add https://hooks.example.com/plant --event-type '*')
    python examples/receiver.py 8000    # behind whatever ends TLS for hooks.example.com

PLANT_WEBHOOK_SECRET is the shared secret (whsec_) of a v1 key; receiver.mjs takes the public key of a v1a key too. A
delivery may come more than once, with the same `webhook-id`: it is handled once. Answer 2xx within 15 seconds, or the
shorter timeout of your endpoint, once the event is kept; anything else is tried again. This example keeps ids in
memory: keep yours where your data is.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from standardwebhooks import Webhook, WebhookVerificationError

BODY_MAX_BYTES = 1024 * 1024
SECONDS_WITHOUT_DATA = 10

secret = os.environ["PLANT_WEBHOOK_SECRET"]
if secret.startswith("whpk_"):
    sys.exit("PLANT_WEBHOOK_SECRET is a public key (whpk_): this takes a shared secret (whsec_); receiver.mjs both")
webhook = Webhook(secret)
handled: set[str] = set()
lock = Lock()


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 for a delivery that is handled, 401 for one that nobody signed."""

    timeout = SECONDS_WITHOUT_DATA

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > BODY_MAX_BYTES:
            return self.answer(413)
        body = self.rfile.read(int(length))
        try:
            event = webhook.verify(body, {name.lower(): value for name, value in self.headers.items()})
        except WebhookVerificationError:
            return self.answer(401)
        with lock:
            if self.headers["webhook-id"] not in handled:
                print(json.dumps({"id": self.headers["webhook-id"], "type": event["type"]}), flush=True)
                handled.add(self.headers["webhook-id"])
        return self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Print no line for each request."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Receiver)
    print(f"receiving at http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
