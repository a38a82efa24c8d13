"""Follow Plant's events of one type, typed; `consumer_*.py` do it with other Kafka clients.

python examples/consume.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from runtime.settings import load_settings
from schemas.events import AgentOnboarded
from streams.consume import consume


async def onboarded() -> AsyncIterator[str]:
    async with aclosing(consume(load_settings(), types=["genesis.agent.onboarded"], follow=True)) as events:
        async for received in events:
            if isinstance(received.event, AgentOnboarded):
                yield f"{received.position}: {received.event.name}"


async def main() -> None:
    async with aclosing(onboarded()) as lines:
        async for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
