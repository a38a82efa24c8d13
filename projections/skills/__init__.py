"""The read model `skills`: the catalogue, validations, and the statement that folds a batch into them."""

from collections.abc import Mapping
from typing import Final

VERSION: Final = 1

LAST_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "staged_skill_registered": ("skill_id",),
    "staged_skill_validated": ("skill_id", "agent_id"),
    "staged_entity_amended": ("entity_type", "entity_id"),
    "staged_entity_retired": ("entity_type", "entity_id"),
}
"""Its statement takes the last event of each skill and group, so a rebuild stages no others."""
