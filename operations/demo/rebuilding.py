"""The demo's turn of a rebuild: a read model is made again while events come in, compared, and shown to readers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from operations.demo.messages import Message
from operations.demo.outcome import RebuildPart
from operations.demo.publishing import DemoPublisher
from operations.demo.services import DemoServices

REBUILT: Final = "ratings"
PAUSE_SECONDS: Final = 0.02
"""Between two events that come in meanwhile."""

_BY: Final = ("--actor", "demo", "--reason", "The demo rebuilds it.")


async def rebuild_under_load(services: DemoServices, publisher: DemoPublisher, load: Iterator[Message]) -> RebuildPart:
    """Rebuild, verify, swap and retire, while events of the model are published. Raises DemoFailed."""
    stopping = asyncio.Event()
    sending = asyncio.create_task(_send_until(stopping, publisher, load))
    try:
        filled = await _command(services, "rebuild", REBUILT, *_BY)
        compared = await _command(services, "verify", REBUILT)
        await asyncio.to_thread(services.call, "projections", "swap", REBUILT, *_BY)
        await asyncio.to_thread(services.call, "projections", "retire", REBUILT, "--execute", *_BY)
    finally:
        stopping.set()
        (sent,) = await asyncio.gather(sending, return_exceptions=True)
        await publisher.close()
    if isinstance(sent, BaseException):
        raise sent
    return RebuildPart(
        build=filled[0]["build"], events=filled[0]["events"], seconds=filled[0]["seconds"],
        compared={row["table"]: row["rows"] for row in compared}, published_meanwhile=sent,
    )  # fmt: skip


async def _command(services: DemoServices, *arguments: str) -> list[dict[str, Any]]:
    """Run a command of read models, and return the rows that it prints."""
    said = await asyncio.to_thread(services.call, "projections", *arguments, "--output", "json")
    rows: list[dict[str, Any]] = msgspec.json.decode(said)
    return rows


async def _send_until(stopping: asyncio.Event, publisher: DemoPublisher, load: Iterator[Message]) -> int:
    """Send one event after the other until it is time to stop; return how many."""
    sent = 0
    while not stopping.is_set():
        await publisher.send(next(load))
        sent += 1
        await asyncio.sleep(PAUSE_SECONDS)
    return sent
