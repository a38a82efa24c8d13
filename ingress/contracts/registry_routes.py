"""A Confluent Schema Registry, read-only: the requests of stock deserializers, answered from the active registry.

Answers, error codes and the content type are Confluent's. Schemas by id never change, so caches may keep them.
Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, Router, get, post, route
from litestar.enums import HttpMethod
from litestar.params import FromPath

from schemas.generation import Schema
from schemas.registry import Registry, Version, is_same_schema, without_limits

REGISTRY_TYPE: Final = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY: Final = "FULL_TRANSITIVE"
FOREVER: Final = "public, max-age=31536000, immutable"
A_MINUTE: Final = "public, max-age=60"
"""A new release of Plant may add versions."""
LOOKUP_MAX_BYTES: Final = 256 * 1024
BRACKETS_MAX: Final = 10_000
"""Most objects and arrays of a schema that is asked for: a Python object of each is made in one step of the loop."""

_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_NUMBER_MAX: Final = 2**31 - 1
_SHOWN_MAX: Final = 200
_READ_ONLY: Final = "Plant's schema registry is read-only: schemas come with a release (docs/how-to/evolve-a-schema.md)"


RegistryRequest: TypeAlias = Request[Any, Any, Any]


class RegistryRefusal(Exception):
    """An answer in Confluent's error format; the first three digits of `code` are the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = int(str(code)[:3])
        self.message = message


class Lookup(msgspec.Struct, frozen=True):
    """The body of a schema lookup; other fields are skipped."""

    schema: str
    schema_type: str = msgspec.field(name="schemaType", default="AVRO")
    references: msgspec.Raw = msgspec.Raw(b"[]")

    def is_plain_avro(self) -> bool:
        """Return whether the schema is Avro without references, as all of ours are."""
        return self.schema_type in ("AVRO", "") and b"".join(bytes(self.references).split()) in (b"[]", b"null")


class SubjectCatalogue:
    """The active registry as Confluent's data. Raises RegistryRefusal for what is not there."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def subjects(self, prefix: str = "") -> list[str]:
        """Return every subject with this prefix, sorted."""
        return sorted({version.subject for version in self._registry.versions if version.subject.startswith(prefix)})

    def history(self, subject: str) -> list[Version]:
        """Return the subject's versions, oldest first."""
        history = self._registry.history(subject)
        if not history:
            shown = subject.replace("%2F", "/")[:_SHOWN_MAX]
            raise RegistryRefusal(40401, f"Subject '{shown}' not found.")
        return history

    def version(self, subject: str, wanted: str) -> Version:
        """Return one version: by its number, or the newest for `latest` and -1."""
        history = self.history(subject)
        if wanted in ("latest", "-1"):
            return history[-1]
        number = _number(wanted)
        if not number:
            raise RegistryRefusal(
                42202,
                f"The specified version '{wanted[:_SHOWN_MAX]}' is not a valid version id. Allowed values are between"
                f' [1, {_NUMBER_MAX}] and the string "latest"',
            )
        for version in history:
            if version.version == number:
                return version
        raise RegistryRefusal(40402, f"Version {number} not found.")

    def by_id(self, wanted: str) -> Version:
        """Return the version that an id on the wire stands for."""
        number = _number(wanted)
        known = self._registry.get(number) if number is not None else None
        if known is None:
            raise RegistryRefusal(40403, f"Schema {wanted[:_SHOWN_MAX]} not found")
        return known.version

    def find(self, subject: str, body: bytes) -> Version | None:
        """Return the subject's newest version that has the schema of a lookup's body, with or without limits."""
        lookup, schema = _read_lookup(body)
        if not lookup.is_plain_avro():
            return None
        for known in reversed(self._registry.history(subject)):
            if is_same_schema(schema, known.schema) or is_same_schema(schema, without_limits(known.schema)):
                return known
        return None

    def full(self, version: Version) -> dict[str, object]:
        """Return a version with its schema."""
        return {
            "subject": version.subject,
            "version": version.version,
            "id": self.wire_id(version),
            "schema": schema_json(version.schema),
        }

    def wire_id(self, version: Version) -> int:
        """Return the id that records carry."""
        return self._registry.wire_id(version)


