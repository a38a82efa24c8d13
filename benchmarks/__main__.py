"""`python -m benchmarks [NAME ...]`: every benchmark, or those named; a table and JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    attacks,
    brokers,
    catch_up,
    connector,
    dead_letters,
    deliveries,
    delivery_delays,
    delivery_memory,
    delivery_rates,
    fuzzing,
    growth,
    lagging,
    latency,
    memory,
    poison,
    read_api,
    rebuild,
    rebuild_load,
    redrive,
    relay,
    repeat_check,
    rotation,
    row_level_security,
    vectors,
    verification,
)
from benchmarks.attackers import ATTACKS
from benchmarks.stage import HOME, clean_database, running_stack
from devstack.stack import Stack
from streams import topics

RESULTS = Path("benchmarks/results")
COLUMNS_MAX = 8
console = Console(stderr=True)


def catching_up(stack: Stack, count: int) -> list[dict[str, object]]:
    """1 M events, 4 partitions, one worker, next to the stock pipeline."""
    # What the benchmarks before have left on the topic is not what is to be measured.
    stack.down(delete_data=True)
    stack.up()
    console.print(f"filling the topic with {count:,} events")
    catch_up.fill_topic(stack, count)
    # The first pass makes WAL segments that later ones use again, and the broker compiles its code.
    console.print("catching up: once unmeasured, to warm up")
    catch_up.plant(stack, "plant", count)
    rows = _beside_stock(stack, count, catch_up.TOPIC, catch_up.VARIANTS)
    console.print(f"filling another topic with {count:,} events that concern every read model")
    catch_up.fill_for_all_models(stack, count)
    return rows + _beside_stock(stack, count, catch_up.ALL_MODELS_TOPIC, catch_up.MORE_MODELS)


def _beside_stock(stack: Stack, count: int, topic: str, variants: Iterable[str]) -> list[dict[str, object]]:
    """Measure variants and then the stock pipeline, all on one topic; each row has its ratios to both ends."""
    rows = []
    for variant in variants:
        console.print(f"catching up: {variant}")
        rows.append(catch_up.plant(stack, variant, count, topic))
    console.print("catching up: stock Faust + SQLAlchemy")
    rows.append(catch_up.stock_faust(stack, seconds=20, topic=topic))
    full, stock = (float(str(row["events_per_second"])) for row in (rows[0], rows[-1]))
    for row in rows:
        rate = float(str(row["events_per_second"]))
        row |= {"plant_is_times_faster": round(full / rate, 2), "times_stock": round(rate / stock, 1)}
    return rows


def feeding_a_lagging_model(stack: Stack, count: int) -> list[dict[str, object]]:
    """A backlog with a model that lags, and without; on a topic of its own, which grows."""
    stack.down(delete_data=True)
    stack.up()
    catch_up.fill_topic(stack, 0)
    return lagging.run(stack, count // 3)


WAYS_IN = (
    ["--requests", "250000"],
    ["--requests", "450000", "--processes", "2"],
    ["--batch", "500", "--requests", "2000"],
    ["--batch", "500", "--requests", "2500", "--processes", "2"],
)
"""So many distinct requests that none has to be sent twice, which the deduplication cache would answer."""


def way_in(stack: Stack, count: int) -> list[dict[str, object]]:
    """What ingress takes: webhooks, and batches of 500, each with one process and with two.

    Two processes find idle cores with batches alone: broker and load take next to nothing then, and of webhooks half a
    core.
    """
    rows = [_way_in(stack, *arguments) for arguments in WAYS_IN]
    for one, two in (rows[:2], rows[2:]):
        if one["every_request_distinct"] and two["every_request_distinct"]:
            two["times_one_process"] = round(two["events_per_second"] / one["events_per_second"], 2)
    return rows


def _way_in(stack: Stack, *arguments: str) -> dict[str, Any]:
    with clean_database(stack) as stage:
        asyncio.run(topics.apply(stage.settings))
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.ingress", *arguments],
            env={**stage.environ, "PLANT_HOME": str(HOME)},
            stdout=subprocess.PIPE,
            check=True,
        )
    row: dict[str, Any] = json.loads(result.stdout)
    return row


# In this order: the database, latency and ingress are measured before the topic is full.
BENCHMARKS: dict[str, Callable[[Stack, int], list[dict[str, object]]]] = {
    "connector": lambda stack, _: connector.run(stack),
    "fairness": lambda stack, _: [connector.fairness(stack)],
    "row-level-security": lambda stack, _: row_level_security.run(stack),
    "vectors": lambda stack, _: vectors.run(stack),
    "latency": lambda stack, _: latency.run(stack),
    "ingress": way_in,
    "attacks": lambda stack, _: attacks.run(stack),
    "rotation": lambda stack, _: rotation.run(stack),
    "brokers": lambda *_: brokers.run(),
    "fuzzing": lambda *_: fuzzing.run(),
    "repeat-check": lambda stack, _: repeat_check.run(stack),
    "verify": verification.run,
    "catch-up": catching_up,
    "growth": lambda stack, _: growth.run(stack),
    "memory": lambda stack, count: [filled_memory(stack, 2 * count)],
    "partitions": lambda stack, count: many_partitions(stack, 2 * count),
    "relay": lambda stack, _: relay.run(stack),
    "poison": lambda stack, count: poison.run(stack, count // 2),
    "dead-letters": lambda stack, _: dead_letters.run(stack),
    "deliveries": lambda stack, _: deliveries.run(stack),
    "delivery-delays": lambda stack, _: delivery_delays.run(stack),
    "delivery-rates": lambda stack, _: delivery_rates.run(stack),
    "delivery-memory": lambda stack, count: [delivery_memory.run(stack, count)],
    "redrive": lambda stack, _: redrive.run(stack),
    "read-api": lambda stack, _: read_api.run(stack),
    "lagging": feeding_a_lagging_model,
    "rebuild": rebuild.run,
    "rebuild-load": rebuild_load.run,
}


ASKED: tuple[tuple[str, int, str, str, float], ...] = (
    *(("connector", row, "overhead_percent", "at most", 35) for row in range(4)),
    ("fairness", 0, "longest_is_times_median", "at most", 4),
    *(("row-level-security", row, "overhead_percent", "at most", 25) for row in range(4)),
    ("vectors", 0, "p99_ms", "at most", 5),
    *(("vectors", row, "recall_at_10", "at least", 0.95) for row in range(3)),
    ("latency", 0, "p50_ms", "at most", 25),
    ("latency", 0, "p99_ms", "at most", 150),
    ("latency", 1, "p50_times_one_model", "at most", 1.3),
    ("latency", 1, "p99_times_one_model", "at most", 1.3),
    ("ingress", 0, "events_per_second", "at least", 5_000),
    ("ingress", 2, "events_per_second", "at least", 50_000),
    ("ingress", 3, "times_one_process", "at least", 1.7),
    *(("attacks", row, "honest_200_percent", "at least", 95) for row in range(1 + len(ATTACKS))),
    *(("attacks", row, "p99_ms", "at most", 250) for row in range(1 + len(ATTACKS))),
    ("rotation", 0, "refused", "at most", 0),
    ("brokers", 0, "p99_ms", "at most", 25),
    ("fuzzing", 0, "requests", "at least", 1_000_000),
    ("verify", 1, "entries_per_second", "at least", 150_000),
    ("catch-up", 0, "events_per_second", "at least", 60_000),
    ("catch-up", 0, "times_stock", "at least", 50),
    ("catch-up", 6, "times_stock", "at least", 165),
    ("catch-up", 7, "times_stock", "at least", 115),
    ("catch-up", 9, "times_stock", "at least", 80),
    ("growth", 1, "times_the_rate_when_empty", "at least", 0.9),
    ("growth", 1, "acquire_and_first_batch_seconds", "at most", 2),
    ("poison", 1, "percent_of_the_rate_without", "at least", 80),
    ("read-api", 0, "percent_of_asyncpg", "at least", 60),
    ("read-api", 1, "p99_times_asyncpg", "at most", 2),
    ("memory", 0, "growth_percent", "at most", 10),
    *(("partitions", row, "peak_mb", "at most", 1_000) for row in (0, 1)),
    ("dead-letters", 0, "seconds", "at most", 120),
    *(("deliveries", row, "percent_of_bare", "at least", 40) for row in (1, 5, 6, 7)),
    *(("deliveries", row, "percent_of_all_good", "at least", 80) for row in (2, 3, 4, 8)),
    ("deliveries", 10, "p99_times_all_good", "at most", 1.2),
    ("delivery-delays", 0, "p50_more_ms", "at most", 10),
    ("delivery-delays", 0, "p99_more_ms", "at most", 30),
    *(("delivery-delays", row, "p99_ms", "at most", 250) for row in (1, 2, 3)),
    *(("redrive", row, "seconds", "at most", 300) for row in (0, 1)),
    ("delivery-memory", 0, "growth_percent", "at most", 10),
    ("lagging", 1, "times_the_rate_without_lag", "at least", 0.67),
    ("rebuild", 1, "times_stock", "at least", 500),
    ("rebuild", 1, "percent_of_copy", "at least", 50),
    ("rebuild-load", 1, "p99_times_alone", "at most", 2),
    ("rebuild-load", 2, "failed", "at most", 0),
    ("rebuild-load", 2, "max_ms", "at most", 100),
    ("rebuild-load", 4, "percent_of_a_tenth", "at least", 90),
)
"""Benchmark, row, field, and what is asked of it on idle cores."""


def filled_memory(stack: Stack, count: int) -> dict[str, object]:
    """Measure the worker's memory over twice as many events; the topic is filled up to that."""
    missing = count - catch_up.end_offsets(stack)
    if missing > 0:
        console.print(f"filling the topic with {missing:,} more events")
        catch_up.fill_topic(stack, missing, seed=2)
    return memory.run(stack, count)


