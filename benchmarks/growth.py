"""A log that grows: what an event costs at some sizes of it, and what acquiring a partition and look-ups take there.

The engine is fed in the worker's way, a thread and a session a partition, without a broker: a topic of that many
records would take hours to fill, and Kafka's part does not grow. Rows of full ranges are made by SQL, in the size of
real ones, with ids of their own and hashes that chain nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from audit.canonical import headers_bytes
from benchmarks.stage import Stage, clean_database
from devstack.stack import Stack
from projections.engine import PartitionProjector
from projections.id_budget import IdBudget
from projections.known_ids import LOG_RANGE_OFFSETS
from projections.read_model import READ_MODELS
from projections.session import Session, sql_literal
from schemas import codec
from schemas.events import Event
from streams.batch import EventBatch
from streams.watermarks import Leadership, Watermarks
from tests.support.load import events

TOPIC = "genesis.events"
PARTITIONS = int(os.environ.get("PLANT_GROWTH_PARTITIONS", "4"))
BATCH = 8_000
COUNTED = int(os.environ.get("PLANT_GROWTH_COUNTED", "100000"))
"""Events of each partition that are projected in a round."""

AGENTS = 50_000
SIZES = tuple(int(size) for size in os.environ.get("PLANT_GROWTH_RECORDS", "0,50000000").split(","))

RANGES_MAX = 24
"""Ranges of each partition that is measured, 25 M records. What is beyond lies in as many other partitions, in rows of
a third of the size: they grow the catalogue and what the planner sees, and fit on the disk."""

DISK_BYTES_A_RECORD = 550
"""Rows, indexes and WAL."""

ROUNDS = 3
"""How often; the median counts."""

CLOSING = os.environ.get("PLANT_GROWTH_CLOSING") == "1"
"""Whether each partition fills and closes its open range in the measured rounds: it begins as many offsets before the
range's end as half of them take."""

AGAIN = os.environ.get("PLANT_GROWTH_AGAIN") == "1"
"""Whether the events of all measured rounds are sent once more at the end: a whole file again, whose first occurrences
lie in more than one range where `PLANT_GROWTH_CLOSING` is 1 too."""

WATERMARKS = Watermarks(low=0, high=1 << 40, partition_count=2 * PARTITIONS, leadership=Leadership(UUID(int=1), 0))

_FILL = """
INSERT INTO log."{table}" ("offset", created_at, event_id, entity_id, entity_type, event_type, hash, value, headers)
SELECT n, to_timestamp(1760000000 + n / 1000), md5('{partition}/' || n)::uuid, md5((n % 50000)::text)::uuid, 'agent',
    'genesis.agent.available', sha256(int8send(n)), {value}, {headers}
FROM generate_series({first}::bigint, {last}::bigint) AS n
"""


def run(stack: Stack, _count: int = 0) -> list[dict[str, object]]:
    """Measure at each size, on one database that grows."""
    free, whole = shutil.disk_usage(stack.home).free, PARTITIONS * RANGES_MAX * LOG_RANGE_OFFSETS
    needed = (min(max(SIZES), whole) + max(0, max(SIZES) - whole) / 3) * DISK_BYTES_A_RECORD
    if free < needed:
        raise RuntimeError(
            f"{max(SIZES):,} records take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free. Name smaller sizes:"
            " PLANT_GROWTH_RECORDS=0,4000000"
        )
    rows: list[dict[str, object]] = []
    with clean_database(stack) as stage:
        # Owners feed every build that readers see; one read model is what is measured.
        stage.execute("UPDATE read_model_builds SET paused = projection <> 'agents'")
        for size in SIZES:
            ranges = -(-size // (PARTITIONS * LOG_RANGE_OFFSETS))
            measured = min(ranges, RANGES_MAX)
            _grow(stage, range(PARTITIONS), measured, _literals())
            _grow(stage, range(PARTITIONS, 2 * PARTITIONS), ranges - measured, {"value": "''", "headers": "''"})
            _settle(stage)
            rows.append({"name": f"{size:,} records before", **_measure(stage, measured)})
    for row in rows:
        row["times_the_rate_when_empty"] = round(_rate(row) / _rate(rows[0]), 3)
    return rows


def _literals() -> dict[str, str]:
    """Return value and headers of a real event's size, in SQL."""
    event = next(iter(events(1, agents=1, seed=1)))
    return {"value": f"'\\x{codec.encode(event).hex()}'::bytea", "headers": f"'\\x{(bytes(185)).hex()}'::bytea"}


def _grow(stage: Stage, partitions: Sequence[int], ranges: int, literals: dict[str, str]) -> None:
    """Fill these partitions' log up to so many ranges: what is open, and those that are missing."""
    if ranges:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda partition: _fill(stage, partition, ranges, literals), partitions))


