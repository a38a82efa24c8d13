"""The compatibility gate of `plant schemas check`: it refuses all that would make a record unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.last_commit import LastCommitUnreadable, committed_text
from schemas.binary.avro_types import AvroType, Optional, Record, parse
from schemas.compatibility import full_transitive
from schemas.errors import SchemaCheckFailed, SchemaError, UnsupportedSchema
from schemas.events import RecordValue
from schemas.generation import AVRO_FOLDER, Schema, schema_of, stale_files
from schemas.locked_limits import LockedLimits, limits_to_lock, tightened
from schemas.registry import (
    REGISTRY_FILE,
    Registry,
    Version,
    next_version,
    read_registry,
    render_registry,
    schema_fingerprint,
    subject,
)


@dataclass(frozen=True, slots=True)
class SchemaProblem:
    """A rule that a subject or file breaks, and at which field."""

    where: str
    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.rule}" if self.field else f"{self.where}: {self.rule}"


def schema_problems(
    registry: Registry, committed: Sequence[Version] | None, avro_folder: Path = AVRO_FOLDER
) -> list[SchemaProblem]:
    """Return every problem of the structs, their files and the registry; empty: all is well.

    `committed` are the versions in the last commit, or None where there is none to compare with.
    """
    problems = list(_registry_problems(registry))
    if committed is not None:
        problems += _changed_versions(registry.versions, committed)
    for event in registry.events.values():
        broken = evolution_problems(registry, event, schema_of(event))
        problems += broken
        if not broken:
            problems += _unlocked(registry, event)
    problems += [
        SchemaProblem(path.name, "", _stale(text)) for path, text in stale_files(avro_folder, registry.events).items()
    ]
    return problems


def evolution_problems(registry: Registry, event: type[RecordValue], schema: Schema) -> list[SchemaProblem]:
    """Return why this schema can't be its subject's next version: schema rules first, then FULL_TRANSITIVE."""
    where = subject(event)
    try:
        parse(schema)
        limits = limits_to_lock(event)
    except UnsupportedSchema as error:
        return [SchemaProblem(where, error.field, error.rule)]
    earlier = [version.schema for version in registry.history(where)]
    return [
        SchemaProblem(
            where, broken.finding.field, f"{broken.finding.rule} ({broken.direction}, version {broken.version})"
        )
        for broken in full_transitive(schema, earlier)
    ] + list(_tightened_limits(registry, where, limits))


def _tightened_limits(registry: Registry, where: str, limits: LockedLimits) -> Iterator[SchemaProblem]:
    """Yield limits that are tighter than those of some earlier version whose schema has the field."""
    for version in registry.history(where):
        try:
            fields = _field_names(parse(version.schema), "")
        except UnsupportedSchema:  # a damaged registry, which is a problem of its own
            continue
        common = {path: limit for path, limit in limits.items() if path in fields}
        for path, rule in tightened(common, limits if version.limits is None else version.limits):
            yield SchemaProblem(where, path, f"{rule} (version {version.version})")


def _field_names(avro_type: AvroType, path: str) -> set[str]:
    """Return the names of all fields, as limits name them."""
    match avro_type:
        case Optional(item=item):
            return _field_names(item, path)
        case Record(fields=fields):
            under = f"{path}." if path else ""
            nested = (_field_names(field.type, under + field.name) for field in fields)
            return {under + field.name for field in fields}.union(*nested)
        case _:
            return set()


def lock_schemas(registry: Registry) -> list[Version]:
    """Return the versions to add so that every schema has an id; raises SchemaCheckFailed where a rule is broken."""
    added: list[Version] = []
    for event in registry.events.values():
        refuse(evolution_problems(registry, event, schema_of(event)))
        if list(_unlocked(registry, event)):
            added.append(next_version(registry, event))
            registry = Registry([*registry.versions, added[-1]], registry.events)
    return added


def refuse(problems: Sequence[SchemaProblem]) -> None:
    """Raise SchemaCheckFailed naming every problem, if there is one."""
    if problems:
        raise SchemaCheckFailed(
            f"The schemas can't be used: {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            why="; ".join(map(str, problems)),
            next_step="see docs/how-to/evolve-a-schema.md",
        )


def committed_versions(file: Path = REGISTRY_FILE) -> list[Version] | None:
    """Return the registry of the last commit; None outside a repository, or before the file's first commit.

    Raises SchemaCheckFailed where there is a repository that git can't read: its ids would go unchecked.
    """
    try:
        text = committed_text(file)
    except LastCommitUnreadable as error:
        raise SchemaCheckFailed(
            "The registry's ids can't be compared with the last commit.", why=error.why, next_step=error.next_step
        ) from error
    return None if text is None else read_registry(text)


def write_lock(added: Sequence[Version], file: Path = REGISTRY_FILE) -> None:
    """Add versions to the registry file; those in it stay as they are."""
    file.write_text(render_registry([*read_registry(file.read_text("utf-8")), *added]), "utf-8")


def _registry_problems(registry: Registry) -> Iterator[SchemaProblem]:
    seen: set[int] = set()
    known = {subject(event) for event in registry.events.values()}
    for version in registry.versions:
        where = f"registry id {version.id}"
        if version.id in seen or version.id < 1:
            yield SchemaProblem(where, "", "each id is positive and used once")
        seen.add(version.id)
        if version.sha256 != schema_fingerprint(version.schema):
            yield SchemaProblem(where, "", "its schema does not match its sha256; a locked schema never changes")
        if version.limits is None:
            yield SchemaProblem(where, "", "no limits are locked with it, so its records could not be judged")
        if version.subject not in known:
            yield SchemaProblem(
                where, "", f"no event type has the subject {version.subject}; its records must stay readable"
            )
        try:
            parse(version.schema)
        except UnsupportedSchema as error:
            yield SchemaProblem(where, error.field, error.rule)
    for name in sorted({version.subject for version in registry.versions}):
        numbers = [version.version for version in registry.history(name)]
        if numbers != list(range(1, len(numbers) + 1)):
            yield SchemaProblem(name, "", f"versions count 1, 2, 3, ..., and are {numbers}")


def _changed_versions(versions: Sequence[Version], committed: Sequence[Version]) -> Iterator[SchemaProblem]:
    now: Mapping[int, Version] = {version.id: version for version in versions}
    for version in committed:
        if version.id not in now:
            yield SchemaProblem(f"registry id {version.id}", "", "removed, but committed ids are permanent")
        elif _with_limits_of(version, now[version.id]) != version:
            yield SchemaProblem(f"registry id {version.id}", "", "changed, but committed ids are permanent")


def _with_limits_of(committed: Version, version: Version) -> Version:
    """Return a version for a comparison: one from before limits were locked may get them once."""
    return version if committed.limits is not None else msgspec.structs.replace(version, limits=None)


def _unlocked(registry: Registry, event: type[RecordValue]) -> Iterator[SchemaProblem]:
    try:
        registry.current(event)
    except SchemaError:
        yield SchemaProblem(subject(event), "", "no registry id stands for this schema; run: plant schemas lock")


def _stale(text: str) -> str:
    return "differs from its struct; run: plant schemas generate" if text else "no event type has this file"