def schema_json(schema: Schema) -> str:
    """Return a schema as the JSON text that stands inside the answers."""
    return msgspec.json.encode(schema).decode()


def registry_routes(registry: Registry) -> Router:
    """Return all routes of the registry; writes are refused with Confluent's code for a read-only one."""
    catalogue = SubjectCatalogue(registry)
    return Router(
        path="/",
        route_handlers=[*_by_subject(catalogue), *_by_id(catalogue), *_settings(catalogue), *_refusals()],
        exception_handlers={RegistryRefusal: _refuse},
    )


def _by_subject(catalogue: SubjectCatalogue) -> list[Any]:
    @get("/subjects")
    async def subjects(request: RegistryRequest) -> Response[bytes]:
        """Return every subject; `subjectPrefix` narrows the list."""
        prefix = request.query_params.get("subjectPrefix", "")
        return _answer(request, catalogue.subjects("" if prefix == ":*:" else prefix))

    @get("/subjects/{subject:str}/versions")
    async def versions(request: RegistryRequest, subject: FromPath[str]) -> Response[bytes]:
        """Return the numbers of a subject's versions."""
        return _answer(request, [version.version for version in catalogue.history(subject)])

    @get("/subjects/{subject:str}/versions/{version:str}")
    async def version(request: RegistryRequest, subject: FromPath[str], version: FromPath[str]) -> Response[bytes]:
        """Return one version of a subject."""
        return _answer(request, catalogue.full(catalogue.version(subject, version)))

    @get("/subjects/{subject:str}/versions/{version:str}/schema")
    async def schema(request: RegistryRequest, subject: FromPath[str], version: FromPath[str]) -> Response[bytes]:
        """Return the schema alone."""
        return _answer(request, catalogue.version(subject, version).schema)

    @post("/subjects/{subject:str}", status_code=200, request_max_body_size=LOOKUP_MAX_BYTES)
    async def lookup(request: RegistryRequest, subject: FromPath[str]) -> Response[bytes]:
        """Return the version that has this schema."""
        version = catalogue.find(subject, await request.body())
        if version is None:
            catalogue.history(subject)
            raise RegistryRefusal(40403, "Schema not found")
        return _answer(request, catalogue.full(version), cached="no-store")

    @post("/subjects/{subject:str}/versions", status_code=200, request_max_body_size=LOOKUP_MAX_BYTES)
    async def register(request: RegistryRequest, subject: FromPath[str]) -> Response[bytes]:
        """Return the id of a schema that is registered already, as producers with auto-registration ask for it."""
        version = catalogue.find(subject, await request.body())
        if version is None:
            raise RegistryRefusal(42205, _READ_ONLY)
        return _answer(request, {"id": catalogue.wire_id(version)}, cached="no-store")

    return [subjects, versions, version, schema, lookup, register]


def _by_id(catalogue: SubjectCatalogue) -> list[Any]:
    @get("/schemas/ids/{schema_id:str}")
    async def by_id(request: RegistryRequest, schema_id: FromPath[str]) -> Response[bytes]:
        """Return the schema of an id on the wire."""
        return _answer(request, {"schema": schema_json(catalogue.by_id(schema_id).schema)}, cached=FOREVER)

    @get("/schemas/ids/{schema_id:str}/schema")
    async def schema_by_id(request: RegistryRequest, schema_id: FromPath[str]) -> Response[bytes]:
        """Return the schema alone."""
        return _answer(request, catalogue.by_id(schema_id).schema, cached=FOREVER)

    @get("/schemas/ids/{schema_id:str}/subjects")
    async def subjects_of_id(request: RegistryRequest, schema_id: FromPath[str]) -> Response[bytes]:
        """Return the subjects that have the schema."""
        return _answer(request, [catalogue.by_id(schema_id).subject], cached=FOREVER)

    @get("/schemas/ids/{schema_id:str}/versions")
    async def versions_of_id(request: RegistryRequest, schema_id: FromPath[str]) -> Response[bytes]:
        """Return the subjects and versions that have the schema."""
        version = catalogue.by_id(schema_id)
        return _answer(request, [{"subject": version.subject, "version": version.version}], cached=FOREVER)

    return [by_id, schema_by_id, subjects_of_id, versions_of_id]


