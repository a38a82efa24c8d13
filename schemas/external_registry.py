"""An external schema registry instead of the bundled one: whose ids records carry, and which ids are safe.

Records outlive any registry, so an external id is written only where it can be read for ever without that registry: it
equals the bundled id, or the file PLANT_SCHEMA_IDS_FILE says what it stands for. All of this happens once, at a
process's start; nothing is asked while events flow. See docs/decisions/0013-external-registry.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.errors import RegistryUnreachable, SchemaCheckFailed, SchemaError
from schemas.registry import OWN_IDS, Registry, Version, bundled, schema_fingerprint

REGISTRY_MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
REGISTRY_REQUEST_TIMEOUT_SECONDS: Final = 5.0
REGISTRY_TOTAL_TIMEOUT_SECONDS: Final = 30.0
ANSWER_MAX_BYTES: Final = 1024 * 1024
ID_MAX: Final = 2**31 - 1
NOT_FOUND: Final = (40401, 40402, 40403)
"""No such subject, version or schema; any other 404 comes from something that is no registry."""
VERSIONS_MAX: Final = 100
DECISION_PAGE: Final = "see docs/decisions/0013-external-registry.md"
REGISTER_COMMAND: Final = "plant schemas register"


class ExternalSchemaId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an external id stands for, for ever. One line of the ids file; `own_id` is the bundled id."""

    id: int
    own_id: int
    subject: str
    version: int
    sha256: str


_activated: tuple[tuple[str, str], Registry] | None = None


def activate_registry(settings: Settings) -> Registry:
    """The registry that this process uses, adopted by the codec. Call it before the first event; again costs nothing.

    Does nothing without PLANT_SCHEMA_REGISTRY_URL and PLANT_SCHEMA_IDS_FILE. With the address, looks every bundled
    schema up under its subject, and registers what is missing. With the file alone, old external ids are read and
    bundled ids are written.

    Raises RegistryUnreachable (exit 4), SchemaCheckFailed (exit 3: the registry refuses a schema, an id clashes or is
    not in the file), ConfigurationError (exit 2).
    """
    global _activated
    if not settings.schema_registry_url and not settings.schema_ids_file:
        return codec.active_registry()
    asked = (settings.schema_registry_url, settings.schema_ids_file)
    if _activated is not None and _activated == (asked, codec.active_registry()):
        return codec.active_registry()
    locked = read_ids(Path(settings.schema_ids_file)) if settings.schema_ids_file else ()
    refuse_clashes(locked)
    written = _ids_for_writing(settings.schema_registry_url, locked) if settings.schema_registry_url else {}
    outside = {entry.id: entry.own_id for entry in locked}
    registry = Registry(bundled().versions, outside=outside, written=written)
    codec.activate(registry)
    _activated = asked, registry
    return registry


def plan_registration(url: str) -> list[tuple[Version, int | None]]:
    """Every bundled schema with its id in the external registry; None: not registered yet. Changes nothing."""
    with ExternalRegistryClient(url) as external:
        return [(version, external.find(version)) for version in bundled().versions]


def register_missing(url: str, file: Path | None) -> list[ExternalSchemaId]:
    """Register what is missing, and add ids that are not bundled ones to the file; the lines added.

    Lines never go away: records may carry their ids. Raises SchemaCheckFailed before the file is touched, and
    ConfigurationError where there are lines to add and no file.
    """
    before = read_ids(file) if file is not None and file.exists() else ()
    added = [entry for entry in _find_or_register(url) if entry.id != entry.own_id and entry not in before]
    refuse_clashes([*before, *added])
    if added and file is None:
        raise ConfigurationError("PLANT_SCHEMA_IDS_FILE must be set: the registry's ids are not the bundled ones.")
    if added and file is not None:
        beside = file.with_name(file.name + ".new")
        beside.write_text(render_ids([*before, *added]), "utf-8")
        beside.replace(file)
    return added


