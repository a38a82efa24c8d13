"""The OpenAPI 3.1 document of the API for readers, made from its resources and the problems.

Served at `/openapi.json`; committed as docs/reference/openapi-read.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from api.endpoint_openapi import endpoint_paths, endpoint_schemas
from api.parameters import POSITIONS_MAX, TEXT_MAX_CHARACTERS
from api.read_queries import PAGE_DEFAULT
from api.redrive_openapi import redrive_paths, redrive_schemas
from api.resources import RESOURCES, Resource
from projections.listing import Kind, ListingColumn
from server.problems import URN, FieldError, ParameterError, endpoint_kinds, reader_kinds

Document = dict[str, Any]

_REF: Final = "#/components/schemas/"
_DESCRIPTION: Final = """\
What the read models show, for readers with a token (`plant tokens add`).

A listing is ordered by its key. `next` of a page is the cursor of the page behind it, null on the last one. An answer's
entity tag changes with its bytes: send it as If-None-Match, and an answer that is the same is 304 without a body.

To read your own writes, name the record's position in `at-least`: the answer shows the record, or says where the read
model is after the time that `Prefer: wait=N` allows (10 s without it). A record that waits behind a dead letter of its
entity counts as reached, though no answer shows it yet.

Endpoints of webhooks are added, changed and looked after here too, with a token of the scope `endpoints`.
"""
_TYPES: Final[dict[Kind, Document]] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "time": {"type": "string", "format": "date-time"},
    "day": {"type": "string", "format": "date"},
    "uuids": {"type": "array", "items": {"type": "string", "format": "uuid"}},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "texts": {"type": "array", "items": {"type": "string"}},
}
_NO_ROW: Final = "no-row"
_OF_A_LISTING: Final = "cursor"
_PUBLIC: Final = ("malformed-request", "slow-request", "headers-too-large", "overloaded", "unexpected")


def reader_openapi_text() -> str:
    """Return the document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(reader_openapi()), indent=2).decode() + "\n"


def reader_openapi() -> Document:
    """Return the document as data."""
    paths: Document = {}
    for resource in RESOURCES.values():
        if resource.is_search:
            paths[f"/{resource.name}"] = {"get": _search(resource)}
            continue
        if resource.listing is None:
            paths[f"/{resource.name}/{{{resource.key_name}}}"] = {"get": _of_a_key(resource)}
            continue
        paths[f"/{resource.name}"] = {"get": _listing(resource)}
        if resource.has_rows:
            paths[f"/{resource.name}/{{{resource.listing.key[0]}}}"] = {"get": _single(resource)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Plant, for readers", "version": "1", "description": _DESCRIPTION},
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "tags": [{"name": "read models"}, {"name": "endpoints"}, {"name": "process"}],
        "security": [{"token": []}],
        "paths": paths | endpoint_paths() | redrive_paths() | _process_paths(),
        "components": {
            "schemas": _schemas(),
            "parameters": _shared_parameters(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`plant tokens add`"}},
        },
    }


def _listing(resource: Resource) -> Document:
    assert resource.listing is not None, "called for listings"
    filters = []
    for each in resource.listing.filters:
        schema = dict(_TYPES[each.kind])
        if each.choices:
            schema["enum"] = list(each.choices)
        elif each.kind == "text":
            schema |= {"minLength": 1, "maxLength": TEXT_MAX_CHARACTERS}
        filters.append(_query_parameter(each.name, each.meaning, schema))
    parameters = [
        *_shared("Limit", "Cursor"),
        *filters,
        *_extra(resource),
        *_shared("AtLeast", "Prefer", "IfNoneMatch"),
    ]
    kinds = [kind for kind in reader_kinds() if kind != _NO_ROW]
    return _operation(resource, resource.summary, parameters, f"{_title(resource)}Page", kinds)


def _search(resource: Resource) -> Document:
    parameters = [*_shared("Limit", "Cursor"), *_extra(resource), *_shared("AtLeast", "Prefer", "IfNoneMatch")]
    kinds = [kind for kind in reader_kinds() if kind != _NO_ROW]
    return _operation(resource, resource.summary, parameters, f"{_title(resource)}Page", kinds)


def _single(resource: Resource) -> Document:
    assert resource.listing is not None, "called for listings"
    parameters = [_path_parameter(resource.listing.key[0]), *_extra(resource)]
    parameters += _shared("AtLeast", "Prefer", "IfNoneMatch")
    kinds = [kind for kind in reader_kinds() if kind != _OF_A_LISTING]
    return _operation(resource, f"One of {resource.name}", parameters, _title(resource), kinds)


def _of_a_key(resource: Resource) -> Document:
    parameters = [_path_parameter(resource.key_name), *_shared("Limit", "Cursor"), *_extra(resource)]
    parameters += _shared("AtLeast", "Prefer", "IfNoneMatch")
    kinds = [kind for kind in reader_kinds() if kind != _NO_ROW]
    return _operation(resource, resource.summary, parameters, f"{_title(resource)}Page", kinds)


def _operation(
    resource: Resource, summary: str, parameters: list[Document], schema: str, kinds: Iterable[str]
) -> Document:
    content = {"application/json": {"schema": {"$ref": _REF + schema}}}
    etag = {"etag": {"description": "Changes with the body.", "schema": {"type": "string"}}}
    return {
        "summary": summary,
        "description": f"Read model `{resource.model}`; scope `read:{resource.name}`, or `read`.",
        "tags": ["read models"],
        "parameters": parameters,
        "responses": {
            "200": {"description": "The rows.", "headers": etag, "content": content},
            "304": {"description": "The reader has it already.", "headers": etag},
            **_problem_responses(kinds),
        },
    }


def _problem_responses(kinds: Iterable[str]) -> Document:
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(reader_kinds()[kind][0], []).append(kind)
    return {str(status): _problem(status, of_status) for status, of_status in sorted(by_status.items())}


def _problem(status: int, kinds: list[str]) -> Document:
    described = " ".join(f"`{kind}`: {reader_kinds()[kind][1]}." for kind in kinds)
    types = {"properties": {"type": {"enum": [URN + kind for kind in kinds]}, "status": {"const": status}}}
    schema = {"allOf": [{"$ref": f"{_REF}Problem"}, types]}
    return {"description": described, "content": {"application/problem+json": {"schema": schema}}}


def _process_paths() -> Document:
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    yes = {"description": "Yes.", "content": {"application/json": {"schema": status}}}
    this = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}

    def watched(summary: str, answer: Document, *kinds: str) -> Document:
        responses = {"200": answer, **_problem_responses((*_PUBLIC, *kinds))}
        return {"get": {"summary": summary, "tags": ["process"], "security": [], "responses": responses}}

    return {
        "/livez": watched("Whether the event loop turns", yes),
        "/readyz": watched("Whether readers can be answered", yes, "starting"),
        "/openapi.json": watched("This document", this),
    }


