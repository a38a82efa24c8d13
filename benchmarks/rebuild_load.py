"""What a rebuild does to those that use the service meanwhile, and how its rate grows: of each a benchmark.

Live latency beside a rebuild that never ends, within a rate; reads by key at a steady rate through swaps and back; the
rate of a large log beside that of a tenth of it; and the rate at which the registry is folded to be repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import UUID

import asyncpg

from benchmarks import catch_up
from benchmarks.ingress import add_key, revoke_key, wait_ready
from benchmarks.latency import send_and_watch, without_warm_up
from benchmarks.rebuild import rebuilt
from benchmarks.stage import Stage, clean_database, process
from devstack.stack import Stack
from projections.read_model import READ_MODELS
from projections.rebuild import choice, rebuilds, swap
from projections.rebuild.fill import Filler
from projections.rebuild.pace import RebuildPace
from projections.rebuild.registry_repair import RegistryRepair
from projections.session import Session
from signing.hmac_secrets import new_secret

EVENTS_PER_SECOND: Final = 1_000
"""Of the live events beside a rebuild."""

REBUILD_MAX_RATE: Final = 20_000
"""The rebuild's `--max-rate` beside them."""

READS_PER_SECOND: Final = 2_000
READERS: Final = 16
SWAPS: Final = 10
SWAP_WAIT_SECONDS: Final = 60.0

_LOGGED: Final = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'projector'"
_READ: Final = "SELECT name, available FROM read_models.agents WHERE agent_id = $1"


