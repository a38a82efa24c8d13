"""The demo, from an empty machine to its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import uvloop

from audit.verifier.chains import verify_chains
from database.connector import Database, connect
from devstack.progress import Progress
from operations.demo import reading, tampering
from operations.demo.catalogue import ATTRIBUTION, catalogue
from operations.demo.delivering import DeliveryPart, delivery_part, failing_subscriber, subscription, wait_for_delivery
from operations.demo.entity_tables import REGISTRY, read_entity_tables, registry_lag
from operations.demo.errors import NotAsPromised
from operations.demo.generation import DemoAgent, Population
from operations.demo.hiring import search_marketplace, wanted_skill
from operations.demo.http_reader import HttpReader, read_others, read_own_write
from operations.demo.loading import POLL_SECONDS, STALL_TIMEOUT_SECONDS, publish_and_follow, stalled
from operations.demo.mending import MendedRecord, mend
from operations.demo.messages import Message, catalogue_messages
from operations.demo.outcome import (
    AgentRow,
    Audit,
    DemoOutcome,
    EntityTablesPart,
    MarketplacePart,
    Part,
    PartitionRow,
    Published,
    ReaderPart,
    ReadModelPart,
    RebuildPart,
)
from operations.demo.publishing import DemoPublisher, DemoTally
from operations.demo.rebuilding import rebuild_under_load
from operations.demo.services import DemoServices, running_services
from projections import log_progress
from projections.agents.queries import agents
from runtime.settings import Settings, load_settings
from signing.hmac_secrets import decode_secret
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC

PRODUCER: Final = "demo"
SAMPLE_ROWS: Final = 8
SAMPLE_SKILLS: Final = 2

NEXT: Final = (
    "plant consume --type genesis.agent.rated --limit 5",
    "plant consume --topic plant.operations --output json",
    "plant dead-letters list --state resolved",
    "plant audit verify",
    "plant topics list",
    "plant down",
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person can choose."""

    agents: int
    seed: int