def _schemas() -> Document:
    schemas: Document = {}
    for resource in RESOURCES.values():
        title, row = _title(resource), {"$ref": _REF + _title(resource)}
        schemas[title] = _row(resource.columns)
        items = {"items": {"type": "array", "items": row}}
        page = items | {"next": {"type": ["string", "null"], "description": "The cursor of the next page."}}
        schemas[f"{title}Page"] = {"type": "object", "properties": page, "required": ["items", "next"]}
    _, made = msgspec.json.schema_components([ParameterError, FieldError], ref_template=_REF + "{name}")
    return dict(
        sorted((schemas | endpoint_schemas() | redrive_schemas() | made | {"Problem": _problem_schema()}).items())
    )


def _row(columns: tuple[ListingColumn, ...]) -> Document:
    properties = {}
    for each in columns:
        schema = dict(_TYPES[each.kind])
        if each.nullable:
            schema["type"] = [schema["type"], "null"]
        properties[each.name] = schema | {"description": each.meaning}
    return {"type": "object", "properties": properties, "required": [each.name for each in columns]}


def _problem_schema() -> Document:
    position = {
        "topic": {"type": "string"},
        "partition": {"type": "integer"},
        "at_least": {"type": "integer", "description": "The offset that was asked for."},
        "next_offset": {"type": "integer", "description": "The offset that the read model applies next."},
    }
    properties = {
        "type": {"type": "string", "enum": [URN + kind for kind in {**reader_kinds(), **endpoint_kinds()}]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"anyOf": [{"$ref": f"{_REF}ParameterError"}, {"$ref": f"{_REF}FieldError"}]},
        },
        "read_model": {"type": "string", "description": "With `not-caught-up`: the read model."},
        "positions": {
            "type": "array",
            "description": "With `not-caught-up`: where it is, for each position that it has not reached.",
            "items": {"type": "object", "properties": position, "required": list(position)},
        },
    }
    return {
        "type": "object",
        "description": "RFC 9457 problem details.",
        "properties": properties,
        "required": ["type", "title", "status"],
    }


def _shared_parameters() -> Document:
    at_least = {
        "type": "array",
        "maxItems": POSITIONS_MAX,
        "items": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,249}/[0-9]{1,10}/[0-9]{1,19}$"},
    }
    return {
        "Limit": _query_parameter(
            "limit", f"Most rows of the page; {PAGE_DEFAULT} without it.", {"type": "integer", "minimum": 1}
        ),
        "Cursor": _query_parameter("cursor", "`next` of the page before, with the same filters.", {"type": "string"}),
        "AtLeast": _query_parameter(
            "at-least", "topic/partition/offset of a record that the answer has to show; may be repeated.", at_least
        ),
        "Prefer": {
            "name": "prefer",
            "in": "header",
            "description": "`wait=N`: how many seconds to wait for `at-least` (RFC 7240).",
            "schema": {"type": "string"},
        },
        "IfNoneMatch": {
            "name": "if-none-match",
            "in": "header",
            "description": "Entity tags of answers that the reader has.",
            "schema": {"type": "string"},
        },
    }


def _shared(*names: str) -> list[Document]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _extra(resource: Resource) -> list[Document]:
    parameters = []
    for each in resource.extra:
        schema = dict(_TYPES[each.kind])
        if each.choices:
            schema["enum"] = list(each.choices)
        if each.repeated:
            schema = {"type": "array", "items": schema}
        parameters.append(_query_parameter(each.name, each.meaning, schema))
    return parameters


def _query_parameter(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path_parameter(name: str) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": _TYPES["uuid"]}


def _title(resource: Resource) -> str:
    """Return the name of a resource's row.

    >>> _title(RESOURCES["agents"]), _title(RESOURCES["activity"])
    ('AgentsRow', 'ActivityRow')
    """
    return f"{resource.name.capitalize()}Row"
