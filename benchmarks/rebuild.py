"""Rebuilding read models from the log: each with builds, next to raw COPY of as many rows, and the stock pipeline.

One worker projects a topic with all of them first. Then each is rebuilt with nothing beside it, up to where workers
would take it, and compared, which is not in the rate. Raw COPY puts as many rows of the shape of `agents` as there were
events into a table without an index, in binary and in chunks of the same size: the limit of what any rebuild could do.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import psutil

from benchmarks import catch_up
from benchmarks.stage import Stage
from devstack.stack import Stack
from projections.read_model import READ_MODELS
from projections.rebuild import comparison, rebuilds
from projections.rebuild.fill import Filler
from projections.rebuild.pace import CHUNK_RECORDS
from projections.rebuild.topic_source import MakeSource
from projections.session import Session
from schemas.polars_import import polars as pl

STOCK_SECONDS: Final = 20.0

_COPIED = """
CREATE TABLE copied (
    agent_id uuid, name text, industry_id uuid, status text, profile_offset bigint, profile_changed_at timestamptz,
    available boolean, availability_offset bigint, availability_changed_at timestamptz, governance_agent_id text
)
"""


def run(stack: Stack, count: int) -> list[dict[str, object]]:
    """Measure every model, raw COPY and the stock pipeline, on a topic of so many events."""
    stack.down(delete_data=True)
    stack.up()
    catch_up.fill_topic(stack, count)
    rows: list[dict[str, object]] = []
    catch_up.plant(stack, "five models", count, check=lambda stage: rows.extend(_measure(stage, count)))
    rows.append(catch_up.stock_faust(stack, STOCK_SECONDS))
    copied, stock = (float(str(row["events_per_second"])) for row in rows[-2:])
    for row in rows:
        rate = float(str(row["events_per_second"]))
        row |= {"times_stock": round(rate / stock, 1), "percent_of_copy": round(rate / copied * 100, 1)}
    return rows


def _measure(stage: Stage, count: int) -> list[dict[str, object]]:
    stage.execute("VACUUM ANALYZE log_records")
    models = [model.name for model in READ_MODELS if not model.starts_paused]
    rebuilt(stage, models[:1], count)  # reads the log into the machine's memory
    return [*(rebuilt(stage, names, count) for names in [*([name] for name in models), models]), copied(stage, count)]


def _timed(stage: Stage, name: str, count: int, work: Callable[[], None]) -> dict[str, object]:
    own, postgres, began_at = psutil.Process().cpu_times(), stage.cpu_seconds()["postgres"], time.perf_counter()
    work()
    seconds, after = time.perf_counter() - began_at, psutil.Process().cpu_times()
    spent = {
        "rebuild": after.user + after.system - own.user - own.system,
        "postgres": stage.cpu_seconds()["postgres"] - postgres,
    }
    cpu = {part: round(each / count * 1e6, 2) for part, each in spent.items()}
    return {"name": name, "events_per_second": count / seconds, "cpu_us_per_event": cpu}


def rebuilt(stage: Stage, names: Sequence[str], count: int, make_source: MakeSource | None = None) -> dict[str, object]:
    """Rebuild models in one pass, from the log or from what `make_source` reads; compare them, and drop them."""
    url = stage.settings.database_address("owner")
    with contextlib.closing(Session(url)) as session:
        sources = [rebuilds.source_of(rebuilds.builds_of(session, name), name, None) for name in names]
        models = [rebuilds.begin(session, source, "benchmark", "It is measured.") for source in sources]

        def work() -> None:
            Filler(url, models, lambda _model, _count: None, make_source=make_source).run(session)
            for model in models:
                rebuilds.finish(session, model)

        row = _timed(stage, " ".join(names), count, work)
        for source, model in zip(sources, models, strict=True):
            if not comparison.compare(session, source, model).same:
                raise RuntimeError(f"{model.key} is not what {source.key} is")
            session.script(
                "UPDATE read_model_builds SET phase = 'retired' WHERE phase = 'kept'",
                f"DROP SCHEMA {model.schema} CASCADE",
            )
    return row


def copied(stage: Stage, count: int) -> dict[str, object]:
    """Put so many rows of the shape of `agents` into a table without an index, by binary COPY."""
    rows = _rows(min(CHUNK_RECORDS, count))
    with contextlib.closing(Session(stage.superuser_url)) as session:
        session.script(_COPIED)

        def work() -> None:
            for start in range(0, count, CHUNK_RECORDS):
                session.copy("copied", rows.head(count - start))

        return _timed(stage, "raw COPY", count, work)


def _rows(count: int) -> pl.DataFrame:
    ids = [secrets.token_bytes(16) for _ in range(count)]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "agent_id": ids, "name": [f"agent {number}" for number in range(count)], "industry_id": ids,
            "status": ["onboarded"] * count, "profile_offset": range(count),
            "profile_changed_at": [at] * count, "available": [True] * count,
            "availability_offset": range(count), "availability_changed_at": [at] * count,
            "governance_agent_id": ["genesis"] * count,
        }
    )  # fmt: skip
