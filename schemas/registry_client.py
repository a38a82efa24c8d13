"""The client of a Confluent-compatible schema registry: it finds a schema's id, and registers schemas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from runtime.errors import ConfigurationError
from schemas.errors import RegistryUnreachable, SchemaCheckFailed, SchemaError
from schemas.registry import Version, is_own_id, schema_fingerprint

REGISTRY_MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
REGISTRY_REQUEST_TIMEOUT_SECONDS: Final = 5.0
REGISTRY_TOTAL_TIMEOUT_SECONDS: Final = 30.0
ANSWER_MAX_BYTES: Final = 1024 * 1024
NOT_FOUND: Final = (40401, 40402, 40403)
"""No such subject, version or schema; any other 404 comes from something that is no registry."""
VERSIONS_MAX: Final = 100
DECISION_PAGE: Final = "see docs/decisions/0013-external-registry.md"


class ExternalRegistryClient:
    """A client of a Confluent-compatible registry, for one start; its time and the bytes it reads are bounded."""

    def __init__(self, url: str) -> None:
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                "PLANT_SCHEMA_REGISTRY_URL is no http or https address.", next_step="plant settings"
            )
        self._shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._deadline = time.monotonic() + REGISTRY_TOTAL_TIMEOUT_SECONDS
        self._failures = (httpx.HTTPError, httpx.InvalidURL)
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            timeout=REGISTRY_REQUEST_TIMEOUT_SECONDS,
            headers={"accept": f"{REGISTRY_MEDIA_TYPE}, application/json"},
        )

    def __enter__(self) -> ExternalRegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find(self, version: Version) -> int | None:
        """Return the id of this schema under its subject, if there are several a usable one; None: there is none.

        Descriptions don't count, so a schema whose id can't be used may be registered again with another one.
        """
        ids = [external_id for external_id, sha256 in self._registered(version) if sha256 == version.sha256]
        usable = [external_id for external_id in ids if external_id == version.id or not is_own_id(external_id)]
        return next(iter(usable or ids), None)

    def register(self, version: Version) -> int:
        """Register a schema and return its id; raises SchemaCheckFailed where it refuses it."""
        schema = msgspec.json.encode(version.schema).decode()
        body = msgspec.json.encode({"schema": schema, "schemaType": "AVRO"})
        status, answer = self._ask("POST", f"{_path(version)}/versions", body)
        if status != 200:
            raise self._refused(version, status, answer)
        return self._verified(version, _integer_in(answer, "id"))

    def _registered(self, version: Version) -> Iterator[tuple[int, str]]:
        """Yield id and fingerprint of each schema registered under the version's subject, newest first."""
        status, numbers = self._ask("GET", f"{_path(version)}/versions")
        if status == 404 and isinstance(numbers, dict) and numbers.get("error_code") in NOT_FOUND:
            return
        if status != 200 or not isinstance(numbers, list):
            raise self._unreachable("there is no schema registry at this address")
        counted = [number for number in numbers if isinstance(number, int)]
        for number in sorted(counted, reverse=True)[:VERSIONS_MAX]:
            status, answer = self._ask("GET", f"{_path(version)}/versions/{number}")
            external_id = _integer_in(answer, "id")
            if status == 200 and external_id is not None:
                yield external_id, _fingerprint_in(answer)

    def _verified(self, version: Version, external_id: int | None) -> int:
        """Return the id if the registry answers it with this very schema, as it will to a stock deserializer."""
        if external_id is None:
            raise self._unreachable("its answer has no id")
        status, answer = self._ask("GET", f"schemas/ids/{external_id}")
        if status != 200 or _fingerprint_in(answer) != version.sha256:
            raise SchemaCheckFailed(
                f"The external registry gives another schema for the id {external_id}.",
                why=f"{version.subject} version {version.version} was registered under it at {self._shown}.",
                next_step=DECISION_PAGE,
            )
        return external_id

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        left_seconds = self._deadline - time.monotonic()
        if left_seconds <= 0:
            raise self._unreachable(f"it took longer than {REGISTRY_TOTAL_TIMEOUT_SECONDS:.0f} s in all")
        try:
            with self._client.stream(
                method,
                path,
                content=body,
                headers={"content-type": REGISTRY_MEDIA_TYPE} if body else {},
                timeout=min(REGISTRY_REQUEST_TIMEOUT_SECONDS, left_seconds),
            ) as response:
                received = b""
                for part in response.iter_bytes():
                    received += part
                    if len(received) > ANSWER_MAX_BYTES or time.monotonic() > self._deadline:
                        raise self._unreachable("its answer is too long or too slow")
        except self._failures as error:
            raise self._unreachable(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code not in (200, 404, 409, 422):
            raise self._unreachable(f"it answered {response.status_code}")
        try:
            return response.status_code, msgspec.json.decode(received)
        except (ValueError, RecursionError):
            raise self._unreachable("its answer is not JSON") from None

    def _unreachable(self, why: str) -> RegistryUnreachable:
        return RegistryUnreachable(why=f"{self._shown}: {why}.", next_step="plant settings")

    def _refused(self, version: Version, status: int, answer: Any) -> SchemaError:
        if status == 404:
            return self._unreachable("there is no schema registry at this address")
        message = str(answer.get("message", "")) if isinstance(answer, dict) else ""
        return SchemaCheckFailed(
            f"The external registry refuses {version.subject} version {version.version}.",
            why=f"{self._shown} answered {status}: {message[:500]}",
            next_step=DECISION_PAGE,
        )


def _path(version: Version) -> str:
    return f"subjects/{quote(version.subject, safe='')}"


def _integer_in(answer: Any, name: str) -> int | None:
    value = answer.get(name) if isinstance(answer, dict) else None
    return value if isinstance(value, int) else None


def _fingerprint_in(answer: Any) -> str:
    """Return the fingerprint of an answer's schema; empty where it holds none."""
    try:
        return schema_fingerprint(msgspec.json.decode(answer["schema"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
