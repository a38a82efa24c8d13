"""Two commits by turns: the processor time of an event, and the rate, catching up in one hour on one machine.

    python -m benchmarks.two_commits BEFORE AFTER --events 5000000 --rounds 6

A range of the log closes in a run where each of the four partitions gets more than 2^20 events; with `--range-offsets`
ranges are smaller, where the commit has ranges. Each commit is checked out apart and runs with its own code and tables,
on a topic that is filled anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.stage import HOME

# Runs in the other commit's folder, so it uses what catching up has had for long.
RUN: Final = """
import json, sys
from contextlib import contextmanager
from benchmarks import catch_up
from benchmarks.stage import running_stack

count, offsets = int(sys.argv[1]), int(sys.argv[2])
whole, closed = catch_up.clean_database, []

@contextmanager
def with_ranges(stack, **settings):
    with whole(stack, **settings) as stage:
        has_ranges = stage.query("SELECT to_regprocedure('log_range_offsets()') IS NOT NULL AS has") == [(True,)]
        if has_ranges and offsets:
            stage.execute("CREATE OR REPLACE FUNCTION log_range_offsets() RETURNS bigint LANGUAGE sql IMMUTABLE"
                          f" PARALLEL SAFE RETURN {offsets}")
        yield stage
        if has_ranges:
            closed.extend(stage.query("SELECT count(closed_at) AS n FROM log_ranges")[0])

catch_up.clean_database = with_ranges
with running_stack() as stack:
    catch_up.fill_topic(stack, count)
    row = catch_up.plant(stack, "plant", count)
print(json.dumps({**row, "ranges_closed": sum(closed)}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("commits", nargs=2, metavar="COMMIT")
    options.add_argument("--events", type=int, default=400_000)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--range-offsets", type=int, default=0, help="offsets of a range; 2^20 by default")
    given = options.parse_args()
    rounds: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(prefix="two-commits-") as folder:
        trees = [Path(folder) / name for name in ("before", "after")]
        try:
            for tree, commit in zip(trees, given.commits, strict=True):
                subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], check=True)
            for number in range(given.rounds):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                turn = {which: _run(trees[which], given.events, given.range_offsets) for which in order}
                rounds.append([turn[0], turn[1]])
                print(json.dumps({"round": number + 1, **_ratio(*rounds[-1])}), flush=True)
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=False)
    ratios = [_ratio(*pair)["times_cpu"] for pair in rounds]
    print(json.dumps({"median_times_cpu": statistics.median(ratios), "all": ratios}))


def _run(tree: Path, events: int, range_offsets: int) -> dict[str, Any]:
    """Return the row of one run of the code in a folder."""
    environ = {**os.environ, "PYTHONPATH": str(tree), "PLANT_BENCH_HOME": str(HOME.resolve())}
    command = [sys.executable, "-c", RUN, str(events), str(range_offsets)]
    done = subprocess.run(command, cwd=tree, env=environ, stdout=subprocess.PIPE, check=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _ratio(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return both runs' figures, and how many times the processor time of the first one the second takes."""
    spent = [sum(row["cpu_us_per_event"].values()) for row in (before, after)]
    return {"times_cpu": round(spent[1] / spent[0], 3), "before": before, "after": after}


if __name__ == "__main__":
    main()
