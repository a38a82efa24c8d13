"""The results of the demo, part by part, in the order in which they are known."""

from __future__ import annotations

from uuid import UUID

import msgspec

from audit.verifier.verdicts import ChainVerdict
from operations.demo.delivering import DeliveryPart
from operations.demo.mending import MendedRecord
from operations.demo.tampering import Forgery, RefusedStatement


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What went in by HTTP, what the worker made of it, and how fast. `dispositions` are the log's words."""

    run: int
    seed: int
    by_type: dict[str, int]
    published: int
    published_per_second: float
    projected: int
    projected_per_second: float
    dispositions: dict[str, int]


class AgentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of read_models.agents, with ESCO's names next to the ids. `skills` counts all of them."""

    agent_id: UUID
    agent: str
    job_role: str
    skills: int
    some_skills: str
    status: str
    available: bool


class ReadModelPart(msgspec.Struct, frozen=True, kw_only=True):
    """This run's agents in the read model."""

    agents: int
    available: int
    rows: list[AgentRow]


class HireableRow(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that can be hired, and those of its skills that were asked for."""

    agent_id: UUID
    agent: str
    job_role: str
    skills: list[str]
    ratings: int
    bayesian_average: float


class MarketplacePart(msgspec.Struct, frozen=True, kw_only=True):
    """A search of the marketplace: a skill, those like it, and the best agents that are available."""

    skill: str
    similar_skills: list[str]
    rows: list[HireableRow]


class HttpRead(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the API for readers, the status of its answer, and what that showed."""

    request: str
    status: int
    shown: str


class ReaderPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader with a token read over HTTP. Of the token there is the prefix, by which operators name it.

    `position` is the record of the reader's own write, which one of the requests waited for.
    """

    token_prefix: str
    scopes: list[str]
    position: str
    reads: list[HttpRead]


class RebuildPart(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild that readers see: events folded into it, rows compared by table, and events that came in meanwhile."""

    build: str
    events: int
    seconds: float
    compared: dict[str, int]
    published_meanwhile: int


class EntityTypeRow(msgspec.Struct, frozen=True, kw_only=True):
    """The entities of a type, and the versions that they have had."""

    entity_type: str
    entities: int
    versions: int


class EntityTablesPart(msgspec.Struct, frozen=True, kw_only=True):
    """The entity tables as the read model `registry` has filled them, and what `plant entities check` says of them."""

    checked: int
    findings: int
    rows: list[EntityTypeRow]


class PartitionRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where one partition stands: the log's end in Kafka, and the next offsets in Postgres."""

    topic: str
    partition: int
    log_end: int
    event_log: int
    read_model: int
    lag: int


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The verifier's verdict on every chain."""

    verdict: str
    entries: int
    chains: list[ChainVerdict]


class DemoOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    esco: str
    generated: str
    published: Published
    read_model: ReadModelPart
    mended: MendedRecord
    marketplace: MarketplacePart
    reader: ReaderPart
    delivery: DeliveryPart
    rebuilt: RebuildPart
    entity_tables: EntityTablesPart
    partitions: list[PartitionRow]
    audit: Audit
    refused: list[RefusedStatement]
    found: Forgery
    stack_stays_up: bool
    total_seconds: float
    next: list[str]


Part = (
    Published
    | ReadModelPart
    | MendedRecord
    | MarketplacePart
    | DeliveryPart
    | ReaderPart
    | RebuildPart
    | EntityTablesPart
    | list[PartitionRow]
    | Audit
    | list[RefusedStatement]
    | Forgery
)
