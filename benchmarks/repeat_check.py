"""The repeat check: the ways that were tried, and what each costs the database and the client for a row.

Each way puts the same rows into a log table of its own, in the engine's batches; the table holds half a million rows
before counting begins, so that the index is no toy. Costs are CPU time of the backend and wall time of the client.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import psutil

from benchmarks.stage import Stage, clean_database
from devstack.stack import Stack
from projections.session import Session
from schemas.polars_import import polars as pl

BATCH = 8_000
BEFORE = 500_000
COUNTED = 160_000

TABLE = """CREATE TABLE tried (topic text COLLATE "C" NOT NULL, partition integer NOT NULL, "offset" bigint NOT NULL,
disposition text NOT NULL, event_id uuid, short_id bigint, value bytea, PRIMARY KEY (topic, partition, "offset"))"""
LOOK_UP = """SELECT count(*) AS n FROM looked_for AS l CROSS JOIN LATERAL (SELECT FROM tried AS t
WHERE t.event_id = l.event_id AND t.partition = 0 AND t.topic = 'genesis.events' AND t.disposition = 'applied'
LIMIT 1) AS s"""
LOOK_UP_SHORT = """SELECT count(*) AS n FROM looked_for AS l CROSS JOIN LATERAL (SELECT FROM tried AS t
WHERE t.short_id = l.short_id AND t.event_id = l.event_id LIMIT 1) AS s"""
UNIQUE = "CREATE UNIQUE INDEX ON tried (event_id, partition, topic) WHERE disposition = 'applied'"


@dataclass(frozen=True)
class Way:
    """An index, the look-up before each batch if there is one, and whether event ids are ordered by time."""

    name: str
    what: str
    index: str | None = None
    look_up: str | None = None
    ordered: bool = False


WAYS = (
    Way("none", "no check at all"),
    Way("unique index, no look-up", "what Plant does: a repeat is refused, its batch then looks up", UNIQUE),
    Way("unique index, look-up first", "what Plant does after a repeat, for 64 batches", UNIQUE, LOOK_UP),
    Way("plain index, look-up first", "a join before the COPY", "CREATE INDEX ON tried (event_id)", LOOK_UP),
    Way("hash index, look-up first", "an index half the size", "CREATE INDEX ON tried USING hash (event_id)", LOOK_UP),
    Way(
        "8-byte index, look-up first",
        "first half of the id, ids compared",
        "CREATE INDEX ON tried (short_id)",
        LOOK_UP_SHORT,
    ),
    Way(
        "unique index, ids ordered by time", "UUIDv8: a repeat with another time would not be found", UNIQUE, None, True
    ),
)


def run(stack: Stack) -> list[dict[str, object]]:
    """Every way, one after the other, on clean databases."""
    with clean_database(stack) as stage:
        rows = [_measure(stage, way) for way in WAYS]
    base = float(str(rows[0]["postgres_cpu_us_per_row"]))
    for row in rows:
        row["check_us_per_row"] = round(float(str(row["postgres_cpu_us_per_row"])) - base, 2)
    return rows


def _measure(stage: Stage, way: Way) -> dict[str, object]:
    session = Session(stage.superuser_url)
    try:
        session.script("DROP TABLE IF EXISTS tried", TABLE, *([way.index] if way.index else []))
        session.script("CREATE TEMPORARY TABLE IF NOT EXISTS looked_for (event_id uuid, short_id bigint)")
        backend = psutil.Process(session.query("SELECT pg_backend_pid() AS pid")[0][0])
        frames = _frames(way)
        for frame in frames[: BEFORE // BATCH]:
            _put(session, way, frame)
        cpu = _cpu_seconds(backend)
        started = time.perf_counter()
        for frame in frames[BEFORE // BATCH :]:
            _put(session, way, frame)
        counted = len(frames[BEFORE // BATCH :]) * BATCH
        return {
            "name": way.name,
            "what": way.what,
            "postgres_cpu_us_per_row": round((_cpu_seconds(backend) - cpu) / counted * 1e6, 2),
            "wall_us_per_row": round((time.perf_counter() - started) / counted * 1e6, 2),
        }
    finally:
        session.close()


def _put(session: Session, way: Way, frame: pl.DataFrame) -> None:
    session.begin()
    if way.look_up:
        session.script("TRUNCATE looked_for")
        session.copy("looked_for", frame.select("event_id", "short_id"), temporary=True)
        assert session.query(way.look_up) == [(0,)]
    session.copy("tried", frame)
    session.commit()


def _frames(way: Way) -> list[pl.DataFrame]:
    chance = random.Random(7)
    frames = []
    for start in range(0, BEFORE + COUNTED, BATCH):
        ids = [
            ((start + number) << 80 | chance.getrandbits(80) if way.ordered else chance.getrandbits(128)).to_bytes(16)
            for number in range(BATCH)
        ]
        frames.append(
            pl.DataFrame(
                [
                    pl.Series("topic", ["genesis.events"]).new_from_index(0, BATCH),
                    pl.Series("partition", [0], dtype=pl.Int32).new_from_index(0, BATCH),
                    pl.Series("offset", range(start, start + BATCH), dtype=pl.Int64),
                    pl.Series("disposition", ["applied"]).new_from_index(0, BATCH),
                    pl.Series("event_id", ids, dtype=pl.Binary),
                    pl.Series("short_id", [int.from_bytes(one[:8], signed=True) for one in ids], dtype=pl.Int64),
                    pl.Series("value", [b"v" * 280]).new_from_index(0, BATCH),
                ]
            )
        )
    return frames


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
