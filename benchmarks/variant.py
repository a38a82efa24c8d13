"""A worker with one guarantee left out, to see what it costs: `python -m benchmarks.variant NAME`."""

from __future__ import annotations

import sys

import uvloop

from operations.services import worker
from projections import engine, log_writer
from projections.session import Session
from runtime.logging import configure
from runtime.settings import load_settings
from schemas.polars_import import polars as pl


class LogOnly(Session):
    """A session that writes no audit rows."""

    def copy(self, table: str, frame: pl.DataFrame, *, temporary: bool = False) -> None:
        if table != "audit_log":
            super().copy(table, frame, temporary=temporary)


def main() -> None:
    variant = sys.argv[1]
    if variant == "without chain":
        engine.Session = LogOnly  # type: ignore[misc]
        log_writer.extend = lambda *given: [bytes(32)] * len(given[3])  # type: ignore[assignment]
    if variant == "without read model":
        worker.READ_MODELS = ()
    settings = load_settings()
    configure(settings)
    uvloop.run(worker.serve_worker(settings, ["genesis.events"]))


if __name__ == "__main__":
    main()
