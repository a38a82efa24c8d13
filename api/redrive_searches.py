"""Searches over HTTP for what an endpoint was not sent: asked for once, looked up, and ordered where that is asked for.

The log is not read here: a dispatcher makes the search some moments later. One that orders what it finds is recorded as
an operator's action before it is stored, with the token as actor. With an `Idempotency-Key` its operation's id follows
from the tenant and the key, so that a request that comes again, or is under way a second time, finds the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import msgspec

from api.access_tokens import AccessToken
from api.endpoint_bodies import pointer_to
from api.endpoint_changes import Changed, EndpointParts, actor_of, keyed_id
from api.endpoint_pages import PageRequest
from api.redrive_bodies import SEARCH, read_asked_search
from api.redrive_changes import RUNNING_MAX, plan_document
from database.connector import Database
from deliveries.endpoint_store import EndpointStore
from deliveries.errors import TooManySearches
from deliveries.redrive.missing_deliveries import MARGIN
from deliveries.redrive.missing_searches import MissingSearches, SearchRequest, StoredSearch
from deliveries.redrive.orders import Redrives
from runtime.logging import get_logger
from server.problems import FieldError, Problem

log = get_logger(__name__)

WAITING_MAX: Final = 3
"""Searches of a tenant that wait or are under way at a time."""


class SearchChanges:
    """The searches of one request, for the tenant of its token."""

    def __init__(self, parts: EndpointParts, database: Database, store: EndpointStore, token: AccessToken) -> None:
        self._parts = parts
        self._database = database
        self._store = store
        self._token = token
        self._searches = MissingSearches(database, token.tenant)
        self._redrives = Redrives(database, token.tenant)

    async def ask(self, document: Mapping[str, Any], key: bytes | None) -> Changed:
        """Store a search, once for each Idempotency-Key. Raises Problem, and the errors of `endpoint_failures`."""
        asked = read_asked_search(document)
        operation_id = uuid4() if key is None else keyed_id(key, SEARCH, self._token.tenant)
        digest = None if key is None else asked.digest()
        if (known := await self._searches.find_operation(operation_id)) is not None:
            return _repeated_search(known, digest)
        self._refuse_too_old(asked.since)
        await self._store.find(asked.endpoint_id)
        if await self._searches.waiting() >= WAITING_MAX:
            raise _too_many_searches()
        if asked.execute and await self._redrives.running() >= RUNNING_MAX:
            raise Problem("too-many-redrives", f"It has {RUNNING_MAX} that are running.")
        request = SearchRequest(
            operation_id=operation_id, endpoint_id=asked.endpoint_id, since=asked.since,
            rate_per_second=asked.rate_per_second, execute=asked.execute, reason=asked.reason,
            asked_by=actor_of(self._token), request_digest=digest,
        )  # fmt: skip
        await self._database.require_writable(self._token.tenant)  # the database must answer before the record
        if asked.execute:
            why = f"{asked.reason} [since {asked.since.isoformat()}; {asked.rate_per_second} a second]"
            target = str(asked.endpoint_id)
            await self._parts.record("deliveries.replay_missing", target, why, request.asked_by, operation_id)
        try:
            stored = await self._searches.store(request, WAITING_MAX)
        except TooManySearches:  # others came at once
            raise _too_many_searches() from None
        made = await self._searches.find_operation(operation_id)
        assert made is not None, "it was stored, now or by the same request a second time"
        if not stored:
            return _repeated_search(made, digest)
        log.info("missing_search.asked", number=made.number, execute=made.execute, token=self._token.prefix)
        return Changed(202, search_document(made), f"/searches/{made.number}")

    def _refuse_too_old(self, since: datetime) -> None:
        """Raise a problem where deliveries of that time may not be kept any more."""
        kept_days = self._parts.settings.deliveries_keep_days
        if since < datetime.now(UTC) - (timedelta(days=kept_days) - MARGIN):
            why = f"Deliveries are kept for {kept_days} days: what was sent before {kept_days - 1} days is not known."
            raise Problem(SEARCH, errors=(FieldError(why, pointer_to("from")),))


async def list_searches(searches: MissingSearches, query: bytes, tenant: str, page_max: int) -> dict[str, Any]:
    """Return a page of searches, newest first. Raises Problem (400)."""
    request = PageRequest(query, "searches", (), tenant, page_max)
    after = request.after("number")
    found = await searches.newest(request.limit + 1, None if after is None else after[0])
    return request.page([search_document(each) for each in found], [(each.number,) for each in found])


def search_document(search: StoredSearch) -> dict[str, Any]:
    """Return a search, and the plan of what it found."""
    document = msgspec.structs.asdict(search)
    for name in ("tenant", "request_digest"):
        del document[name]
    document["plan"] = document["ordered"] = None
    if search.plan is not None:
        document["plan"] = plan_document(search.plan.plan(), search.rate_per_second, None)
        del document["plan"]["redrive"]  # its number is the search's
        document["plan"]["undispatched"] = search.plan.undispatched
        document["ordered"] = search.plan.ordered
    return document


def _too_many_searches() -> Problem:
    return Problem("too-many-searches", f"It has {WAITING_MAX} that wait or are under way.")


def _repeated_search(known: StoredSearch, digest: bytes | None) -> Changed:
    if known.request_digest != digest:
        raise Problem("id-reused", "The Idempotency-Key was used for another search.")
    return Changed(200, search_document(known))