def render_ids(entries: Iterable[ExternalSchemaId]) -> str:
    """The ids file: one id a line, ascending."""
    lines = [msgspec.json.encode(entry).decode() for entry in sorted(entries, key=lambda entry: entry.id)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def read_ids(file: Path) -> tuple[ExternalSchemaId, ...]:
    """The ids file; raises ConfigurationError where it is absent or no such file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=tuple[ExternalSchemaId, ...])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"PLANT_SCHEMA_IDS_FILE can't be read: {file}.", why=f"{error}.", next_step=REGISTER_COMMAND
        ) from error


def refuse_clashes(entries: Sequence[ExternalSchemaId]) -> None:
    """Raises SchemaCheckFailed where an id has two meanings, now or with a later release of Plant."""
    own = {version.id: version for version in bundled().versions}
    seen: dict[int, ExternalSchemaId] = {}
    faults = []
    for entry in entries:
        meant = own.get(entry.own_id)
        if meant is None or (meant.subject, meant.version, meant.sha256) != (
            entry.subject,
            entry.version,
            entry.sha256,
        ):
            faults.append(f"id {entry.id} is said to be {entry.own_id}, which is another schema here")
        if not 0 < entry.id <= ID_MAX:
            faults.append(f"id {entry.id} does not fit into a record")
        elif entry.id != entry.own_id and _is_own(entry.id):
            faults.append(f"id {entry.id} of {entry.subject} is one of Plant's own ids, which mean other schemas")
        if seen.setdefault(entry.id, entry) != entry:
            faults.append(f"id {entry.id} stands for two schemas")
    if faults:
        raise SchemaCheckFailed(
            "The external registry's ids can't be used.",
            why="; ".join(faults) + ".",
            next_step=DECISION_PAGE,
        )


def _ids_for_writing(url: str, locked: Sequence[ExternalSchemaId]) -> Mapping[int, int]:
    """Bundled id to external id, where they differ; raises SchemaCheckFailed where one could not be read for ever."""
    others = [entry for entry in _find_or_register(url) if entry.id != entry.own_id]
    missing = [
        f"{entry.subject} version {entry.version} has id {entry.id} there and {entry.own_id} here"
        for entry in others
        if entry not in locked
    ]
    if missing:
        raise SchemaCheckFailed(
            "The external registry has ids that could not be read without it.",
            why="; ".join(missing) + ". PLANT_SCHEMA_IDS_FILE does not hold them.",
            next_step=f"{REGISTER_COMMAND} --execute",
        )
    return {entry.own_id: entry.id for entry in others}


def _find_or_register(url: str) -> list[ExternalSchemaId]:
    """In the order of bundled ids, so that an empty registry which counts from 1 gives the same ids.

    Stops at the first id that clashes: what is registered once may keep its id for ever.
    """
    found: list[ExternalSchemaId] = []
    with ExternalRegistryClient(url) as external:
        for version in sorted(bundled().versions, key=lambda version: version.id):
            outside = external.find(version)
            if outside is None:
                outside = external.register(version)
            found.append(ExternalSchemaId(outside, version.id, version.subject, version.version, version.sha256))
            refuse_clashes(found)
    return found


class ExternalRegistryClient:
    """A client of a Confluent-compatible registry, for one start: bounded in time and in what it reads."""

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
        """The id of this schema under its subject, where there are several one that can be used; None: there is none.

        Descriptions don't count, so a schema whose id can't be used may be registered again with another one.
        """
        ids = [outside for outside, sha256 in self._registered(version) if sha256 == version.sha256]
        usable = [outside for outside in ids if outside == version.id or not _is_own(outside)]
        return next(iter(usable or ids), None)

    def register(self, version: Version) -> int:
        """The id that the registry gives this schema; raises SchemaCheckFailed where it refuses it."""
        schema = msgspec.json.encode(version.schema).decode()
        body = msgspec.json.encode({"schema": schema, "schemaType": "AVRO"})
        status, answer = self._ask("POST", f"{_path(version)}/versions", body)
        if status != 200:
            raise self._refused(version, status, answer)
        return self._verified(version, _integer_in(answer, "id"))

    def _registered(self, version: Version) -> Iterator[tuple[int, str]]:
        """Id and fingerprint of what is registered under the version's subject, newest first."""
        status, numbers = self._ask("GET", f"{_path(version)}/versions")
        if status == 404 and isinstance(numbers, dict) and numbers.get("error_code") in NOT_FOUND:
            return
        if status != 200 or not isinstance(numbers, list):
            raise self._unreachable("there is no schema registry at this address")
        counted = [number for number in numbers if isinstance(number, int)]
        for number in sorted(counted, reverse=True)[:VERSIONS_MAX]:
            status, answer = self._ask("GET", f"{_path(version)}/versions/{number}")
            outside = _integer_in(answer, "id")
            if status == 200 and outside is not None:
                yield outside, _fingerprint_in(answer)

    def _verified(self, version: Version, outside: int | None) -> int:
        """The id, once the registry has given this very schema for it, as it will to a stock deserializer."""
        if outside is None:
            raise self._unreachable("its answer has no id")
        status, found = self._ask("GET", f"schemas/ids/{outside}")
        if status != 200 or _fingerprint_in(found) != version.sha256:
            raise SchemaCheckFailed(
                f"The external registry gives another schema for the id {outside}.",
                why=f"{version.subject} version {version.version} was registered under it at {self._shown}.",
                next_step=DECISION_PAGE,
            )
        return outside

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
                for piece in response.iter_bytes():
                    received += piece
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
    """The fingerprint of an answer's schema; empty where it holds none."""
    try:
        return schema_fingerprint(msgspec.json.decode(answer["schema"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def _is_own(outside: int) -> bool:
    return any(outside in ids for ids in OWN_IDS)
