"""The parts that OpenAPI documents of endpoints, deliveries and redrives are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from api.body_fields import BodyField
from api.endpoint_pages import PAGE_ROWS_DEFAULT
from server.problems import URN, endpoint_kinds

Document = dict[str, Any]

_REF: Final = "#/components/schemas/"
A_UUID: Final[Document] = {"type": "string", "format": "uuid"}
A_TIME: Final[Document] = {"type": "string", "format": "date-time"}
A_TEXT: Final[Document] = {"type": "string"}
AN_INT: Final[Document] = {"type": "integer"}
_EVERYWHERE: Final = (
    "malformed-request", "parameter", "unauthorized", "scope", "slow-request", "too-many-requests", "body-too-large",
    "headers-too-large", "unexpected", "database-unavailable", "overloaded", "query-timeout", "starting", "method",
    "not-found",
)  # fmt: skip
BODY_KINDS: Final = ("malformed-body", "media-type", "endpoint", "log-unavailable", "misconfigured")
KEY_PARAMETER: Final[Document] = {
    "name": "idempotency-key",
    "in": "header",
    "description": "1 to 200 visible ASCII characters: a request that comes again with it does nothing a second time.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}


def operation_of(
    summary: str,
    status: str,
    schema: str | None,
    kinds: Iterable[str],
    *,
    body: tuple[str, bool] | None = None,
    parameters: Sequence[Document] = (),
) -> Document:
    """Return an operation; `body` is its schema, and whether it has to be there."""
    operation: Document = {
        "summary": summary,
        "description": "Scope `endpoints`.",
        "tags": ["endpoints"],
        "responses": {status: response_of("Done.", schema), **_problems((*_EVERYWHERE, *kinds))},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        content = {"application/json": {"schema": {"$ref": _REF + body[0]}}}
        operation["requestBody"] = {"required": body[1], "content": content}
    return operation


def response_of(description: str, schema: str | None) -> Document:
    """Return an answer of a schema, or without a body."""
    if schema is None:
        return {"description": description}
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _REF + schema}}}}


def _problems(kinds: Iterable[str]) -> Document:
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(endpoint_kinds()[kind][0], []).append(kind)
    return {str(status): _problem(status, of_status) for status, of_status in sorted(by_status.items())}


def _problem(status: int, kinds: list[str]) -> Document:
    described = " ".join(f"`{kind}`: {endpoint_kinds()[kind][1]}." for kind in kinds)
    types = {"properties": {"type": {"enum": [URN + kind for kind in kinds]}, "status": {"const": status}}}
    schema = {"allOf": [{"$ref": f"{_REF}Problem"}, types]}
    return {"description": described, "content": {"application/problem+json": {"schema": schema}}}


def object_of(properties: Document) -> Document:
    """Return the schema of an object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def page_of(of: str) -> Document:
    """Return the schema of a page."""
    following = {"type": ["string", "null"], "description": "The cursor of the next page."}
    return object_of({"items": {"type": "array", "items": {"$ref": _REF + of}}, "next": following})


def body_of(fields: Iterable[BodyField], required: Sequence[str] = ()) -> Document:
    """Return the schema of a body."""
    properties = {each.name: {**each.schema, "description": each.meaning} for each in fields}
    schema: Document = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def or_null(schema: Document) -> Document:
    """Return a schema that null fits too."""
    return {**schema, "type": [schema["type"], "null"]}


def in_path(description: str, name: str = "id", schema: Document = A_UUID) -> Document:
    """Return the parameter of a path."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def page_limit() -> Document:
    """Return the parameter `limit`."""
    return in_query("limit", f"Most rows of the page; {PAGE_ROWS_DEFAULT} without it.", type="integer", minimum=1)


def page_cursor() -> Document:
    """Return the parameter `cursor`."""
    return in_query("cursor", "`next` of the page before, with the same filters.")


def in_query(name: str, description: str, **schema: Any) -> Document:
    """Return a parameter of a query."""
    own = {"type": "string", **{key: list(value) if key == "enum" else value for key, value in schema.items()}}
    return {"name": name, "in": "query", "description": description, "schema": own}
