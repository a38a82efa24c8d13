"""An external schema registry: the ids that records carry, and which of them are safe.

Records outlive any registry, so an external id is written only where it can always be read without that registry: it
equals the bundled id, or the file PLANT_SCHEMA_IDS_FILE names the schema it stands for. All of this happens once, at a
process's start; no request is made while events flow. See docs/decisions/0013-external-registry.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.errors import SchemaCheckFailed
from schemas.registry import Registry, Version, bundled, is_own_id
from schemas.registry_client import DECISION_PAGE, ExternalRegistryClient

ID_MAX: Final = 2**31 - 1
REGISTER_COMMAND: Final = "plant schemas register"


class ExternalSchemaId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema that an external id stands for, permanently. A line of the ids file; `own_id` is the bundled id."""

    id: int
    own_id: int
    subject: str
    version: int
    sha256: str


_activated: tuple[tuple[str, str], Registry] | None = None


def activate_registry(settings: Settings) -> Registry:
    """Activate the registry that the settings name, and return it. Call it before the first event; again costs nothing.

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
    external_ids = {entry.id: entry.own_id for entry in locked}
    registry = Registry(bundled().versions, external_ids=external_ids, written=written)
    codec.activate(registry)
    _activated = asked, registry
    return registry


def plan_registration(url: str) -> list[tuple[Version, int | None]]:
    """Return every bundled schema with its external id; None: not registered yet. Changes nothing."""
    with ExternalRegistryClient(url) as external:
        return [(version, external.find(version)) for version in bundled().versions]


def register_missing(url: str, file: Path | None) -> list[ExternalSchemaId]:
    """Register missing schemas, add ids that are not bundled ones to the file, and return the lines added.

    No line is ever removed: records may carry its id. Raises SchemaCheckFailed before the file is touched, and
    ConfigurationError where there are lines to add and no file.
    """
    before = read_ids(file) if file is not None and file.exists() else ()
    added = [entry for entry in _find_or_register(url) if entry.id != entry.own_id and entry not in before]
    refuse_clashes([*before, *added])
    if added and file is None:
        raise ConfigurationError("PLANT_SCHEMA_IDS_FILE must be set: the registry's ids are not the bundled ones.")
    if added and file is not None:
        temporary = file.with_name(file.name + ".new")
        temporary.write_text(render_ids([*before, *added]), "utf-8")
        temporary.replace(file)
    return added


def render_ids(entries: Iterable[ExternalSchemaId]) -> str:
    """Return the ids file's text: one id on each line, ascending."""
    lines = [msgspec.json.encode(entry).decode() for entry in sorted(entries, key=lambda entry: entry.id)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def read_ids(file: Path) -> tuple[ExternalSchemaId, ...]:
    """Read the ids file; raises ConfigurationError where it is absent or malformed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=tuple[ExternalSchemaId, ...])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"PLANT_SCHEMA_IDS_FILE can't be read: {file}.", why=f"{error}.", next_step=REGISTER_COMMAND
        ) from error


def refuse_clashes(entries: Sequence[ExternalSchemaId]) -> None:
    """Raise SchemaCheckFailed where an id has two meanings, now or with a later release of Plant."""
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
            faults.append(f"id {entry.id} stands for {entry.own_id} in the file, which is another schema here")
        if not 0 < entry.id <= ID_MAX:
            faults.append(f"id {entry.id} does not fit into a record")
        elif entry.id != entry.own_id and is_own_id(entry.id):
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
    """Return bundled id to external id, where they differ; raises SchemaCheckFailed where the file lacks one."""
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
    """Return the external id of every bundled schema, and register each schema that has none.

    Goes in the order of bundled ids, so that an empty registry which counts from 1 gives the same ids. Stops at the
    first id that clashes, since a registry may keep the id of a registered schema permanently.
    """
    entries: list[ExternalSchemaId] = []
    with ExternalRegistryClient(url) as external:
        for version in sorted(bundled().versions, key=lambda version: version.id):
            external_id = external.find(version)
            if external_id is None:
                external_id = external.register(version)
            entries.append(ExternalSchemaId(external_id, version.id, version.subject, version.version, version.sha256))
            refuse_clashes(entries)
    return entries
