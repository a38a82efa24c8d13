"""Repairing the entity tables: the log is folded again into a shadow of them, and entities that differ are folded over.

They keep their place, since others write to them too, so there is no build to swap. The shadow is filled by the
model's own statement, a slice a transaction. Then it is brought up to the log's end with the rows of
`partition_owners` locked, which each worker locks before it writes; so what is compared is of one moment.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from database.errors import DatabaseUnreachable
from entities import shadow
from projections.fold import FOLD_RECORDS, fold_slice
from projections.read_model import ReadModel
from projections.rebuild.errors import BuildLag, RebuildRefused
from projections.session import Session, TableLocked
from projections.staging import Staging

MERGED_ENTITIES: Final = 500
"""Entities that are folded over in one transaction, for which workers wait."""

PAUSE_SECONDS: Final = 0.1

_HOLD_WORKERS: Final = (
    "SET LOCAL lock_timeout = '2s'",
    "SET LOCAL idle_in_transaction_session_timeout = '5min'",  # the other session folds meanwhile
    "SELECT FROM partition_owners WHERE consumer = 'projector' ORDER BY topic, partition FOR UPDATE",
)

_ENDS: Final = """
SELECT c.topic, c.partition, c.next_offset, coalesce(m.next_offset, 0) AS model
FROM checkpoints AS c LEFT JOIN projection_checkpoints AS m
    ON m.projection || '/' || m.version = $1 AND (m.topic, m.partition) = (c.topic, c.partition)
