"""`python -m benchmarks.figures FILE ...`: results of benchmarks into the figures that the docs draw.

Each file is what `python -m benchmarks` or `python -m benchmarks.peers` has written. What a file lacks stays as it was,
so that peers and the rest can be measured in runs of their own. `python -m operations.reference.pages` draws them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

FIGURES: Final = Path("docs/diagrams/performance.json")
ROWS: Final = {"peers": "peers", "catch-up": "catching up", "latency": "latency"}
"""Name of a benchmark to the name of its figures."""
KEPT: Final = (
    "name",
    "what",
    "events_per_second",
    "times_faster",
    "plant_is_times_faster",
    "p50_ms",
    "p99_ms",
    "cpu_us_per_event",
)


def main() -> None:
    """Write the figures of the benchmarks that the files hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    figures: dict[str, list[dict[str, Any]]] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    for file in parser.parse_args().files:
        results = json.loads(file.read_text("utf-8"))["results"]
        figures |= {name: _kept(results[found]) for found, name in ROWS.items() if found in results}
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _kept(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: _rounded(row[name]) for name in KEPT if name in row} for row in rows]


def _rounded(value: Any) -> Any:
    return round(value, 2 if value < 1000 else None) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
