"""Closed sets and limits of entities' fields. The CHECK constraints of migrations 001 to 003 hold to the same."""

from __future__ import annotations

from typing import Final

ENTITY_TYPES: Final = ("agent", "skill", "job_role", "industry", "team")
ALIGNMENTS: Final = ("aligned", "drifted", "unknown")
SKILL_CATEGORIES: Final = ("technical", "soft_skill", "domain_expertise")
SENIORITIES: Final = ("junior", "mid", "senior")

# States in life. Others may come with events; these mean something here.
ACTIVE: Final = "active"
RETIRED: Final = "retired"
STUB: Final = "stub"
"""Referred to before anything else was known of it."""

DEFAULT_TENANT: Final = "genesis"
"""The tenant of entities that name no other."""

NAME_MAX_CHARACTERS: Final = 200
TEXT_MAX_CHARACTERS: Final = 10_000
TAGS_MAX: Final = 50
TAG_MAX_CHARACTERS: Final = 100
IDS_MAX: Final = 1_000
"""Ids in one list: what an event can carry."""
ATTRIBUTES_DEPTH_MAX: Final = 8
ATTRIBUTES_VALUES_MAX: Final = 1_000
EMBEDDING_DIMENSIONS: Final = 384
