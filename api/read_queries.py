"""What a request asks for, as a statement with its arguments; made from its path and parameters alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from api.agent_searches import read_search
from api.cursors import decode_cursor, encode_cursor
from api.parameters import Parameters, read_count, read_filters, read_value, single
from api.resources import RESOURCES, Resource
from database.connector import fetch_rows
from projections.listing import Listing, ListingColumn
from projections.marketplace.agent_search import PAGE_MAX, AgentSearch
from projections.marketplace.queries import find_hireable_agents
from server.problems import Problem

PAGE_DEFAULT: Final = 100
AT_LEAST: Final = "at-least"
_OF_A_PAGE: Final = frozenset({"limit", "cursor"})


class ReadRows(NamedTuple):
    """What a query found: one row more than the page has, where there are more; a search has its own cursor."""

    rows: Sequence[Any]
    search_cursor: str | None = None


class ReadQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A statement and its arguments. `limit` is the page's size, None where the answer is a single row.

    `filters` are the texts that a cursor of the listing belongs to.
    """

    resource: Resource
    statement: str = ""
    arguments: tuple[object, ...] = ()
    search: AgentSearch | None = None
    search_cursor: str | None = None
    single_row: bool = False
    limit: int | None = None
    filters: dict[str, str] = {}

    async def run(self, connection: AsyncConnection) -> ReadRows:
        """Return the rows, in a transaction that has the reader's tenant. Raises what the database raises."""
        if self.search is not None:
            assert self.limit is not None, "a search has pages"
            page = await find_hireable_agents(connection, self.search, limit=self.limit, cursor=self.search_cursor)
            return ReadRows([each._asdict() for each in page.agents], page.next_cursor)
        return ReadRows(await fetch_rows(connection, self.statement, *self.arguments))

    def next_cursor(self, rows: ReadRows, tenant: str) -> str | None:
        """Return the cursor of the page behind this one; None where it is the last."""
        if self.search is not None:
            own = rows.search_cursor
            return None if own is None else encode_cursor([own], self.resource.name, self.filters, tenant)
        assert self.limit is not None, "asked of pages alone"
        return self._cursor_after(rows.rows[self.limit - 1], tenant) if len(rows.rows) > self.limit else None

    def _cursor_after(self, row: Any, tenant: str) -> str:
        """Return the cursor behind a row of the page."""
        listing = self.resource.listing
        key = [row[self.resource.place]] if listing is None else [_as_text(row[name]) for name in listing.key]
        return encode_cursor(key, self.resource.name, self.filters, tenant)


def known_parameters(resource: Resource, *, rows: bool) -> frozenset[str]:
    """Return the names of the parameters of a listing, or of a single row of it."""
    names = resource.extra_names | {AT_LEAST}
    if resource.listing is None:
        return names | _OF_A_PAGE
    if rows:
        return names
    return names | _OF_A_PAGE | {each.name for each in resource.listing.filters}


def is_path(resource: Resource, segments: list[str]) -> bool:
    """Return whether there is something under the segments of a path behind the resource's name."""
    if resource.is_search:
        return not segments
    if resource.listing is None:
        return len(segments) == 1
    return not segments or (len(segments) == 1 and resource.has_rows)


def read_query_of(
    resource: Resource, segments: list[str], parameters: Parameters, now: datetime, tenant: str, page_max: int
) -> ReadQuery:
    """Return what a request asks for. Raises Problem: parameter, cursor (400)."""
    if resource.is_search:
        return _search(resource, parameters, tenant, page_max)
    arguments = resource.arguments(parameters, now)
    if resource.listing is None:
        key = read_value(resource.key_name, "uuid", segments[0])
        return _page_of_key(resource, key, arguments, parameters, tenant, page_max)
    if segments:
        (name,) = resource.listing.key
        key = read_value(name, resource.listing.kind_of(name), segments[0])
        statement = _statement_of_one(resource.name)
        return ReadQuery(resource=resource, statement=statement, arguments=(*arguments, key), single_row=True)
    return _page(resource, resource.listing, arguments, parameters, tenant, page_max)


def _search(resource: Resource, parameters: Parameters, tenant: str, page_max: int) -> ReadQuery:
    texts = _texts(parameters)
    page_max = min(page_max, PAGE_MAX)
    limit = read_count(parameters, "limit", min(PAGE_DEFAULT, page_max), page_max)
    cursor = single(parameters, "cursor")
    own = None if cursor is None else decode_cursor(cursor, resource.name, texts, tenant, 1)[0]
    return ReadQuery(resource=resource, search=read_search(parameters), search_cursor=own, limit=limit, filters=texts)


def _page_of_key(
    resource: Resource, key: object, arguments: tuple[object, ...], parameters: Parameters, tenant: str, page_max: int
) -> ReadQuery:
    limit = read_count(parameters, "limit", min(PAGE_DEFAULT, page_max), page_max)
    texts = _texts(parameters) | {resource.key_name: str(key)}
    cursor = single(parameters, "cursor")
    after = None if cursor is None else decode_cursor(cursor, resource.name, texts, tenant, 1)[0]
    arguments = (key, *arguments, after, limit + 1)  # one more says whether there is a next page
    return ReadQuery(resource=resource, statement=resource.statement, arguments=arguments, limit=limit, filters=texts)


def _texts(parameters: Parameters) -> dict[str, str]:
    """Return the parameters that a cursor belongs to."""
    own = {name: found for name, found in parameters.items() if name not in _OF_A_PAGE and name != AT_LEAST}
    return {name: "\x00".join(found) for name, found in own.items()}


def _page(
    resource: Resource,
    listing: Listing,
    arguments: tuple[object, ...],
    parameters: Parameters,
    tenant: str,
    page_max: int,
) -> ReadQuery:
    values = read_filters(parameters, listing.filters)
    limit = read_count(parameters, "limit", min(PAGE_DEFAULT, page_max), page_max)
    texts = _texts(parameters)
    cursor = single(parameters, "cursor")
    after: list[object] = []
    if cursor is not None:
        key = decode_cursor(cursor, resource.name, texts, tenant, len(listing.key))
        after = [_key_value(listing, name, text) for name, text in zip(listing.key, key, strict=True)]
    statement = _statement_of_page(resource.name, tuple(values), after=cursor is not None)
    return ReadQuery(
        resource=resource,
        statement=statement,
        arguments=(*arguments, *values.values(), *after, limit + 1),  # one more says whether there is a next page
        limit=limit,
        filters=texts,
    )


def _key_value(listing: Listing, name: str, text: str) -> object:
    try:
        return read_value(name, listing.kind_of(name), text)
    except Problem:
        raise Problem("cursor", "It was not made here.") from None


@cache
def _statement_of_one(name: str) -> str:
    return _listing(name).one()


@cache
def _statement_of_page(name: str, filters: tuple[str, ...], *, after: bool) -> str:
    return _listing(name).page(filters, after=after)


def _listing(name: str) -> Listing:
    listing = RESOURCES[name].listing
    assert listing is not None, "asked of listings alone"
    return listing


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def as_document(row: Any, columns: tuple[ListingColumn, ...]) -> dict[str, object]:
    """Return a row as readers get it."""
    return {each.name: row[each.name] for each in columns}