def many_partitions(stack: Stack, count: int) -> list[dict[str, object]]:
    """Measure the worker's memory on a topic of many partitions, which takes a broker without the others' topic."""
    stack.down(delete_data=True)
    stack.up()
    console.print(f"filling {memory.MANY_PARTITIONS} partitions with {count:,} events")
    catch_up.fill_topic(stack, count, partitions=memory.MANY_PARTITIONS)
    return memory.run_many_partitions(stack, count)


def verdicts(results: Mapping[str, list[dict[str, object]]]) -> list[dict[str, object]]:
    """What was asked next to what was measured, of the benchmarks that ran."""
    rows: list[dict[str, object]] = []
    for name, number, field, bound, asked in ASKED:
        found = results.get(name, [])
        row = found[number] if found and number < len(found) else {}
        measured = row.get(field)
        if name in results and not isinstance(measured, int | float):
            nothing: dict[str, object] = {"measured": "nothing", "": "NOT MEASURED"}
            rows.append({"benchmark": name, "figure": field, "asked": f"{bound} {asked:,}", **nothing})
        if isinstance(measured, int | float):
            met = measured >= asked if bound == "at least" else measured <= asked
            what = next((row[key] for key in ("unit", "read", "searched", "attack", "what", "name") if key in row), "")
            rows.append(
                {
                    "benchmark": f"{name}: {what}",
                    "figure": field,
                    "asked": f"{bound} {asked:,}",
                    "measured": measured,
                    "": "met" if met else "MISSED",
                }
            )
    return rows


