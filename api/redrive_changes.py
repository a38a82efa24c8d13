"""Redrives over HTTP: planned, and ordered once where that is asked for; looked up, and stopped.

An order is recorded as an operator's action before it is given, with the token as actor, and with the number of its
deliveries, which may be another than that of the plan by then. With an `Idempotency-Key` its operation's id follows
from the tenant and the key, so that a request that comes again finds the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

from api.access_tokens import AccessToken
from api.endpoint_bodies import body_values
from api.endpoint_changes import Changed, EndpointParts, actor_of, by_name, keyed_id
from api.endpoint_fields import ACTION
from api.endpoint_pages import PageRequest
from api.redrive_bodies import KIND, AskedRedrive, read_redrive
from database.connector import Database
from database.errors import ConstraintRefused
from deliveries.endpoint_store import EndpointStore
from deliveries.errors import NothingToRedrive, TooManyRedrives
from deliveries.redrive.orders import RedriveOrder, Redrives, StoredRedrive
from deliveries.redrive.recovery import failing_since
from deliveries.redrive.redrive_plan import PlannedGroup, RedrivePlan
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryRows
from runtime.logging import get_logger
from server.problems import Problem

log = get_logger(__name__)

RUNNING_MAX: Final = 20
"""Orders of a tenant that are under way at a time."""


class RedriveChanges:
    """The orders of one request, for the tenant of its token."""

    def __init__(self, parts: EndpointParts, database: Database, store: EndpointStore, token: AccessToken) -> None:
        self._parts = parts
        self._database = database
        self._store = store
        self._token = token
        self._redrives = Redrives(database, token.tenant)

    async def ask(self, document: Mapping[str, Any], key: bytes | None) -> Changed:
        """Plan, and order once for each Idempotency-Key. Raises Problem, and the errors of `endpoint_failures`."""
        asked = read_redrive(document)
        operation_id = uuid4() if key is None else keyed_id(key, KIND, self._token.tenant)
        digest = None if key is None else asked.digest()
        if asked.execute and (known := await self._redrives.find_operation(operation_id)) is not None:
            return _repeated(known, digest)
        selection = await self._selection(asked)
        plan = await self._redrives.plan(selection)
        nothing_given = Changed(200, plan_document(plan, asked.rate_per_second, None))
        if not asked.execute:
            return nothing_given
        if not plan.deliveries:  # where the same request was under way a second time, its order has them
            known = await self._redrives.find_operation(operation_id)
            return nothing_given if known is None else _repeated(known, digest)
        if await self._redrives.running() >= RUNNING_MAX:
            raise _too_many_redrives()
        order = RedriveOrder(
            operation_id=operation_id, kind=asked.kind, selection=msgspec.to_builtins(selection), reason=asked.reason,
            ordered_by=actor_of(self._token), rate_per_second=asked.rate_per_second, request_digest=digest,
        )  # fmt: skip
        try:
            await self._database.require_writable(self._token.tenant)
            number = await self._redrives.order(order, selection, RUNNING_MAX, partial(self._record, order))
        except (NothingToRedrive, TooManyRedrives, ConstraintRefused) as error:
            if (known := await self._redrives.find_operation(operation_id)) is not None:
                return _repeated(known, digest)
            if isinstance(error, ConstraintRefused):
                raise
            if isinstance(error, TooManyRedrives):  # others came at once
                raise _too_many_redrives() from None
            plan = await self._redrives.plan(selection)  # another order has them by now
            return Changed(200, plan_document(plan, asked.rate_per_second, None))
        stored = await self._redrives.find(number)
        log.info("redrive.ordered", kind=stored.kind, deliveries=stored.deliveries, token=self._token.prefix)
        return Changed(201, plan_document(plan, asked.rate_per_second, stored), f"/redrives/{number}")

    async def stop(self, number: int, document: Mapping[str, Any]) -> Changed:
        """Stop an order, unless it has ended already. Raises UnknownRedrive, Problem."""
        reason = body_values(document, by_name(*ACTION), KIND).get("reason", "It is not wanted any more.")
        if (await self._redrives.find(number)).state == "running":
            await self._database.require_writable(self._token.tenant)
            await self._parts.record("deliveries.stop", str(number), reason, actor_of(self._token), uuid4())
            await self._redrives.stop(number)
            log.info("redrive.stopped", number=number, token=self._token.prefix)
        return Changed(200, await find_redrive(self._redrives, number))

    async def _selection(self, asked: AskedRedrive) -> RedriveSelection:
        """Return what is asked for. Raises UnknownEndpoint, UnknownDelivery."""
        endpoint_id = asked.filter.endpoint_id
        if endpoint_id is not None:
            await self._store.find(endpoint_id)
        rows = DeliveryRows(self._database, self._token.tenant)
        for delivery in asked.delivery_ids:
            await rows.find(delivery)
        if asked.kind == "recover" and asked.since is None and endpoint_id is not None:
            return asked.selection(await failing_since(self._database, endpoint_id, self._token.tenant))
        return asked.selection()

    async def _record(self, order: RedriveOrder, contents: Mapping[UUID, int]) -> None:
        target = str(next(iter(contents))) if len(contents) == 1 else f"{len(contents)} endpoints"
        why = f"{order.reason} [{sum(contents.values())} deliveries; {order.rate_per_second} a second]"
        await self._parts.record(f"deliveries.{order.kind}", target, why, order.ordered_by, order.operation_id)


async def list_redrives(redrives: Redrives, query: bytes, tenant: str, page_max: int) -> dict[str, Any]:
    """Return a page of orders, newest first. Raises Problem (400)."""
    request = PageRequest(query, "redrives", (), tenant, page_max)
    after = request.after("number")
    found = await redrives.newest(request.limit + 1, None if after is None else after[0])
    return request.page([redrive_document(each) for each in found], [(each.number,) for each in found])


async def find_redrive(redrives: Redrives, number: int) -> dict[str, Any]:
    """Return an order, and what was recorded of its deliveries since. Raises UnknownRedrive."""
    return {**redrive_document(await redrives.find(number)), "recorded": await redrives.recorded(number)}


def redrive_document(redrive: StoredRedrive) -> dict[str, Any]:
    """Return an order, and how far it is."""
    document = msgspec.structs.asdict(redrive)
    del document["request_digest"]
    return document


def plan_document(plan: RedrivePlan, rate_per_second: int, ordered: StoredRedrive | None) -> dict[str, Any]:
    """Return a plan, and the order that was given."""
    return {
        "deliveries": plan.deliveries,
        "rate_per_second": rate_per_second,
        "seconds": round(plan.seconds(rate_per_second), 1),
        "groups": [_group_document(each) for each in plan.groups],
        "left_out": dict(plan.left_out),
        "examples": plan.examples,
        "redrive": None if ordered is None else redrive_document(ordered),
    }


def _group_document(group: PlannedGroup) -> dict[str, Any]:
    document = msgspec.structs.asdict(group)
    del document["left_out"]  # None of a plan's own
    return document


def _too_many_redrives() -> Problem:
    return Problem("too-many-redrives", f"It has {RUNNING_MAX} that are running.")


def _repeated(known: StoredRedrive, digest: bytes | None) -> Changed:
    if known.request_digest != digest:
        raise Problem("id-reused", "The Idempotency-Key was used for another redrive.")
    nothing = RedrivePlan((), ())
    document = plan_document(nothing, known.rate_per_second, known)
    return Changed(200, {**document, "deliveries": known.deliveries})
