"""The base entity, with the fields that all kinds have in common, in seven sections.

Its tenant stands in the column `governance_agent_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    FetchedValue,
    Index,
    LargeBinary,
    UniqueConstraint,
    case,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Mapper, mapped_column
from sqlalchemy.types import Text

from entities.mapping import JsonObject, LongText, Moment, Row, Token, length, of_hash, one_of
from entities.validators import accept
from entities.vocabulary import (
    ACTIVE,
    ALIGNMENTS,
    DEFAULT_TENANT,
    ENTITY_TYPES,
    NAME_MAX_CHARACTERS,
    RETIRED,
    STUB,
    TAGS_MAX,
    TEXT_MAX_CHARACTERS,
)


def _json(column: str, kind: str) -> CheckConstraint:
    return CheckConstraint(f"jsonb_typeof({column}) = '{kind}'", name=column)


class Entity(Row):
    """An entity of any kind. Times are UTC; ids are made here unless passed; hashes are written by the database.

    A row whose status is `stub` was referred to before anything else was known of it, and has no row of its kind: it is
    loaded as an `Entity`, not as a `Skill` or `Agent`, and `entities/store.py` describes it.
    """

    __tablename__ = "entities"

    id_lists: ClassVar[Mapping[str, str]] = {}
    """Lists of ids that a kind has, and the collection of rows behind each."""

    # Identity
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4, server_default=func.gen_random_uuid())
    entity_type: Mapped[Token] = mapped_column()
    external_id: Mapped[Token | None]
    """Its identifier in the catalogue it comes from, such as an ESCO URI; unique in its tenant when set directly."""
    external_id_from_event: Mapped[bool] = mapped_column(server_default=text("false"), server_onupdate=FetchedValue())
    """Whether that came with an event. It is not enforced to be unique then: see docs/decisions/0033."""

    # Lifecycle
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now(), server_onupdate=FetchedValue())
    deleted_at: Mapped[Moment | None]
    """When it was retired: its row stays."""
    status: Mapped[str] = mapped_column(Text, default=ACTIVE, server_default=ACTIVE)

    # Versioning
    version_hash: Mapped[bytes | None] = mapped_column(
        LargeBinary, server_default=FetchedValue(), server_onupdate=FetchedValue()
    )
    """SHA-256 of its state; see entities/versions.py. Written as a transaction commits: refresh to see it."""
    amendment_history: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list, server_default=text("'[]'"))
    """Amendments in order: `at`, `by` and `reason` of each. Added to by `amend`."""
    evolution_markers: Mapped[JsonObject]

    # Constitutional alignment
    l0_compliance_status: Mapped[JsonObject]
    """Rule to whether it held when last checked."""
    amendment_alignment: Mapped[Token] = mapped_column(default="unknown", server_default="unknown")
    drift_detector: Mapped[JsonObject]

    # Audit trail
    append_only: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    hash_chain_sha256: Mapped[bytes | None] = mapped_column(
        LargeBinary, server_default=FetchedValue(), server_onupdate=FetchedValue()
    )
    """The head of its chain of versions: `hash` of the newest."""
    tamper_proof: Mapped[bool] = mapped_column(default=True, server_default=text("true"))

    # Metadata
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default=text("'{}'"))
    custom_attributes: Mapped[JsonObject]
    governance_notes: Mapped[LongText]

    # Relationships; the children are those whose parent this is: `child_ids`.
    parent_id: Mapped[UUID | None]
    governance_agent_id: Mapped[Token] = mapped_column(default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)
    """The tenant, under the name that its column has: only transactions of that tenant see the row."""

    __table_args__: Any = (
        one_of("entity_type", ENTITY_TYPES),
        length("external_id", NAME_MAX_CHARACTERS, shortest=1),
        length("status", NAME_MAX_CHARACTERS, shortest=1),
        of_hash("version_hash"),
        _json("amendment_history", "array"),
        _json("evolution_markers", "object"),
        _json("l0_compliance_status", "object"),
        one_of("amendment_alignment", ALIGNMENTS),
        _json("drift_detector", "object"),
        CheckConstraint("append_only", name="append_only"),
        of_hash("hash_chain_sha256"),
        CheckConstraint("tamper_proof", name="tamper_proof"),
        CheckConstraint(f"cardinality(tags) <= {TAGS_MAX}", name="tags"),
        _json("custom_attributes", "object"),
        length("governance_notes", TEXT_MAX_CHARACTERS),
        CheckConstraint("parent_id <> id", name="parent_id"),
        length("governance_agent_id", NAME_MAX_CHARACTERS, shortest=1),
        UniqueConstraint("id", "governance_agent_id"),
        Index(
            "entities_external_id",
            "governance_agent_id",
            "external_id",
            unique=True,
            postgresql_where=text("external_id IS NOT NULL AND NOT external_id_from_event"),
        ),
        Index("entities_type", "governance_agent_id", "entity_type", "id"),
        Index("entities_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("entities_tags", "tags", postgresql_using="gin"),
    )
    __mapper_args__ = {
        "polymorphic_on": case((status == STUB, STUB), else_=entity_type),
        "polymorphic_identity": STUB,
        "eager_defaults": True,
    }

    def __init__(self, **values: Any) -> None:
        """Give every field its default at once, so that an entity can be judged before it is written.

        An `Entity` of no kind is a stub, and needs its `entity_type`.
        """
        mapper = inspect(type(self))
        if mapper.polymorphic_identity == STUB:
            values.setdefault("status", STUB)
        else:
            values.setdefault("entity_type", mapper.polymorphic_identity)
        for column in mapper.columns:
            if isinstance(column, Column) and column.key not in values and (default := _default(column)) is not _LATER:
                values[column.key] = default
        # Through the proxy each id would be compared with all before it.
        for ids, links in self.id_lists.items():
            proxy: Any = mapper.all_orm_descriptors[ids]
            values.setdefault(links, {proxy.creator(each) for each in set(values.pop(ids, ()))})
        super().__init__(**values)

    def __repr__(self) -> str:
        # An id that was not checked yet may be a text without UTF-8, and this stands in messages.
        return f"{type(self).__name__}({self.id if isinstance(self.id, UUID) else ascii(self.id)})"

    @property
    def is_stub(self) -> bool:
        """Whether nothing but its id and kind is known."""
        return self.status == STUB

    def fields(self) -> dict[str, Any]:
        """Return its fields by name, lists of ids included, as far as they are loaded. Asks no database."""
        state = inspect(self)
        names = [each.key for each in state.mapper.column_attrs if isinstance(each.columns[0], Column)]
        columns = {name: getattr(self, name) for name in names if name not in state.unloaded}
        lists = {name for name, links in self.id_lists.items() if links not in state.unloaded}
        return columns | {name: set(getattr(self, name)) for name in lists}

    def amend(self, *, at: datetime, by: str, reason: str) -> None:
        """Add an amendment. SQLAlchemy does not notice a change of `amendment_history` in place."""
        self.amendment_history = [*self.amendment_history, {"at": at.isoformat(), "by": by, "reason": reason}]

    def retire(self, at: datetime) -> None:
        """Retire the entity: it is no longer in use; its row and its versions stay."""
        self.deleted_at = at
        self.status = RETIRED


_LATER: Final = object()
"""The default of a column that the database fills, or that is loaded only on demand."""


def _default(column: Column[Any]) -> Any:
    if column.default is not None:
        default: Any = column.default
        return default.arg(None) if default.is_callable else default.arg
    return _LATER if column.server_default is not None or column.name == "embedding" else None


def _accept(_: Mapper[Any], __: Connection, entity: Entity) -> None:
    history = inspect(entity).attrs.amendment_history.history
    accept(entity, history.deleted[0] if history.deleted else ())


for _moment in ("before_insert", "before_update"):
    event.listen(Entity, _moment, _accept, propagate=True)


async def child_ids(session: AsyncSession, entity: Entity) -> list[UUID]:
    """Return the ids of the entities whose parent this one is, sorted; retired ones included."""
    ids = await session.scalars(select(Entity.id).where(Entity.parent_id == entity.id).order_by(Entity.id))
    return list(ids)
