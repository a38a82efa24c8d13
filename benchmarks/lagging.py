"""What it costs live projection that a read model lags and is fed next to it.

One worker projects a backlog with `agents`, by turns with `ratings` paused and with `ratings` resumed, which then lacks
as many records as come in. The rate is that of the log while the model lags.
"""

from __future__ import annotations

import statistics
import time

import psutil

from benchmarks.catch_up import AGENTS, TOPIC
from benchmarks.stage import Stage, clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from tests.support.load import events_of_all_models, fill

ROUNDS = 2
FED = "ratings"
LIVE = ("agents", FED)
OFFSETS = f"""
SELECT (SELECT sum(next_offset) FROM checkpoints WHERE consumer = 'projector')::bigint AS log,
       (SELECT sum(next_offset) FROM projection_checkpoints WHERE projection = '{FED}')::bigint AS fed
"""
TIMEOUT_SECONDS = 600


def run(stack: Stack, count: int) -> list[dict[str, object]]:
    """Measure both by turns, on one database; `count` events a turn. The topic is empty before."""
    with clean_database(stack) as stage:
        names = ", ".join(f"'{name}'" for name in LIVE)
        stage.execute(f"UPDATE read_model_builds SET paused = projection NOT IN ({names})")
        _turn(stage, "to warm up", 0, count)
        rows = [
            _turn(stage, name, count * number, count) for number, name in enumerate(("paused", "fed") * ROUNDS, start=1)
        ]
    paused, fed = (
        {
            "name": f"{FED} is {name}",
            "what": what,
            "events_per_second": statistics.median(row["events_per_second"] for row in rows if row["name"] == name),
            "cpu_us_per_event": rows[-1 if name == "fed" else -2]["cpu_us_per_event"],
        }
        for name, what in (("paused", "log, chain, repeat check, agents"), ("fed", f"and {FED} from the log"))
    )
    fed["times_the_rate_without_lag"] = round(fed["events_per_second"] / paused["events_per_second"], 3)
    fed["fed_records_per_second"] = statistics.median(
        row["fed_records_per_second"] for row in rows if row["name"] == "fed"
    )
    return [paused, fed]


def _turn(stage: Stage, name: str, done: int, count: int) -> dict[str, object]:
    """Add events to a topic of which `done` are projected, and project them; a fed model follows again at the end."""
    fill(stage.settings, TOPIC, events_of_all_models(count, agents=AGENTS, seed=done + 1))
    stage.execute(f"UPDATE read_model_builds SET paused = {name == 'paused'} WHERE projection = '{FED}'")
    stage.execute("CHECKPOINT")
    with process(stage, "-m", "benchmarks.variant", "five models") as worker:
        first = _wait(stage, worker, done + count // 10, name)
        last = _wait(stage, worker, done + count * 9 // 10, name)
        if name != "paused":
            while stage.query(OFFSETS)[0] != (done + count, done + count):
                time.sleep(0.5)
    (log, fed), seconds = (last[1][part] - first[1][part] for part in (0, 1)), last[0] - first[0]
    return {
        "name": name,
        "events_per_second": log / seconds,
        "fed_records_per_second": fed / seconds,
        "cpu_us_per_event": {part: round((last[2][part] - spent) / log * 1e6, 2) for part, spent in first[2].items()},
    }


def _wait(
    stage: Stage, worker: psutil.Process, log_offset: int, name: str
) -> tuple[float, tuple[int, int], dict[str, float]]:
    """Return time, offsets and processor time once the log has come so far, or the fed model is about to follow it."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        ((log, fed),) = stage.query(OFFSETS)
        log, fed = int(str(log or 0)), int(str(fed or 0))
        if log >= log_offset or (name == "fed" and log and log - fed < 20_000):
            return time.monotonic(), (log, fed), {**stage.cpu_seconds(), "worker": tree_cpu_seconds(worker.pid)}
        time.sleep(0.1)
    raise TimeoutError(f"the worker did not get to {log_offset} in time")
