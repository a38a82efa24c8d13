"""The bundled registry: the schema that each id stands for. Ids are locked in `registry.json` permanently.

Subjects follow TopicRecordNameStrategy: `<topic>-<record full name>`. A schema is locked in its canonical form
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

from schemas.binary.avro_types import Record, parse
from schemas.errors import SchemaError
from schemas.events import RecordValue
from schemas.generation import Schema, full_name, schema_of
from schemas.locked_limits import LockedLimits, limits_to_lock
from schemas.record_types import RECORD_TYPES

REGISTRY_FILE = Path(__file__).parent / "registry.json"
OWN_IDS = (range(1, 100), range(2**30, 2**31))
"""The ids that Plant's releases give out, now and later; an external registry's ids for them must be others."""

LIMITS_ATTRIBUTE = "plant.limits"
"""The attribute of a schema that holds its limits, where they are all that tells it from an earlier version's."""


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One locked schema, and the limits of its records. `version` counts from 1 within its subject."""

    id: int
    subject: str
    version: int
    sha256: str
    schema: Schema
    limits: LockedLimits | None = None
    """None in registries from before limits were locked: then today's count."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The meaning of a schema id: the Avro type and the limits of its values, and the type that they are read into."""

    version: Version
    event: type[RecordValue]
    writer: Record
    reader: Record
    limits: LockedLimits
    limits_are_todays: bool
    """Whether today's struct has the same fields and limits, so that reading into it checks them."""


class Registry:
    """Locked versions, looked up by id. Schemas are parsed when they are first asked for.

    `external_ids` are the ids of an external registry that records may carry, each with the bundled id it stands for;
    `written` those of them that new records get, by bundled id. See docs/decisions/0013-external-registry.md.
    """

    def __init__(
        self,
        versions: Iterable[Version],
        events: Mapping[str, type[RecordValue]] = RECORD_TYPES,
        *,
        external_ids: Mapping[int, int] | None = None,
        written: Mapping[int, int] | None = None,
    ) -> None:
        self.versions = tuple(versions)
        self.events = events
        self._by_id = {version.id: version for version in self.versions}
        self._by_id |= {other: self._by_id[own] for other, own in (external_ids or {}).items()}
        self._external = external_ids is not None
        self._written = dict(written or {})
        self._resolved: dict[int, Registered] = {}

    @cached_property
    def _by_subject(self) -> dict[str, type[RecordValue]]:
        return {subject(event): event for event in self.events.values()}

    def get(self, schema_id: int) -> Registered | None:
        """Return the meaning of an id; None if nothing is registered under it."""
        known = self._resolved.get(schema_id)
        if known is None and schema_id in self._by_id:
            version = self._by_id[schema_id]
            event = self._by_subject[version.subject]
            writer, reader, today = parse(version.schema), parse(schema_of(event)), limits_to_lock(event)
            limits = today if version.limits is None else version.limits
            known = Registered(version, event, writer, reader, limits, writer == reader and limits == today)
            self._resolved[schema_id] = known
        return known

    def may_be_newer(self, schema_id: int) -> bool:
        """Return whether a later release may know an id that is not known here.

        Without an external registry that is an id that Plant's releases give out. With one it is any id that a record
        can carry: a later release registers its schemas there, and the ids file may be the one from before.
        """
        return is_own_id(schema_id) or (self._external and schema_id > 0)

    def wire_id(self, version: Version) -> int:
        """Return the id that new records in this version carry."""
        return self._written.get(version.id, version.id)

    def history(self, subject: str) -> list[Version]:
        """Return the subject's versions, oldest first."""
        return sorted((v for v in self.versions if v.subject == subject), key=lambda version: version.version)

    def current(self, event: type[RecordValue]) -> Version:
        """Return the version that events of this type are written in; raises SchemaError if none is locked."""
        history = self.history(subject(event))
        if not history or not _is_todays(history[-1], event):
            raise SchemaError(
                f"The schema of {event.event_type} is not locked.",
                why="Its struct or a limit has changed, or is new, and no registry id stands for it.",
                next_step="plant schemas lock",
            )
        return history[-1]


