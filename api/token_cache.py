"""The usable tokens in memory, read again each half second, and never used once they are older than two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from api.access_tokens import SECRET_BYTES, AccessToken, hash_of, is_same, read_token
from api.errors import UnreadableTokens
from api.token_store import TokenStore
from runtime import metrics
from runtime.clock import Clock
from runtime.lifecycle import keep_refreshing
from runtime.logging import get_logger
from server.problems import Problem, retry_after

log = get_logger(__name__)

REFRESH_SECONDS: Final = 0.5
STALE_SECONDS: Final = 2.0
"""A token that was revoked so long ago is refused: older ones are read again before one of them is believed."""
REFRESH_TIMEOUT_SECONDS: Final = 5.0

_NOBODYS_HASH: Final = hash_of(bytes(SECRET_BYTES))
"""What a token of an unknown prefix is compared with, so that it takes as long as a known one."""
_CHALLENGE: Final = b'Bearer realm="plant"'


class AccessTokenCache:
    """The usable tokens by their prefix. One a process; call `start`, and `stop` at the end."""

    def __init__(self, store: TokenStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tokens: Mapping[str, AccessToken] = {}
        self._read_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the tokens were read within the last two seconds."""
        return self._clock.monotonic_seconds() - self._read_at <= STALE_SECONDS

    async def authenticate(self, authorization: bytes | None) -> AccessToken:
        """Return the token that an Authorization header holds. Raises Problem: unauthorized (401), starting (503)."""
        if authorization is None:
            raise unauthorized("Send a token: Authorization: Bearer plant_…", "no_token", _CHALLENGE)
        scheme, _, text = authorization.partition(b" ")
        read = read_token(text.strip().decode("latin-1")) if scheme.lower() == b"bearer" else None
        if read is None:
            raise unauthorized("The Authorization header holds no token of this API.", "malformed_token")
        prefix, given_hash = read
        if not self.fresh:
            await self._require_fresh()
        token = self._tokens.get(prefix)
        same = is_same(token.secret_hash if token is not None else _NOBODYS_HASH, given_hash)
        if token is None or not same or not self.is_usable(token):
            raise unauthorized("The token is unknown, revoked or expired.", "unknown_token")
        return token

    async def require_usable(self, token: AccessToken) -> None:
        """Raise Problem (401) where a token has ended since, (503) where nobody can say so."""
        if not self.fresh:
            await self._require_fresh()
        if not self.is_usable(token):
            raise unauthorized("The token was revoked, or has expired, while its request waited.", "ended_token")

    def is_usable(self, token: AccessToken) -> bool:
        """Return whether a token is neither revoked nor expired, as of the last refresh and by the clock."""
        known = self._tokens.get(token.prefix)
        return known is not None and known.id == token.id and known.state(self._clock.now()) == "active"

    async def refresh(self) -> None:
        """Read the tokens now; calls at the same time share one. Raises what the database raises, UnreadableTokens."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._read(), name="read-tokens")
            self._refreshing.add_done_callback(self._forget_refresh)
        await asyncio.shield(self._refreshing)

    def start(self) -> None:
        """Refresh each half second, in a task."""
        self._task = asyncio.create_task(
            keep_refreshing(self.refresh, REFRESH_SECONDS, self._note_failure), name="tokens"
        )

    async def stop(self) -> None:
        """Stop refreshing."""
        tasks = [task for task in (self._task, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget_refresh(self, done: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not done.cancelled():
            done.exception()  # whoever waits for it gets it; it may be nobody

    async def _read(self) -> None:
        begun = self._clock.monotonic_seconds()
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_SECONDS):
                tokens = await self._store.usable()
        except TimeoutError as error:
            raise UnreadableTokens(why=f"The database took more than {REFRESH_TIMEOUT_SECONDS:g} s.") from error
        self._tokens = {token.prefix: token for token in tokens}
        self._read_at = begun  # what was revoked after that may be missing
        metrics.API_TOKENS_LOADED.set(len(tokens))

    async def _require_fresh(self) -> None:
        """Read the tokens now: the second reading begins after this call. Raises Problem (503) where that fails."""
        for _ in range(2):
            try:
                await self.refresh()
            except Exception as error:  # logged by the task that refreshes
                detail = "The tokens can't be read from the database, so none is believed."
                raise Problem("starting", detail, headers=(retry_after(1),)) from error
            if self.fresh:
                return

    def _note_failure(self, error: Exception) -> None:
        log.warning("tokens.not_read", error=type(error).__name__, why=str(error))


def unauthorized(detail: str, reason: str, challenge: bytes = b"") -> Problem:
    """Return the 401 for a request without a usable token, with the challenge of RFC 6750, 3."""
    header = challenge or b'Bearer realm="plant", error="invalid_token"'
    return Problem("unauthorized", detail, headers=((b"www-authenticate", header),), reason=reason)
