"""A reader's request, from its token to its answer: the one path of everything that is read.

The order is by cost: the token, its scope, the parameters, the limits; then one read-only transaction with the token's
tenant. A request that names positions is read in the transaction that sees them; until one does, it waits, and holds
no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from litestar.types import Receive, Scope, Send

from api.access_tokens import AccessToken
from api.answers import Answer, read_answer
from api.failures import read_problem
from api.parameters import read_positions, read_query, read_wait
from api.read_limits import ReadLimits, query_wait_seconds
from api.read_queries import AT_LEAST, ReadQuery, ReadRows, is_path, known_parameters, read_query_of
from api.request_heads import read_head
from api.request_records import RequestRecords
from api.resources import Resource
from api.token_cache import AccessTokenCache
from database.connector import Database
from projections.checkpoint_poller import CheckpointPoller, NotCaughtUp, missing_positions
from runtime import metrics
from runtime.clock import Clock
from runtime.settings import Settings
from server.bodies import PeerGone
from server.peers import peer_of
from server.problems import Problem, retry_after
from streams.record_position import RecordPosition

WAIT_DEFAULT_SECONDS: Final = 10.0
TURN_SECONDS: Final = 5.0
"""How long a request that has waited for positions then waits for others that are read, before it is refused."""
LOOK_AGAIN_SECONDS: Final = 1.0
"""How long a waiter may wait before its token is looked at again."""

NOTHING: Final = ReadRows(())

Missing = Sequence[tuple[RecordPosition, int]]


class Reads:
    """Answers what readers ask. One a process; between requests it keeps limits and counts."""

    def __init__(
        self, settings: Settings, database: Database, tokens: AccessTokenCache, poller: CheckpointPoller, clock: Clock
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._poller = poller
        self._clock = clock
        self._page_max = settings.api_page_max
        self._wait_max_seconds = float(settings.api_wait_max_seconds)
        self._query_wait_seconds = query_wait_seconds(settings)
        self._records = RequestRecords("read", clock)
        self._ending = False
        self.limits = ReadLimits(settings)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, resource: Resource, segments: list[str]
    ) -> None:
        """Answer one request for a resource; `segments` are those of the path behind its name."""

        def problem_of(error: Exception) -> Problem:
            return read_problem(error) or Problem("unexpected")

        asked = self._answer(scope, receive, resource, segments)
        await self._records.answer(asked, resource.name, problem_of, scope, receive, send)

    def stop(self) -> None:
        """End the waits within a second or so: the process is ending."""
        self._ending = True

    async def _answer(self, scope: Scope, receive: Receive, resource: Resource, segments: list[str]) -> Answer:
        head = read_head(scope)
        token = await self._tokens.authenticate(head.authorization)
        peer = peer_of(scope)
        if peer is not None and not peer.proved:
            peer.prove()
        if not token.may(resource.name):
            raise Problem("scope", f"It has no scope read:{resource.name}.", headers=_scope_challenge(resource))
        if not is_path(resource, segments):
            raise Problem("not-found")
        parameters = read_query(head.query, known_parameters(resource, rows=bool(segments)))
        positions = read_positions(parameters.get(AT_LEAST, ()))
        wait_seconds = read_wait(head.prefer, min(WAIT_DEFAULT_SECONDS, self._wait_max_seconds), self._wait_max_seconds)
        query = read_query_of(resource, segments, parameters, self._clock.now(), token.tenant, self._page_max)
        with self.limits.requests.one_more(token.prefix):
            missing, rows = await self._read(query, token, positions)
        if missing:
            with self.limits.waiters.one_more(token.prefix):
                rows = await self._read_later(query, token, positions, missing, wait_seconds, receive)
        await self._tokens.require_usable(token)  # it may have ended while its query ran
        return read_answer(query, rows, token.tenant, head.if_none_match)

    async def _read(
        self, query: ReadQuery, token: AccessToken, positions: Sequence[RecordPosition]
    ) -> tuple[Missing, ReadRows]:
        """Return the rows; or, where the server that was asked is not there yet, the positions that it lacks."""
        async with (
            self.limits.queries.in_turn(token.prefix, self._query_wait_seconds),
            self._database.transaction(token.tenant, read_only=True, replica=True) as connection,
        ):
            if positions and (missing := await missing_positions(connection, query.resource.model, positions)):
                return missing, NOTHING
            return (), await query.run(connection)

    async def _read_later(
        self,
        query: ReadQuery,
        token: AccessToken,
        positions: Sequence[RecordPosition],
        missing: Missing,
        wait_seconds: float,
        receive: Receive,
    ) -> ReadRows:
        """Return the rows once the positions are there. Raises NotCaughtUp, Problem where the token ends, PeerGone."""
        model = query.resource.model
        deadline = self._clock.monotonic_seconds() + wait_seconds
        rows = NOTHING
        while missing:
            left_seconds = deadline - self._clock.monotonic_seconds()
            if left_seconds <= 0:
                metrics.API_WAIT_TIMEOUTS.labels(model).inc()
                raise NotCaughtUp(model, missing, wait_seconds)
            await self._wait(model, positions, left_seconds, token, receive)
            await self._tokens.require_usable(token)
            async with self.limits.requests.in_turn(token.prefix, TURN_SECONDS):  # one checkpoint may wake many
                missing, rows = await self._read(query, token, positions)
        return rows

    async def _wait(
        self,
        model: str,
        positions: Sequence[RecordPosition],
        timeout_seconds: float,
        token: AccessToken,
        receive: Receive,
    ) -> None:
        """Return when the positions are there or the time is over. Raises Problem where the token ends, PeerGone."""
        waiting = asyncio.create_task(self._poller.wait_for(model, positions, timeout_seconds), name="wait")
        leaving = asyncio.create_task(_until_gone(receive), name="peer")
        try:
            while not waiting.done():
                await asyncio.wait((waiting, leaving), timeout=LOOK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    raise PeerGone
                if self._ending:
                    raise Problem("starting", "The process is ending.", headers=(retry_after(1),))
                await self._tokens.require_usable(token)
            if not isinstance(waiting.exception(), NotCaughtUp):
                waiting.result()
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _scope_challenge(resource: Resource) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header that names the scope which is missing (RFC 6750, 3)."""
    value = b'Bearer realm="plant", error="insufficient_scope", scope="read:%b"' % resource.name.encode("ascii")
    return ((b"www-authenticate", value),)