class Run:
    """One demo on services that are up."""

    def __init__(self, options: Options, own: DemoServices, progress: Progress) -> None:
        self.options = options
        self.tally = DemoTally()
        self.number = 0
        self.population: Population
        self._secret: bytes
        self._stage = own
        self._progress = progress
        self.settings: Settings = load_settings(own.environ)

    def publish(self) -> Published:
        """Start a worker, ingress and the API, add a key, publish everything, and wait until it is projected."""
        self.number = 1 + uvloop.run(self._with("operator", lambda database: reading.keys_made(database, PRODUCER)))
        self._progress.say("Starting plant worker, plant ingress and plant api")
        self._stage.start("worker")
        self._stage.start_server("ingress")
        self._stage.start_server("api")
        self._progress.say(f"Adding a key for the producer {PRODUCER}, good for one hour")
        why = "The demo signs its webhooks with it."
        added = self._stage.call("keys", "add", PRODUCER, "--expires", "1h", "--actor", "demo", "--reason", why)
        self._secret = decode_secret(added.strip())
        url = self._stage.url("ingress")
        self.population = Population(
            catalogue(), agents=self.options.agents, seed=self.options.seed, run=self.number, now=datetime.now(UTC)
        )
        phases = [
            list(catalogue_messages(catalogue())),
            list(self.population.onboarded()),
            list(self.population.available()),
            list(self.population.judged()),
        ]
        total = sum(map(len, phases))
        self._progress.say(f"Publishing {total:,} events to {url}, each in a signed request, while the worker projects")
        published: Published = uvloop.run(self._publish(url, phases))
        return published

    async def _publish(self, url: str, phases: list[list[Message]]) -> Published:
        publisher = DemoPublisher(url, self._secret, self.tally, self._stage.alive)
        return await publish_and_follow(
            self.settings, self._stage, publisher, self.tally, phases, run=self.number, seed=self.options.seed
        )

    def read_model(self) -> ReadModelPart:
        """Return this run's agents as readers see them."""
        ids = [agent.id for agent in self.population.agents]
        rows = uvloop.run(self._with("api", lambda database: agents(database, ids)))
        if len(rows) != len(ids):
            raise NotAsPromised("Agents are missing in the read model.", why=f"It has {len(rows)} of {len(ids)}.")
        shown = [_agent_row(row) for row in rows[:SAMPLE_ROWS]]
        return ReadModelPart(agents=len(rows), available=sum(bool(row.available) for row in rows), rows=shown)

    def mend(self) -> MendedRecord:
        """Return what became of a bad record of this run's first agent, which `plant dead-letters` repairs."""
        return mend(self.settings, self._stage, self.population.agents[0].id)

    def marketplace(self) -> MarketplacePart:
        """Return the best agents for a skill that many have, once `plant embed` has made skills comparable."""
        self._stage.call("embed", "--once")
        agents = self.population.agents
        found: MarketplacePart = uvloop.run(self._with("api", lambda database: search_marketplace(database, agents)))
        return found

    def read_over_http(self) -> ReaderPart:
        """Return what a reader with a token of its own reads through the API, its own write included."""
        made = ("tokens", "add", PRODUCER, "--expires", "1h", "--output", "json", "--actor", "demo")
        added: dict[str, Any] = msgspec.json.decode(self._stage.call(*made, "--reason", "The demo reads with it."))
        return uvloop.run(self._read_over_http(added))

    async def _read_over_http(self, added: dict[str, Any]) -> ReaderPart:
        agent = self.population.agents[1]
        reader = HttpReader(self._stage.url("api"), added["token"], self._stage.alive)
        publisher = DemoPublisher(self._stage.url("ingress"), self._secret, self.tally, self._stage.alive)
        try:
            position, own = await read_own_write(
                reader,
                agent.id,
                lambda available: publisher.send(self.population.changed(agent, available, datetime.now(UTC))),
            )
            others = await read_others(reader, agent.id, wanted_skill(self.population.agents))
        finally:
            await publisher.close()
            await reader.close()
        return ReaderPart(
            token_prefix=added["prefix"],
            scopes=added["scopes"],
            position=f"{position.topic}/{position.partition}/{position.offset}",
            reads=[*own, *others],
        )

    def start_deliveries(self) -> None:
        """Start a dispatcher and a deliverer, which are ready some seconds later."""
        self._stage.start("dispatcher")
        self._stage.start("deliverer")

    def deliver(self) -> DeliveryPart:
        """Return what became of an event for a subscriber that fails at first."""
        agent = self.population.agents[2]
        with failing_subscriber() as subscriber:
            with subscription(self._stage, subscriber, "genesis.agent.available") as endpoint_id:
                uvloop.run(self._change_availability(agent))
                delivery, attempts = uvloop.run(
                    self._with("operator", lambda database: wait_for_delivery(database, self._stage.alive, endpoint_id))
                )
            return delivery_part(delivery, attempts, subscriber)

    async def _change_availability(self, agent: DemoAgent) -> None:
        (before,) = await self._with("api", lambda database: agents(database, [agent.id]))
        publisher = DemoPublisher(self._stage.url("ingress"), self._secret, self.tally, self._stage.alive)
        try:
            await publisher.send(self.population.changed(agent, not before.available, datetime.now(UTC)))
        finally:
            await publisher.close()

    def rebuild(self) -> RebuildPart:
        """Return what a rebuild of a read model took while ratings came in, once readers see it."""
        load = self.population.more_ratings(datetime.now(UTC))

        async def run() -> RebuildPart:
            publisher = DemoPublisher(self._stage.url("ingress"), self._secret, self.tally, self._stage.alive)
            return await rebuild_under_load(self._stage, publisher, load)

        part: RebuildPart = uvloop.run(run())
        return part

    def fill_entity_tables(self) -> EntityTablesPart:
        """Return what the entity tables hold, once `registry` is resumed and has caught up from the log."""
        why = "The demo shows the entity tables."
        self._stage.call("projections", "resume", REGISTRY, "--actor", "demo", "--reason", why)
        fewest, fell_at = None, time.monotonic()
        while lag := uvloop.run(self._with("operator", registry_lag)):
            if fewest is None or lag < fewest:
                fewest, fell_at = lag, time.monotonic()
            self._stage.alive()
            if time.monotonic() - fell_at > STALL_TIMEOUT_SECONDS:
                raise stalled(self._stage, "The read model registry is not filled.", f"It lacks {lag} records")
            time.sleep(POLL_SECONDS)
        ids = [agent.id for agent in self.population.agents]
        part: EntityTablesPart = uvloop.run(self._with("api", lambda database: read_entity_tables(database, ids)))
        return part

    def partitions(self) -> list[PartitionRow]:
        """Return the checkpoints of each partition, once everything in Kafka is in Postgres."""
        deadline = time.monotonic() + STALL_TIMEOUT_SECONDS
        while True:
            rows = uvloop.run(self._partitions())
            if sum(row.lag for row in rows) == 0 or time.monotonic() > deadline:
                return rows
            self._stage.alive()

    async def _partitions(self) -> list[PartitionRow]:
        ends = await reading.log_ends(self.settings, (EVENTS_TOPIC, OPERATIONS_TOPIC))
        reached = await self._with("auditor", log_progress.checkpoints)
        return [
            _partition_row(topic, partition, end, reached.get((topic, partition), (0, 0)))
            for (topic, partition), end in ends.items()
        ]

    def audit(self) -> Audit:
        """Run the real verifier over every chain, as plant_auditor."""
        # One process: more of them pay from about a million entries on.
        chains = verify_chains(self.settings.database_address("auditor"), jobs=1)
        bad = [chain for chain in chains if chain.state != "good"]
        if bad:
            raise NotAsPromised(
                f"The chain {bad[0].chain} is not good.",
                why=f"Its verdict is {bad[0].state}. {bad[0].finding or ''}",
                next_step="plant audit verify",
            )
        if not any(chain.topic == EVENTS_TOPIC for chain in chains):
            raise NotAsPromised("The log has no chain.", why="Nothing was checked.", next_step="plant audit verify")
        return Audit(verdict="good", entries=sum(chain.entries for chain in chains), chains=chains)

    def tamper(self) -> tuple[list[tampering.RefusedStatement], tampering.TamperedRow]:
        """Try to change an entry of this run in the log itself."""
        row = tampering.choose_row(self.settings.database_address("auditor"), self.tally.first_offsets)
        return tampering.attempt_changes(self.settings, row), row

    def tamper_copy(self, row: tampering.TamperedRow) -> tampering.Forgery:
        """Change the entry on a copy of the log."""
        return tampering.forge_copy(self._stage.stack.environ, row)

    async def _with(self, role: Any, read: Callable[[Database], Any]) -> Any:
        database = connect(self.settings, role)
        try:
            return await read(database)
        finally:
            await database.close()