WHERE c.consumer = 'projector' ORDER BY 1, 2
"""


class EntityMismatch(NamedTuple):
    """An entity that its tables do not have as events and versions say; `what` is `changed`, `missing` or `added`."""

    tenant: str
    kind: str
    id: str
    what: str


class RegistryRepair:
    """One repair, in the owner's session and in one of the projection's role; `fill`, `find` and `merge`, in order.

    `tenants` are those whose entities are compared besides those of the log: of direct changes that it does not have.
    """

    def __init__(self, owner: Session, writer: Session, model: ReadModel, tenants: Iterable[str] = ()) -> None:
        self._owner = owner
        self._tenants = frozenset(tenants)
        self._writer = writer
        self._key = model.key
        text = model.apply_text.replace("public.fold_entity(", f"{shadow.SHADOW}.fold_entity(")
        self._model = ReadModel(model.name, model.version, model.tables_text, text)
        self._staging = Staging([self._model])
        self._at: dict[tuple[str, int], int] = {}
        self._run: list[tuple[str]] = []
        self.found: list[EntityMismatch] = []
        self.compared = 0
        """Entities that there should be: with none of them, and none found, nothing was compared."""
        self.refused: dict[str, str] = {}
        """Why an entity could not be folded over, by its id."""

    @contextlib.contextmanager
    def shadowed(self) -> Iterator[None]:
        """Have the empty shadow for the time of a block."""
        owner = self._owner
        owner.script(*shadow.make_shadow())
        try:
            for (definition,) in owner.query(shadow.FUNCTIONS):
                owner.execute(definition)
            owner.script(
                *shadow.complete_shadow(), self._model.tables_in(shadow.SHADOW),
                f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {shadow.SHADOW} TO plant_writer",
            )  # fmt: skip
            self._run = owner.query(shadow.RUN)
            self._staging.open(self._writer)
            yield
        finally:
            # An error may have left transactions open. Where the shadow can't be dropped, the next run does it.
            for session, last in ((self._writer, "ROLLBACK"), (owner, "ROLLBACK"), (owner, shadow.DROP)):
                session.forget_waiting()
                with contextlib.suppress(DatabaseUnreachable):
                    session.script(last)

    def _require_own_shadow(self) -> None:
        """Raise RebuildRefused where another operator has made the shadow again, since this one's session had ended."""
        if self._writer.query(shadow.RUN) != self._run:
            raise RebuildRefused(
                f"{self._key} is being repaired by another operator.", why="The owner's session of this run has ended.",
                next_step="plant projections list",
            )  # fmt: skip

    def events(self) -> int:
        """Return how many offsets the log has."""
        return sum(end for *_, end, _ in self._writer.query(_ENDS, (self._key,)))

    def fill(self, advance: Callable[[int], None]) -> None:
        """Fold the log into the shadow, until less than a slice of it is left."""
        while True:
            ends = self._writer.query(_ENDS, (self._key,))
            folded = sum(self._fold(topic, partition, end, advance) for topic, partition, end, _ in ends)
            if folded < FOLD_RECORDS:
                self._owner.script(f"ANALYZE {shadow.SHADOW}.entities")
                return

    def _fold(self, topic: str, partition: int, end: int, advance: Callable[[int], None]) -> int:
        """Fold a partition up to an offset, a slice a transaction; returns how many offsets that were."""
        began = start = self._at.get((topic, partition), 0)
        while start < end:
            self._writer.begin()
            self._require_own_shadow()
            after = fold_slice(
                self._writer, self._staging, [self._model], topic, partition, (start, end), schema=shadow.SHADOW
            )  # fmt: skip
            self._writer.commit()
            advance(after - start)
            self._at[topic, partition] = start = after
        return start - began

    @contextlib.contextmanager
    def _workers_held(self, wait_seconds: float) -> Iterator[None]:
        """Have no worker that writes for a block, and the shadow at the log's end. Raises BuildLag, TableLocked."""
        deadline = time.monotonic() + wait_seconds
        while True:
            self._owner.begin()
            try:
                self._owner.script(*_HOLD_WORKERS)
                self._bring_up()
                break
            except (BuildLag, TableLocked):
                self._owner.rollback()
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_SECONDS)
            except BaseException:
                self._owner.rollback()
                raise
        try:
            yield
        finally:
            self._owner.rollback()

    def _bring_up(self) -> None:
        for topic, partition, end, model in self._writer.query(_ENDS, (self._key,)):
            if model != end:
                raise BuildLag(
                    f"{self._key} is not at the log's end on {topic}/{partition}.",
                    why=f"It is at {model} of {end}: workers have to bring it up, or it is paused.",
                    next_step="plant projections list --partitions    # then repair again",
                )
            self._fold(topic, partition, end, lambda _: None)

    def find(self, wait_seconds: float) -> None:
        """Find the entities that differ, in one snapshot. Raises BuildLag where the model stays behind the log."""
        writer = self._writer
        with self._workers_held(wait_seconds):
            writer.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SET LOCAL statement_timeout = 0",
                          "SET LOCAL idle_in_transaction_session_timeout = 0")  # fmt: skip
            writer.query("SELECT 1 AS snapshot")
        try:
            for tenant in sorted(self._tenants.union(each for (each,) in self._owner.query(shadow.TENANTS))):
                self._in_tenant(tenant)
                self.compared += writer.query(shadow.COMPARED)[0][0]
                for statement in (shadow.DIFFERENT, shadow.ADDED):
                    self.found += [EntityMismatch(tenant, *row) for row in writer.query(_as_text(statement))]
        finally:
            writer.rollback()

    def merge(self, advance: Callable[[int], None], wait_seconds: float) -> int:
        """Fold over those that are changed or missing, and still are; returns how many. Added ones are left."""
        merged = 0
        by_tenant: dict[str, list[str]] = {}
        for each in self.found:
            if each.what != "added":
                by_tenant.setdefault(each.tenant, []).append(each.id)
        for tenant, ids in by_tenant.items():
            for start in range(0, len(ids), MERGED_ENTITIES):
                some = ids[start : start + MERGED_ENTITIES]
                with self._workers_held(wait_seconds):
                    rows = self._merge(tenant, ",".join(some))
                merged += sum(refusal is None for refusal in rows.values())
                self.refused |= {entity: refusal for entity, refusal in rows.items() if refusal is not None}
                advance(len(some))
        return merged

    def _merge(self, tenant: str, ids: str) -> dict[str, str | None]:
        """Fold over entities; returns why it was refused, or None, for each that still differed."""
        while True:
            self._writer.begin()
            try:
                rows = self._folded_over(tenant, ids)
                if rows is not None:
                    self._owner.query("SELECT 1 AS held")  # raises where workers were not held to the end
                    self._writer.commit()
                    return rows
            except BaseException:
                self._writer.rollback()
                raise
            self._writer.rollback()

    def _folded_over(self, tenant: str, ids: str) -> dict[str, str | None] | None:
        """Do it within a transaction; None where an entity was changed directly meanwhile, which MERGE has not seen.

        What is missing has no row that could be locked before, and a fold waits for whoever inserts it.
        """
        writer = self._writer
        self._in_tenant(tenant)
        self._require_own_shadow()
        writer.query(f"SELECT count(*) AS n FROM ({shadow.LOCK}) AS locked", (ids,))  # noqa: S608 (of ours)
        before = writer.query(shadow.DIRECT_CHANGES, (ids,))
        rows = dict(writer.query(_as_text(shadow.MERGE, "refusal"), (ids,)))
        return rows if writer.query(shadow.DIRECT_CHANGES, (ids,)) == before else None

    def _in_tenant(self, tenant: str) -> None:
        self._writer.query("SELECT set_config('plant.governance_agent_id', $1, true) AS tenant", (tenant,))


def _as_text(statement: str, *more: str) -> str:
    """Return a statement whose ids come as text."""
    columns = ", ".join(("id::text AS id", *more)) if more else "kind, id::text AS id, what"
    return f"SELECT {columns} FROM ({statement}) AS rows"  # noqa: S608 (of ours)