def _settle(stage: Stage) -> None:
    """Wait until the disk and autovacuum have done what filling left to them."""
    running = "SELECT count(*) AS n FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
    stage.execute("CHECKPOINT")
    os.sync()
    while stage.query(running) != [(0,)]:
        time.sleep(1)
    stage.execute("CHECKPOINT")


def _fill(stage: Stage, partition: int, ranges: int, literals: dict[str, str]) -> None:
    """Fill the partition's log so far that its last range is half full, or nearly full where it is to be closed."""
    left = COUNTED + ROUNDS * COUNTED // 2 if CLOSING and partition < PARTITIONS else LOG_RANGE_OFFSETS // 2
    topic, until = sql_literal(TOPIC), ranges * LOG_RANGE_OFFSETS - left
    with contextlib.closing(
        PartitionProjector(stage.settings.database_address("writer"), TOPIC, partition, ())
    ) as owner:
        owner.acquire(WATERMARKS)
    ((done,),) = stage.query(
        f'SELECT coalesce(max("offset"), -1) + 1 AS n FROM log_records WHERE topic = {topic}'
        f" AND partition = {partition}"
    )
    next_offset = int(str(done))
    while next_offset < until:
        first = next_offset - next_offset % LOG_RANGE_OFFSETS
        last = min(first + LOG_RANGE_OFFSETS, until) - 1
        ((table,),) = stage.query(f"SELECT make_log_range({topic}, {partition}, {first}) AS name")
        stage.execute(_FILL.format(table=table, partition=partition, first=next_offset, last=last, **literals))
        if first:
            before = first - LOG_RANGE_OFFSETS
            stage.query(f"SELECT index_log_range({topic}, {partition}, {before}) AS made")
            stage.query(f"SELECT close_log_range({topic}, {partition}, {before}) AS closed")
            # What autovacuum does once for each range, so that it is not counted with the events that come next.
            stage.execute(f'VACUUM (FREEZE, ANALYZE) log."{log_table(partition, before)}"')
        next_offset = last + 1
    # As a worker does every so often; it answers null while the range is vacuumed or analysed.
    open_range = until - 1 - (until - 1) % LOG_RANGE_OFFSETS
    while stage.query(f"SELECT summarize_log_range({topic}, {partition}, {open_range}) AS made") == [(None,)]:
        time.sleep(1)
    stage.execute(
        f"UPDATE checkpoints SET next_offset = {next_offset} WHERE consumer = 'projector' AND topic = {topic}"
        f" AND partition = {partition}"
    )


def log_table(partition: int, first_offset: int) -> str:
    """Return the name of a range's table."""
    return f"{TOPIC}/{partition}/{first_offset}"


def _measure(stage: Stage, ranges: int) -> dict[str, object]:
    """Acquire all partitions, let the filters be read, and project; closing a range is part of that where it is due."""
    budget = IdBudget()
    url = stage.settings.database_address("writer")
    agents = [model for model in READ_MODELS if model.name == "agents"]
    projectors = [PartitionProjector(url, TOPIC, number, agents, budget) for number in range(PARTITIONS)]
    try:
        began = time.perf_counter()
        projectors[0].acquire(WATERMARKS)
        (first,) = _batches(1, seed=ranges + 1000, start=_end(projectors[0]))
        projectors[0].project(_of(projectors[0], first))
        acquired_seconds = time.perf_counter() - began
        for projector in projectors[1:]:
            projector.acquire(WATERMARKS)
        began = time.perf_counter()
        with ThreadPoolExecutor(PARTITIONS) as threads:
            list(threads.map(_load_filters, projectors))
            loaded_seconds = time.perf_counter() - began
            closed_before = _ranges_closed(stage)
            rounds = [_project_round(stage, threads, projectors, ranges * 10 + number) for number in range(ROUNDS + 1)]
            closed = _ranges_closed(stage)
            again = _again(stage, threads, projectors, ranges * 10) if AGAIN else {}
        counted = rounds[1:]  # the first one fills caches, and the read model
        return {
            "ranges_closed": closed - closed_before,
            **again,
            "events_per_second": statistics.median(rate for rate, _ in counted),
            "cpu_us_per_event": {
                part: round(statistics.median(cpu[part] for _, cpu in counted), 2) for part in ("postgres", "engine")
            },
            "acquire_and_first_batch_seconds": round(acquired_seconds, 3),
            "filters_read_seconds": round(loaded_seconds, 2),
            "known_ids_bytes": budget.reserved_bytes,
            "bytes_a_record": _bytes_a_record(stage),
            **_look_ups(stage, ranges),
        }
    finally:
        for projector in projectors:
            projector.forget()


def _project_round(
    stage: Stage, threads: ThreadPoolExecutor, projectors: Sequence[PartitionProjector], seed: int
) -> tuple[float, dict[str, float]]:
    """Project events of every partition; returns the events a second, and the processor time of each part."""
    batches = [
        [_of(projector, rows) for rows in _batches(COUNTED, seed=PARTITIONS * seed + number, start=_end(projector))]
        for number, projector in enumerate(projectors)
    ]
    before, began = {**stage.cpu_seconds(), "engine": time.process_time()}, time.perf_counter()
    list(threads.map(_project, projectors, batches))
    seconds = time.perf_counter() - began
    after = {**stage.cpu_seconds(), "engine": time.process_time()}
    counted = len(projectors) * COUNTED
    return counted / seconds, {part: (after[part] - before[part]) / counted * 1e6 for part in ("postgres", "engine")}