def run(stack: Stack, count: int) -> list[dict[str, object]]:
    """Measure latency and reads on a log of a tenth as many events, growth up to all, the registry on a hundredth."""
    return [
        *_on_log(stack, count // 10, "five models", latency_beside_rebuild),
        *_on_log(stack, count // 10, "five models", lambda stage: [reads_through_swaps(stage)]),
        *growth(stack, count),
        *_on_log(stack, count // 100, "registry", lambda stage: [registry_rate(stage)]),
    ]


def _on_log(
    stack: Stack, count: int, variant: str, measure: Callable[[Stage], list[dict[str, object]]]
) -> list[dict[str, object]]:
    """Measure with a worker that has projected a topic of so many events and goes on."""
    stack.down(delete_data=True)
    stack.up()
    catch_up.fill_topic(stack, count)
    with clean_database(stack) as stage:
        if variant == "registry":
            stage.execute("UPDATE read_model_builds SET paused = false WHERE projection = 'registry'")
        with process(stage, "-m", "benchmarks.variant", variant):
            _wait_for(lambda: stage.number(_LOGGED) >= count, "the worker has the topic")
            return measure(stage)


def _wait_for(condition: Callable[[], bool], what: str, seconds: float = 3_600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.2)


class _OverError(Exception):
    """The rebuild was beside the load for long enough."""


@contextlib.contextmanager
def _rebuilding(stage: Stage, max_rate: int) -> Iterator[None]:
    """Rebuild all models again and again, within a rate, until the block ends."""
    over = threading.Event()

    def advance(_model: object, _count: int) -> None:
        if over.is_set():
            raise _OverError

    def work() -> None:
        url = stage.settings.database_address("owner")
        names = [model.name for model in READ_MODELS if not model.starts_paused]
        with contextlib.closing(Session(url)) as session, contextlib.suppress(_OverError):
            while not over.is_set():
                sources = [rebuilds.source_of(rebuilds.builds_of(session, name), name, None) for name in names]
                models = [rebuilds.begin(session, source, "benchmark", "It is measured.") for source in sources]
                try:
                    Filler(url, models, advance, pace=RebuildPace(max_rate)).run(session)
                finally:
                    for model in models:
                        session.script(
                            f"UPDATE read_model_builds SET phase = 'retired' WHERE projection = '{model.name}'",
                            f"DROP SCHEMA {model.schema} CASCADE",
                        )

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def latency_beside_rebuild(stage: Stage) -> list[dict[str, object]]:
    """From HTTP 200 to a visible row at a steady rate, without a rebuild and beside one."""
    secret, rows = new_secret(), list[dict[str, object]]()
    key_id = asyncio.run(add_key(stage.settings, secret))
    try:
        with TemporaryDirectory() as folder:
            ready = Path(folder) / "ready.json"
            with process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)):
                url = wait_ready(ready)
                for name, beside in (
                    ("live events alone", contextlib.nullcontext()),
                    ("live events beside a rebuild", _rebuilding(stage, REBUILD_MAX_RATE)),
                ):
                    with beside:
                        api = stage.settings.database_api_url
                        counted = without_warm_up(asyncio.run(send_and_watch(url, secret, api, EVENTS_PER_SECOND)))
                    delays = sorted((event.visible_at - event.answered_at) * 1000 for event in counted)
                    figures = {"p50_ms": statistics.median(delays), "p99_ms": delays[int(len(delays) * 0.99)]}
                    rows.append({"name": name, "max_rate": REBUILD_MAX_RATE, **figures})
    finally:
        asyncio.run(revoke_key(stage.settings, key_id))
    alone, beside_it = (float(str(row["p99_ms"])) for row in rows)
    rows[1]["p99_times_alone"] = round(beside_it / alone, 2)
    return rows


def reads_through_swaps(stage: Stage) -> dict[str, object]:
    """Read agents by key at a steady rate, and move readers to a rebuild and back meanwhile."""
    with contextlib.closing(Session(stage.settings.database_address("owner"))) as session:
        source = rebuilds.source_of(rebuilds.builds_of(session, "agents"), "agents", None)
        model = rebuilds.begin(session, source, "benchmark", "It is measured.")
        Filler(stage.settings.database_address("owner"), [model], lambda _model, _count: None).run(session)
        rebuilds.finish(session, model)
        _wait_for(lambda: rebuilds.following(session, model).lag == 0, "workers have the rebuild")
        waited, failed = asyncio.run(_read_and_swap(stage, session))
    waited.sort()
    return {
        "name": f"reads through {SWAPS} swaps", "reads": len(waited), "failed": len(failed),
        "first_failure": failed[0] if failed else "", "p99_ms": waited[int(len(waited) * 0.99)], "max_ms": waited[-1],
    }  # fmt: skip


async def _read_and_swap(stage: Stage, session: Session) -> tuple[list[float], list[str]]:
    waited, failed, over = list[float](), list[str](), asyncio.Event()
    ids = [UUID(bytes=agent) for (agent,) in session.query("SELECT agent_id FROM agents_v1.agents LIMIT 1000")]
    readers = [
        asyncio.create_task(_read(stage.settings.database_api_url, number, ids, over, waited, failed))
        for number in range(READERS)
    ]
    for _ in range(SWAPS):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(_swap, session)
    await asyncio.sleep(0.5)
    over.set()
    await asyncio.gather(*readers)
    return waited, failed


def _swap(session: Session) -> None:
    known = choice.sharing_views(rebuilds.builds_of(session, "agents"), None)
    swap.move(session, choice.beside(known), choice.live(known), wait_seconds=SWAP_WAIT_SECONDS)


async def _read(
    url: str, number: int, ids: list[UUID], over: asyncio.Event, waited: list[float], failed: list[str]
) -> None:
    """Read on a fixed timetable; a read that is due late counts from when it was due."""
    connection: Any = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT set_config('plant.governance_agent_id', 'genesis', false)")
        statement = await connection.prepare(_READ)
        pause = READERS / READS_PER_SECOND
        due = time.monotonic() + number * pause / READERS
        while not over.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                await statement.fetchrow(ids[len(waited) % len(ids)])
                waited.append((time.monotonic() - due) * 1000)
            except asyncpg.PostgresError as error:
                failed.append(repr(error))
            due += pause
    finally:
        await connection.close()


def growth(stack: Stack, count: int) -> list[dict[str, object]]:
    """Rebuild `agents` from a tenth of a log, and from all of it."""
    rows: list[dict[str, object]] = []
    for events in (count // 10, count):
        stack.down(delete_data=True)
        stack.up()
        catch_up.fill_topic(stack, events)

        def measure(stage: Stage, events: int = events) -> None:
            stage.execute("VACUUM ANALYZE log_records")
            rebuilt(stage, ["agents"], events)  # reads the log into the machine's memory
            rows.append({**rebuilt(stage, ["agents"], events), "name": f"agents from {events:,} events"})

        catch_up.plant(stack, "plant", events, check=measure)
    small, large = (float(str(row["events_per_second"])) for row in rows)
    rows[1]["percent_of_a_tenth"] = round(large / small * 100, 1)
    return rows


def registry_rate(stage: Stage) -> dict[str, object]:
    """Fold the log into the registry's shadow, and compare it."""
    settings = stage.settings
    with (
        contextlib.closing(Session(settings.database_address("owner"))) as owner,
        contextlib.closing(Session(settings.database_address("writer"))) as writer,
    ):
        repair = RegistryRepair(owner, writer, choice.live(rebuilds.builds_of(owner, "registry")).model)
        with repair.shadowed():
            events, began_at = repair.events(), time.monotonic()
            repair.fill(lambda _: None)
            filled_at = time.monotonic()
            repair.find(SWAP_WAIT_SECONDS)
        found = {"compared": repair.compared, "different": len(repair.found)}
    rate = events / (filled_at - began_at)
    return {"name": "repair registry", "events": events, "events_per_second": rate, **found,
            "compare_seconds": round(time.monotonic() - filled_at, 2)}  # fmt: skip
