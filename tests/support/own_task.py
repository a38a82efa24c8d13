"""Contexts that a fixture opens and closes in one task: fixtures are set up and torn down in different ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

Made = TypeVar("Made")


@contextlib.asynccontextmanager
async def in_own_task(context: AbstractAsyncContextManager[Made]) -> AsyncIterator[Made]:
    """Enter and leave a context in a task of its own, as a lifespan needs it."""
    running: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def keep_open() -> None:
        async with context as made:
            running.set_result(made)
            await over.wait()

    task = asyncio.create_task(keep_open())
    await asyncio.wait([task, running], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield running.result()
    over.set()
    await task