def _again(
    stage: Stage, threads: ThreadPoolExecutor, projectors: Sequence[PartitionProjector], seed: int
) -> dict[str, object]:
    """Project the events of the measured rounds once more: repeats, all of them."""
    batches = [
        [
            _of(projector, [(offset + shift, event) for offset, event in rows])
            for number in range(1, ROUNDS + 1)
            for shift in [(number - 1) * COUNTED]
            for rows in _batches(COUNTED, seed=PARTITIONS * (seed + number) + partition, start=_end(projector))
        ]
        for partition, projector in enumerate(projectors)
    ]
    began, cpu = time.perf_counter(), time.process_time()
    list(threads.map(_project, projectors, batches))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    counted = len(projectors) * ROUNDS * COUNTED
    if stage.number("SELECT count(*) AS n FROM log_records WHERE disposition = 'repeat'") < counted:
        raise RuntimeError("not all of them were repeats")
    return {
        "repeats_per_second": counted / seconds,
        "engine_cpu_us_per_repeat": round(cpu / counted * 1e6, 2),
    }


def _ranges_closed(stage: Stage) -> int:
    return stage.number("SELECT count(closed_at) AS n FROM log_ranges")


def _end(projector: PartitionProjector) -> int:
    return projector._require_fence().next_offset


def _load_filters(projector: PartitionProjector) -> None:
    while projector._ranges.load_more(projector._require_session()):
        pass


def _batches(count: int, *, seed: int, start: int) -> Iterator[list[tuple[int, Event]]]:
    """Yield events with their offsets, in batches."""
    made = events(count, agents=AGENTS, seed=seed)
    rows = [(start + index, event) for index, event in enumerate(made)]
    for first in range(0, count, BATCH):
        yield rows[first : first + BATCH]


def _of(projector: PartitionProjector, rows: Sequence[tuple[int, Event]]) -> EventBatch:
    """Return a batch of events, fetched under the projector's token."""
    headers = [headers_bytes(codec.headers(event, "benchmark")) for _, event in rows]
    return EventBatch(
        topic=TOPIC,
        partition=projector.partition,
        token=projector._require_fence().token,
        fetched_from=rows[0][0],
        next_offset=rows[-1][0] + 1,
        offsets=[offset for offset, _ in rows],
        timestamps_ms=[1_760_000_000_000 + offset for offset, _ in rows],
        keys=[codec.key(event) for _, event in rows],
        values=[codec.encode(event) for _, event in rows],
        headers=headers,
    )


def _project(projector: PartitionProjector, batches: Sequence[EventBatch]) -> None:
    for batch in batches:
        projector.project(batch)


def _bytes_a_record(stage: Stage) -> float:
    """Return what a record of the measured partitions takes on the disk."""
    measured = f"partition < {PARTITIONS}"
    ((size, count),) = stage.query(
        "SELECT sum(pg_total_relation_size(format('log.%I', table_name)::regclass))::bigint AS bytes,"
        f" (SELECT sum(next_offset)::bigint FROM checkpoints WHERE consumer = 'projector' AND {measured}) AS n"
        f" FROM log_ranges WHERE {measured}"
    )
    return round(int(str(size)) / max(1, int(str(count))), 1)


def _look_ups(stage: Stage, ranges: int) -> dict[str, object]:
    """Time one event by its position, and by its id, in a closed range and in an open one."""
    if not ranges:
        return {}
    # The first range may have events of the rounds before, which have other ids.
    middle = LOG_RANGE_OFFSETS // 2 - 7
    offset, newest = (number * LOG_RANGE_OFFSETS + middle for number in (min(1, ranges - 1), ranges - 1))
    position = f"""SELECT value FROM event_stream WHERE topic = '{TOPIC}' AND partition = 1 AND "offset" = {offset}"""
    by_id = "SELECT value FROM event_stream WHERE event_id = md5('1/{}')::uuid AND disposition IN ('applied', 'parked')"
    session = Session(stage.superuser_url)
    try:
        return {
            "by_position_ms": _milliseconds(session, position),
            "by_event_id_ms": _milliseconds(session, by_id.format(offset)),
            "by_newest_event_id_ms": _milliseconds(session, by_id.format(newest)),
        }
    finally:
        session.close()


def _milliseconds(session: Session, query: str) -> float:
    """Return the median of five times."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        if len(session.query(query)) != 1:
            raise RuntimeError("the event was not found")
        times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 2)


def _rate(row: dict[str, object]) -> float:
    return float(str(row["events_per_second"]))