def run_demo(options: Options, progress: Progress, show: Callable[[Part], None], started: float) -> DemoOutcome:
    """Run the demo; `show` gets each part when it is known, `started` is the monotonic time it counts from.

    Nothing that it started is left when it returns or raises.
    """
    with running_services(progress) as (own, was_up):
        demo = Run(options, own, progress)

        published = demo.publish()
        show(published)
        demo.start_deliveries()
        read_model = demo.read_model()
        show(read_model)
        progress.say("Letting another program write a bad record, and repairing it")
        mended = demo.mend()
        show(mended)
        progress.say("Computing embeddings of skills, and searching the marketplace")
        marketplace = demo.marketplace()
        show(marketplace)
        progress.say("Adding a token, and reading through the API")
        reader = demo.read_over_http()
        show(reader)
        progress.say("Delivering an event to a subscriber that fails at first")
        delivery = demo.deliver()
        show(delivery)
        progress.say("Rebuilding the read model ratings while ratings come in, and showing it to readers")
        rebuilt = demo.rebuild()
        show(rebuilt)
        progress.say("Resuming the read model registry, which fills the entity tables from the log")
        entity_tables = demo.fill_entity_tables()
        show(entity_tables)
        partitions = demo.partitions()
        show(partitions)
        progress.say("Verifying every audit chain, from the stored bytes, as plant_auditor")
        audit = demo.audit()
        show(audit)
        progress.say("Trying to change the log")
        refused, row = demo.tamper()
        show(refused)
        progress.say("Changing one byte of a copy, as superuser with the triggers off")
        forgery = demo.tamper_copy(row)
        show(forgery)
    return DemoOutcome(
        esco=ATTRIBUTION,
        generated=generated_note(options.seed, published.run),
        published=published,
        read_model=read_model,
        mended=mended,
        marketplace=marketplace,
        reader=reader,
        delivery=delivery,
        rebuilt=rebuilt,
        entity_tables=entity_tables,
        partitions=partitions,
        audit=audit,
        refused=refused,
        found=forgery,
        stack_stays_up=was_up,
        total_seconds=round(time.monotonic() - started, 1),
        next=[*([] if was_up else ["plant up"]), *NEXT],
    )


def generated_note(seed: int, number: int) -> str:
    """Return the sentence that says which of the shown data is generated."""
    return (
        f"Skills and job roles are ESCO's. Agents, their availability, ratings and validations are generated "
        f"(seed {seed}, run {number})."
    )


def _agent_row(row: Any) -> AgentRow:
    names = catalogue().names()
    some = [names[skill_id] for skill_id in row.skill_ids[:SAMPLE_SKILLS]]
    return AgentRow(
        agent_id=row.agent_id,
        agent=row.name,
        job_role=names[row.job_role_id],
        skills=len(row.skill_ids),
        some_skills=", ".join(some) + (", …" if len(row.skill_ids) > SAMPLE_SKILLS else ""),
        status=row.status,
        available=row.available,
    )


def _partition_row(topic: str, partition: int, end: int, reached: tuple[int, int]) -> PartitionRow:
    event_log, read_model = reached
    return PartitionRow(
        topic=topic,
        partition=partition,
        log_end=end,
        event_log=event_log,
        read_model=read_model,
        lag=end - min(reached),
    )
