"""What `plant schemas check` refuses: everything that would make records of the past or of today unreadable."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.binary.avro_types import parse
from schemas.compatibility import full_transitive
from schemas.errors import SchemaCheckFailed, SchemaError, UnsupportedSchema
from schemas.events import Event
from schemas.field_limits import limits_of
from schemas.generation import AVRO_FOLDER, Schema, schema_of, stale_files
from schemas.registry import REGISTRY_FILE, Registry, Version, fingerprint, next_version, read, render, subject


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal: in which subject or file, at which field, by which rule."""

    where: str
    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.rule}" if self.field else f"{self.where}: {self.rule}"


def problems(registry: Registry, committed: Sequence[Version] | None, avro_folder: Path = AVRO_FOLDER) -> list[Problem]:
    """Everything that is wrong with the structs, their files and the registry; empty: all is well.

    `committed` are the versions in the last commit, or None where there is none to compare with.
    """
    found = list(_registry_problems(registry))
    if committed is not None:
        found += _changed_versions(registry.versions, committed)
    for event in registry.events.values():
        broken = evolution_problems(registry, event, schema_of(event))
        found += broken
        if not broken:
            found += _unlocked(registry, event)
    found += [Problem(path.name, "", _stale(text)) for path, text in stale_files(avro_folder, registry.events).items()]
    return found


def evolution_problems(registry: Registry, event: type[Event], schema: Schema) -> list[Problem]:
    """What keeps this schema from being the subject's next version: schema rules first, then FULL_TRANSITIVE."""
    where = subject(event)
    try:
        parse(schema)
        limits_of(event)
    except UnsupportedSchema as error:
        return [Problem(where, error.field, error.rule)]
    earlier = [version.schema for version in registry.history(where)]
    return [
        Problem(where, broken.finding.field, f"{broken.finding.rule} ({broken.direction}, version {broken.version})")
        for broken in full_transitive(schema, earlier)
    ]


def lock(registry: Registry) -> list[Version]:
    """The versions to add so that every event type's schema has an id; raises SchemaCheckFailed if one may not be."""
    added: list[Version] = []
    for event in registry.events.values():
        refuse(evolution_problems(registry, event, schema_of(event)))
        if list(_unlocked(registry, event)):
            added.append(next_version(registry, event))
            registry = Registry([*registry.versions, added[-1]], registry.events)
    return added


def refuse(found: Sequence[Problem]) -> None:
    """Raise SchemaCheckFailed naming every problem, if there is one."""
    if found:
        raise SchemaCheckFailed(
            f"The schemas can't be used: {len(found)} problem{'s' if len(found) > 1 else ''}.",
            why="; ".join(map(str, found)),
            next_step="see docs/how-to/evolve-a-schema.md",
        )


def committed_versions(file: Path = REGISTRY_FILE) -> list[Version] | None:
    """The registry as it is in the last commit; None outside a repository, or before its first commit of the file."""
    command = ["git", "-C", str(file.parent), "show", f"HEAD:./{file.name}"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return None
    return read(shown.stdout) if shown.returncode == 0 else None


def write_lock(added: Sequence[Version], file: Path = REGISTRY_FILE) -> None:
    """Add versions to the registry file; what is there stays as it is."""
    file.write_text(render([*read(file.read_text("utf-8")), *added]), "utf-8")


def _registry_problems(registry: Registry) -> Iterator[Problem]:
    seen: set[int] = set()
    known = {subject(event) for event in registry.events.values()}
    for version in registry.versions:
        where = f"registry id {version.id}"
        if version.id in seen or version.id < 1:
            yield Problem(where, "", "each id is positive and used once")
        seen.add(version.id)
        if version.sha256 != fingerprint(version.schema):
            yield Problem(where, "", "its schema does not match its sha256; a locked schema never changes")
        if version.subject not in known:
            yield Problem(where, "", f"no event type has the subject {version.subject}; its records must stay readable")
        try:
            parse(version.schema)
        except UnsupportedSchema as error:
            yield Problem(where, error.field, error.rule)
    for name in sorted({version.subject for version in registry.versions}):
        numbers = [version.version for version in registry.history(name)]
        if numbers != list(range(1, len(numbers) + 1)):
            yield Problem(name, "", f"versions count 1, 2, 3, ..., and are {numbers}")


def _changed_versions(versions: Sequence[Version], committed: Sequence[Version]) -> Iterator[Problem]:
    now: Mapping[int, Version] = {version.id: version for version in versions}
    for version in committed:
        if version.id not in now:
            yield Problem(f"registry id {version.id}", "", "removed, but committed ids stand for ever")
        elif now[version.id] != version:
            yield Problem(f"registry id {version.id}", "", "changed, but committed ids stand for ever")


def _unlocked(registry: Registry, event: type[Event]) -> Iterator[Problem]:
    try:
        registry.current(event)
    except SchemaError:
        yield Problem(subject(event), "", "no registry id stands for this schema; run: plant schemas lock")


def _stale(text: str) -> str:
    return "differs from its struct; run: plant schemas generate" if text else "no event type has this file"