def _is_todays(version: Version, event: type[RecordValue]) -> bool:
    same_schema = schema_fingerprint(without_limits(version.schema)) == schema_fingerprint(schema_of(event))
    return same_schema and version.limits in (None, limits_to_lock(event))


def without_limits(schema: Schema) -> Schema:
    """Return the schema without the limits that tell it from an earlier version's, which has the same fields."""
    return {key: value for key, value in schema.items() if key != LIMITS_ATTRIBUTE}


def subject(event: type[RecordValue]) -> str:
    """Return the subject by TopicRecordNameStrategy: `<topic>-<record full name>`."""
    return f"{event.topic}-{full_name(event)}"


def is_own_id(schema_id: int) -> bool:
    """Return whether Plant's releases give out this id, now or later."""
    return any(schema_id in ids for ids in OWN_IDS)


def canonical(schema: object) -> object:
    """Return the schema without its descriptions, which change no byte and no default. Namespaces and order stay."""
    if isinstance(schema, list):
        return [canonical(item) for item in schema]
    if isinstance(schema, dict):
        return {key: canonical(value) if key != "default" else value for key, value in schema.items() if key != "doc"}
    return schema


def schema_fingerprint(schema: object) -> str:
    """Return the SHA-256, in hex, of the schema's canonical form: as JSON with sorted keys, without spaces, in ASCII.

    Two schemas have the same fingerprint where they differ in descriptions alone.
    """
    text = json.dumps(canonical(schema), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_same_schema(asked: object, known: object) -> bool:
    """Return whether two schemas have the same fingerprint, as far as looking at `known` can tell.

    It takes as long as `known` is large: `asked` may be a stranger's, of any size, and is left at the first difference.
    """
    if isinstance(known, list):
        return isinstance(asked, list) and len(asked) == len(known) and all(map(is_same_schema, asked, known))
    if not isinstance(known, dict):
        return type(asked) is type(known) and asked == known
    if not isinstance(asked, dict) or len(asked) - ("doc" in asked) != len(known) - ("doc" in known):
        return False
    return all(
        key in asked and (_is_same_json if key == "default" else is_same_schema)(asked[key], value)
        for key, value in known.items()
        if key != "doc"
    )


def _is_same_json(asked: object, known: object) -> bool:
    return asked == known and json.dumps(asked, sort_keys=True) == json.dumps(known, sort_keys=True)


def read_registry(text: str) -> list[Version]:
    """Read the versions in a registry file; raises SchemaError if it does not have the right form."""
    try:
        return msgspec.json.decode(text, type=list[Version])
    except msgspec.DecodeError as error:
        raise SchemaError("The registry file can't be read.", why=f"{error}.") from error


def render_registry(versions: Iterable[Version]) -> str:
    """Return the registry file's text: one version on each line, in the order of ids."""
    lines = [msgspec.json.encode(version).decode() for version in sorted(versions, key=lambda version: version.id)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def next_version(registry: Registry, event: type[RecordValue]) -> Version:
    """Return the version that `plant schemas lock` adds: the next id of all, the next version of the subject.

    Where an earlier version has the same schema with other limits, the limits stand in the new one as an attribute,
    which Avro skips: else an external registry would give both the same id.
    """
    schema, limits = cast(Schema, canonical(schema_of(event))), limits_to_lock(event)
    fingerprint = schema_fingerprint(schema)
    if any(schema_fingerprint(without_limits(each.schema)) == fingerprint for each in registry.history(subject(event))):
        schema = {**schema, LIMITS_ATTRIBUTE: limits}
    return Version(
        id=_next_id(version.id for version in registry.versions),
        subject=subject(event),
        version=len(registry.history(subject(event))) + 1,
        sha256=schema_fingerprint(schema),
        schema=schema,
        limits=limits,
    )


def _next_id(taken: Iterable[int]) -> int:
    following = max(taken, default=0) + 1
    return following if following in OWN_IDS[0] else max(following, OWN_IDS[1].start)


@cache
def bundled() -> Registry:
    """Return the registry that comes with Plant; read once a process."""
    return Registry(read_registry(REGISTRY_FILE.read_text("utf-8")))
