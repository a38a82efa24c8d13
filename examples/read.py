"""Read Plant's read models over HTTP: all pages of a listing, and your own writes.

    export PLANT_READ_TOKEN=$(plant tokens add example)
    plant api &
    python examples/read.py http://127.0.0.1:8082

With a position behind the address, such as genesis.events/3/1041, the answer shows the record there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

ATTEMPTS = 5


def get(client: httpx.Client, path: str, **query: str) -> Any:
    """Return the document at a path; ask again where Plant says that it may help."""
    for _ in range(ATTEMPTS):
        answer = client.get(path, params=query)
        if answer.status_code not in (429, 503):
            break
        time.sleep(float(answer.headers.get("retry-after", 1)))
    if answer.is_error:
        raise SystemExit(f"refused: {answer.text}")
    return answer.json()


def rows(client: httpx.Client, path: str, **query: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of all pages."""
    cursor: str | None = ""
    while cursor is not None:
        page = get(client, path, **query, **({"cursor": cursor} if cursor else {}))
        yield from page["items"]
        cursor = page["next"]


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8082"
    wait = {"at-least": sys.argv[2]} if len(sys.argv) > 2 else {}
    token = {"authorization": f"Bearer {os.environ['PLANT_READ_TOKEN']}", "prefer": "wait=5"}
    with httpx.Client(base_url=address, headers=token, timeout=30) as client:
        for row in rows(client, "/agents", limit="100", **wait):
            print(json.dumps(row))
