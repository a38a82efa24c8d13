"""Errors of entities, and of writes and searches of them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import CheckFailed, PlantError


class EntityRefused(PlantError):
    """An entity can't be written as it is."""

    exit_code = 2


class EntityInvalid(EntityRefused):
    """An entity's fields are not what they have to be."""


class ConstitutionBroken(EntityRefused):
    """An entity breaks a rule that no entity may break."""


class KindChanged(EntityRefused):
    """The id belongs to an entity of another kind."""


class EntitiesInconsistent(CheckFailed):
    """Entities do not fit together."""


class VectorRefused(PlantError):
    """A vector can't be compared with embeddings."""

    exit_code = 2


class SearchRefused(PlantError):
    """Entities can't be searched for in this way."""

    exit_code = 2


class EmbedderBroken(PlantError):
    """The embedder broke its contract; nothing that it returned is used."""


def listed(problems: Sequence[str], most: int = 5) -> str:
    """Return problems as one sentence; past the first few, only how many more.

    >>> listed(["a", "b"])
    'a; b.'
    """
    shown = "; ".join(problems[:most])
    return f"{shown}; and {len(problems) - most} more." if len(problems) > most else f"{shown}."
