"""The schema registry's part of the OpenAPI document, by hand.

Litestar's own schema of these routes is another contract: every answer is a string in `application/json`, a version is
any string, the error of 400 is Litestar's instead of Confluent's, those of 404 and 422 are missing, so are 304,
`if-none-match`, `etag` and `cache-control`; refused writes are operations. Answers are encoded bytes with an ETag, so
it can't see their types. To declare all of it at each route would take as many lines as this file has.
"""

from __future__ import annotations

from typing import Final

from ingress.contracts.openapi_components import Json, problem_responses
from ingress.contracts.registry_routes import COMPATIBILITY, REGISTRY_TYPE

_TEXT: Final[Json] = {"type": "string"}
_NUMBER: Final[Json] = {"type": "integer", "minimum": 1}
_SCHEMA: Final[Json] = {"type": ["object", "array", "string"], "description": "An Avro schema."}
_LEVEL: Final[Json] = {"compatibilityLevel": {"const": COMPATIBILITY}}
_MODE: Final[Json] = {"mode": {"const": "READONLY"}}
_FULL: Final[Json] = {"subject": _TEXT, "version": _NUMBER, "id": _NUMBER, "schema": _TEXT}

_SUBJECT: Final[Json] = {
    "name": "subject",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}
_VERSION: Final[Json] = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "A number from 1, or `latest`.",
    "schema": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, {"const": "latest"}]},
}
_ID: Final[Json] = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
}
_PREFIX: Final[Json] = {"name": "subjectPrefix", "in": "query", "required": False, "schema": _TEXT}


def registry_paths() -> Json:
    """Return the operations of each path."""
    return {
        "/subjects": {"get": _get("Every subject", _list(_TEXT), _PREFIX)},
        "/subjects/{subject}": {
            "post": _post("Find the version that has a schema", _object(_FULL), {"404": _NOT_FOUND}),
        },
        "/subjects/{subject}/versions": {
            "get": _get("The numbers of a subject's versions", _list(_NUMBER), _SUBJECT),
            "post": _post("The id of a schema that is registered already", _object({"id": _NUMBER}), {}),
        },
        "/subjects/{subject}/versions/{version}": {"get": _get("One version", _object(_FULL), _SUBJECT, _VERSION)},
        "/subjects/{subject}/versions/{version}/schema": {
            "get": _get("One version's schema alone", _SCHEMA, _SUBJECT, _VERSION)
        },
        "/schemas/ids/{id}": {"get": _get("The schema of an id", _object({"schema": _TEXT}), _ID)},
        "/schemas/ids/{id}/schema": {"get": _get("The schema of an id, alone", _SCHEMA, _ID)},
        "/schemas/ids/{id}/subjects": {"get": _get("The subjects of an id", _list(_TEXT), _ID)},
        "/schemas/ids/{id}/versions": {
            "get": _get("The versions of an id", _list(_object({"subject": _TEXT, "version": _NUMBER})), _ID)
        },
        "/schemas/types": {"get": _get("The kinds of schema", _list({"const": "AVRO"}))},
        "/config": {"get": _get("The rule of evolution", _object(_LEVEL))},
        "/config/{subject}": {"get": _get("A subject's rule of evolution", _object(_LEVEL), _SUBJECT)},
        "/mode": {"get": _get("Whether schemas can be written", _object(_MODE))},
        "/mode/{subject}": {"get": _get("Whether a subject's schemas can be written", _object(_MODE), _SUBJECT)},
    }


def _get(summary: str, schema: Json, *parameters: Json) -> Json:

    responses = {
        "200": _answer("Found.", schema, cached=True),
        "304": {"description": "What you have is still right.", "headers": {"etag": {"schema": _TEXT}}},
    }
    in_path = [parameter for parameter in parameters if parameter["in"] == "path"]
    if in_path:
        responses["404"] = _NOT_FOUND
    if _VERSION in in_path:
        responses["422"] = _error("42202: no version has this form.")
    header = {"name": "if-none-match", "in": "header", "required": False, "schema": _TEXT}
    return {"summary": summary, "tags": ["registry"], "parameters": [*parameters, header], "responses": responses}


def _post(summary: str, schema: Json, more: Json) -> Json:
    lookup = {
        "type": "object",
        "properties": {
            "schema": {"type": "string", "description": "The schema as JSON text."},
            "schemaType": {"type": "string", "default": "AVRO"},
            "references": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["schema"],
    }
    return {
        "summary": summary,
        "tags": ["registry"],
        "parameters": [_SUBJECT],
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": lookup} for kind in (REGISTRY_TYPE, "application/json")},
        },
        "responses": {
            "200": _answer("Found.", schema),
            "400": _error("400: the body is no lookup."),
            **problem_responses(("body-too-large",)),
            **more,
            "422": _error("42201: no Avro schema; 42205: the registry is read-only."),
        },
    }


def _answer(description: str, schema: Json, *, cached: bool = False) -> Json:
    answer: Json = {"description": description, "content": {REGISTRY_TYPE: {"schema": schema}}}
    if cached:
        answer["headers"] = {name: {"required": True, "schema": _TEXT} for name in ("etag", "cache-control")}
    return answer


def _error(description: str) -> Json:
    return {
        "description": description,
        "content": {REGISTRY_TYPE: {"schema": {"$ref": "#/components/schemas/RegistryError"}}},
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


_NOT_FOUND: Final = _error("40401: no such subject; 40402: no such version; 40403: no such schema.")