NEED_WRK = frozenset({"ingress", "read-api"})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which ones; all by default")
    options.add_argument("--events", type=int, default=1_000_000)
    given = options.parse_args()
    with running_stack() as stack:
        results = {}
        for name in [name for name in BENCHMARKS if name in (given.names or BENCHMARKS)]:
            if name in NEED_WRK and shutil.which("wrk") is None:
                console.print(f"{name} was not measured: it needs wrk, the load generator (Debian: apt install wrk)")
                results[name] = []
                continue
            results[name] = BENCHMARKS[name](stack, given.events)
            show(name, results[name])
    if rows := verdicts(results):
        show("asked and measured", rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    written = RESULTS / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.local.json"
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    written.write_text(json.dumps({"machine": machine, "results": results}, indent=2))
    console.print(f"written to {written}")


def show(title: str, rows: list[dict[str, object]]) -> None:
    """Print a line a row; where the fields are many and the rows few, a line a field."""
    out = Console(width=None if sys.stdout.isatty() else 160)
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    if len(flat) == 1 or len(columns) > COLUMNS_MAX >= len(flat):
        table = Table(title=title, show_header=False)
        for column in columns:
            table.add_row(column, *(row.get(column, "") for row in flat))
    else:
        table = Table(*columns, title=title)
        for row in flat:
            table.add_row(*(row.get(column, "") for column in columns))
    out.print(table)


def _flat(row: Mapping[str, object], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in row.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            flat[name] = ", ".join(map(str, value))
        elif isinstance(value, float):
            flat[name] = f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"
        else:
            flat[name] = f"{value:,}" if isinstance(value, int) else str(value)
    return flat


if __name__ == "__main__":
    main()
