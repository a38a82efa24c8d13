"""The bundled registry: which schema each id stands for. Ids are locked in `registry.json` and stand for ever.

Subjects follow TopicRecordNameStrategy: `<topic>-<record full name>`. What is locked of a schema is its canonical form
(:func:`canonical`), so a changed description needs no new version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import cast

import msgspec

from schemas.errors import SchemaError
from schemas.events import EVENTS, Event
from schemas.generation import Schema, full_name, schema_of
from schemas.layout import Record, parse

REGISTRY_FILE = Path(__file__).parent / "registry.json"


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One locked schema. `version` counts from 1 within its subject."""

    id: int
    subject: str
    version: int
    sha256: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class Registered:
    """What a schema id means: the layout its values were written in and the one they are read into."""

    version: Version
    event: type[Event]
    writer: Record
    reader: Record


class Registry:
    """Locked versions, looked up by id. Schemas are parsed when they are first asked for."""

    def __init__(self, versions: Iterable[Version], events: Mapping[str, type[Event]] = EVENTS) -> None:
        self.versions = tuple(versions)
        self.events = events
        self._by_id = {version.id: version for version in self.versions}
        self._resolved: dict[int, Registered] = {}

    @cached_property
    def _by_subject(self) -> dict[str, type[Event]]:
        return {subject(event): event for event in self.events.values()}

    def get(self, schema_id: int) -> Registered | None:
        """What the id means; None if nothing is registered under it."""
        known = self._resolved.get(schema_id)
        if known is None and schema_id in self._by_id:
            version = self._by_id[schema_id]
            event = self._by_subject[version.subject]
            known = Registered(version, event, parse(version.schema), parse(schema_of(event)))
            self._resolved[schema_id] = known
        return known

    def history(self, subject: str) -> list[Version]:
        """The subject's versions, oldest first."""
        return sorted((v for v in self.versions if v.subject == subject), key=lambda version: version.version)

    def current(self, event: type[Event]) -> Version:
        """The version that events of this type are written in; raises SchemaError if none is locked."""
        history = self.history(subject(event))
        if not history or history[-1].sha256 != fingerprint(schema_of(event)):
            raise SchemaError(
                f"The schema of {event.event_type} is not locked.",
                why="Its struct has changed, or is new, and no registry id stands for it.",
                next_step="plant schemas lock",
            )
        return history[-1]


def subject(event: type[Event]) -> str:
    """TopicRecordNameStrategy: `<topic>-<record full name>`."""
    return f"{event.topic}-{full_name(event)}"


def canonical(schema: object) -> object:
    """The schema without what changes no byte and no default: descriptions. Namespaces and order stay."""
    if isinstance(schema, list):
        return [canonical(item) for item in schema]
    if isinstance(schema, dict):
        return {key: canonical(value) if key != "default" else value for key, value in schema.items() if key != "doc"}
    return schema


def fingerprint(schema: object) -> str:
    """SHA-256, in hex, of the canonical form as JSON with sorted keys and no spaces."""
    text = json.dumps(canonical(schema), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(text: str) -> list[Version]:
    """The versions in a registry file; raises SchemaError if it does not have the right form."""
    try:
        return msgspec.json.decode(text, type=list[Version])
    except msgspec.DecodeError as error:
        raise SchemaError("The registry file can't be read.", why=f"{error}.") from error


def render(versions: Iterable[Version]) -> str:
    """The registry file: one version a line, in the order of ids."""
    lines = [msgspec.json.encode(version).decode() for version in sorted(versions, key=lambda version: version.id)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def next_version(registry: Registry, event: type[Event]) -> Version:
    """The version that `plant schemas lock` adds: the next id of all, the next version of the subject."""
    schema = cast(Schema, canonical(schema_of(event)))
    return Version(
        id=max((version.id for version in registry.versions), default=0) + 1,
        subject=subject(event),
        version=len(registry.history(subject(event))) + 1,
        sha256=fingerprint(schema),
        schema=schema,
    )


@cache
def bundled() -> Registry:
    """The registry that comes with Plant; read once a process."""
    return Registry(read(REGISTRY_FILE.read_text("utf-8")))