def _settings(catalogue: SubjectCatalogue) -> list[Any]:
    @get("/schemas/types")
    async def types(request: RegistryRequest) -> Response[bytes]:
        """Return the types of schemas: Avro and nothing else."""
        return _answer(request, ["AVRO"])

    @get("/config")
    async def config(request: RegistryRequest) -> Response[bytes]:
        """Return the rule of evolution."""
        return _answer(request, {"compatibilityLevel": COMPATIBILITY})

    @get("/config/{subject:str}")
    async def config_of(request: RegistryRequest, subject: FromPath[str]) -> Response[bytes]:
        """Return the same for every subject."""
        catalogue.history(subject)
        return _answer(request, {"compatibilityLevel": COMPATIBILITY})

    @get("/mode")
    async def mode(request: RegistryRequest) -> Response[bytes]:
        """Return the mode: read-only."""
        return _answer(request, {"mode": "READONLY"})

    @get("/mode/{subject:str}")
    async def mode_of(request: RegistryRequest, subject: FromPath[str]) -> Response[bytes]:
        """Return the same for every subject."""
        catalogue.history(subject)
        return _answer(request, {"mode": "READONLY"})

    return [types, config, config_of, mode, mode_of]


WRITES: Final[Mapping[str, tuple[HttpMethod, ...]]] = {
    "/subjects/{subject:str}": (HttpMethod.DELETE,),
    "/subjects/{subject:str}/versions/{version:str}": (HttpMethod.DELETE,),
    "/config": (HttpMethod.PUT, HttpMethod.DELETE),
    "/config/{subject:str}": (HttpMethod.PUT, HttpMethod.DELETE),
    "/mode": (HttpMethod.PUT,),
    "/mode/{subject:str}": (HttpMethod.PUT, HttpMethod.DELETE),
}
"""What Confluent's registry would change, besides registering."""


def _refusals() -> list[Any]:
    def refusal(path: str, methods: tuple[HttpMethod, ...]) -> Any:
        @route(path, http_method=list(methods), status_code=422)
        async def refuse_write() -> Response[bytes]:
            """Refuse a write."""
            raise RegistryRefusal(42205, _READ_ONLY)

        return refuse_write

    return [refusal(path, methods) for path, methods in WRITES.items()]


def _answer(request: RegistryRequest, value: object, cached: str = A_MINUTE) -> Response[bytes]:
    body = msgspec.json.encode(value)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": cached}
    known_etags = request.headers.get("if-none-match", "")
    if request.method == HttpMethod.GET and etag in (
        known.strip().removeprefix("W/") for known in known_etags.split(",")
    ):
        return Response(b"", status_code=304, headers=headers)
    return Response(body, status_code=200, headers=headers, media_type=REGISTRY_TYPE)


def _refuse(_request: RegistryRequest, refusal: RegistryRefusal) -> Response[bytes]:
    body = msgspec.json.encode({"error_code": refusal.code, "message": refusal.message})
    return Response(body, status_code=refusal.status, headers={"cache-control": "no-store"}, media_type=REGISTRY_TYPE)


def _number(text: str) -> int | None:
    number = int(text) if _NUMBER.fullmatch(text) else None
    return number if number is not None and number <= _NUMBER_MAX else None


def _read_lookup(body: bytes) -> tuple[Lookup, object]:
    """Return the lookup, and its schema as data."""
    try:
        lookup = msgspec.json.decode(body, type=Lookup)
    except (ValueError, RecursionError) as error:
        raise RegistryRefusal(400, f"The body is not a schema lookup: {str(error)[:_SHOWN_MAX]}") from None
    if lookup.schema.count("{") + lookup.schema.count("[") > BRACKETS_MAX:
        raise RegistryRefusal(42201, f"The schema has more than {BRACKETS_MAX} objects and arrays")
    try:
        return lookup, msgspec.json.decode(lookup.schema)
    except (ValueError, RecursionError):
        raise RegistryRefusal(42201, "The schema is not Avro in JSON") from None
