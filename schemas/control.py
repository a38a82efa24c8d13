"""Control records: they stand among a partition's events, are about the log itself, and no read model takes one.

They have schemas and ids like events, so an older worker, which does not know the id, waits. What a control record does
follows from its bytes and its offset alone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final
from uuid import UUID, uuid5

from msgspec import Meta

from schemas.entity_states import Reason
from schemas.event_id import NAMESPACE_PLANT
from schemas.events import RecordValue

LOGGED_TOPICS: Final = ("genesis.events", "plant.operations")
"""The topics that workers log, as schemas name them."""


class ControlRecord(RecordValue, frozen=True, kw_only=True):
    """A record that changes how its partition is logged, on any topic that is logged.

    Its key is null where it is about no entity.
    """

    @classmethod
    def belongs_on(cls, topic: str) -> bool:
        return topic in LOGGED_TOPICS


class ChainVersionRaised(ControlRecord, frozen=True, kw_only=True):
    """From this record on, the partition's audit chain covers the canonical bytes of this version."""

    event_type: ClassVar[str] = "plant.chain.version_raised"

    version: Annotated[int, Meta(ge=2, le=2, description="Version of the canonical bytes (audit/canonical.py).")]


PoisonOffset = Annotated[int, Meta(ge=0, description="Offset of the poison record, in this partition.")]


class RecordRedriven(ControlRecord, frozen=True, kw_only=True):
    """A poison record of this partition and key takes effect from here on, as the event that it was meant to be."""

    event_type: ClassVar[str] = "plant.record.redriven"

    event_id: Annotated[UUID, Meta(description="Id of the event that takes effect.")]
    poison_offset: PoisonOffset
    value: Annotated[bytes, Meta(description="Repaired bytes; null: the poison record's own.")] | None = None
    reason: Annotated[Reason, Meta(description="Why an operator redrives it.")]


class RecordSkipped(ControlRecord, frozen=True, kw_only=True):
    """A poison record of this partition and key never takes effect, and holds up no event of its entity any more."""

    event_type: ClassVar[str] = "plant.record.skipped"

    poison_offset: PoisonOffset
    reason: Annotated[Reason, Meta(description="Why an operator skips it.")]


CONTROL_TYPES: Final[dict[str, type[ControlRecord]]] = {
    control.event_type: control for control in (ChainVersionRaised, RecordRedriven, RecordSkipped)
}
"""Control type to its struct."""

CHAIN_VERSION: Final = 2
"""The newest version of the canonical bytes."""


def chain_version_raised(topic: str, partition: int, version: int = CHAIN_VERSION) -> ChainVersionRaised:
    """Return the control record that takes a partition to a version; its id follows from partition and version.

    >>> chain_version_raised("genesis.events", 3).event_id
    UUID('a0823e33-3a4e-529a-9ff4-4b6cbd15fbc6')
    """
    name = f"{ChainVersionRaised.event_type}\n{topic}/{partition}\n{version}"
    return ChainVersionRaised(event_id=uuid5(NAMESPACE_PLANT, name), version=version)
