"""Whether a process can answer readers."""

from __future__ import annotations

import asyncio
from typing import Final

from api.token_cache import AccessTokenCache

READY_POLL_EVERY_SECONDS: Final = 0.05


class ReadReadiness:
    """Readiness for readers: the tokens were read from the database a moment ago."""

    def __init__(self, tokens: AccessTokenCache) -> None:
        self._tokens = tokens

    async def faults(self) -> dict[str, str]:
        """Return what is missing, by part; empty when ready."""
        return {} if self._tokens.fresh else {"tokens": "The database has not answered for two seconds."}

    async def wait(self) -> None:
        """Return when readers can be answered."""
        while await self.faults():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(READY_POLL_EVERY_SECONDS)
