"""The read model `marketplace`: who can be hired now, and the statements that fold a batch into its tables."""

from collections.abc import Mapping
from typing import Final

VERSION: Final = 3

LAST_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "staged_agent_onboarded": ("agent_id",),
    "staged_agent_available": ("agent_id",),
    "staged_skill_registered": ("skill_id",),
    "staged_job_role_defined": ("job_role_id",),
    "staged_industry_defined": ("industry_id",),
    "staged_entity_amended": ("entity_type", "entity_id"),
    "staged_entity_retired": ("entity_type", "entity_id"),
}
"""Its statements take the last of these events of each entity, so a rebuild stages no others. Ratings are added up."""
