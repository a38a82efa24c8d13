"""The demo's real input: ESCO's ICT skills and occupations (`data/README.md`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Final
from uuid import UUID

import msgspec

from schemas.entity_states import SkillCategory

ATTRIBUTION: Final = "This service uses the ESCO classification of the European Commission."

_CATEGORIES: Final[dict[str, SkillCategory]] = {"skill": "technical", "knowledge": "domain_expertise"}


class DemoSkill(msgspec.Struct, frozen=True):
    """An ESCO skill."""

    id: UUID
    uri: str
    name: str
    description: str
    category: SkillCategory


class DemoJobRole(msgspec.Struct, frozen=True):
    """An ESCO occupation, with those of its skills that are in the catalogue."""

    id: UUID
    uri: str
    name: str
    description: str
    skill_ids: tuple[UUID, ...]


class DemoCatalogue(msgspec.Struct, frozen=True):
    """What the demo publishes of ESCO, in the files' order."""

    skills: tuple[DemoSkill, ...]
    job_roles: tuple[DemoJobRole, ...]

    def names(self) -> dict[UUID, str]:
        """Return the names of skills and job roles by id."""
        names = {skill.id: skill.name for skill in self.skills}
        return names | {role.id: role.name for role in self.job_roles}


@cache
def catalogue() -> DemoCatalogue:
    """Return the catalogue, read once a process."""
    skills = tuple(
        DemoSkill(_id(row["uri"]), row["uri"], row["label"], row["description"], _CATEGORIES[row["skill_type"]])
        for row in _rows("skills.csv")
    )
    ids = {skill.name: skill.id for skill in skills}
    job_roles = tuple(
        DemoJobRole(
            _id(row["uri"]),
            row["uri"],
            row["label"],
            row["description"],
            tuple(ids[label] for label in row["skill_labels"].split("|") if label in ids),
        )
        for row in _rows("occupations.csv")
    )
    return DemoCatalogue(skills, job_roles)


def _rows(name: str) -> Iterator[dict[str, str]]:
    content = (files("operations.demo") / "data" / name).read_text(encoding="utf-8")
    yield from csv.DictReader(io.StringIO(content))


def _id(uri: str) -> UUID:
    return UUID(uri.rsplit("/", 1)[1])
