"""A worker with one guarantee left out, to see what it costs: `python -m benchmarks.variant NAME [TOPIC]`."""

from __future__ import annotations

import os
import sys
from typing import Final

import numpy
import uvloop

from audit.chain import ChainSlice
from operations.services import worker
from projections import engine, log_writer, stored_builds
from projections.id_budget import IdBudget
from projections.known_ids import FILTER_BYTES, Hashes, IdFilter
from projections.log_ranges import LOADED_OFFSETS, KnownRecord, LogRanges
from projections.session import Session
from runtime.logging import configure
from runtime.settings import load_settings
from schemas.polars_import import polars as pl
from streams.topics import EVENTS_TOPIC

MODELS: Final = {
    "without read model": (),
    "three models": ("agents", "skills", "ratings"),
    "four models": ("agents", "skills", "ratings", "activity"),
    "five models": ("agents", "skills", "ratings", "activity", "marketplace"),
    "registry": ("registry",),
    "six models": ("agents", "skills", "ratings", "activity", "marketplace", "registry"),
}
"""The read models of a variant; `agents` alone of any other, as of `one model`."""


FULL_IDS: Final = int(os.environ.get("PLANT_FULL_RANGE_IDS", "1000000"))
"""Ids of each open range in the variant `full ranges`; a range has 1,048,576 offsets."""


def no_hashes(_topic: str, _partition: int, _previous_hash: bytes, records: ChainSlice, _first_v2: int) -> list[bytes]:
    """Return the same hash for each record of a slice."""
    return [bytes(32)] * len(records.offsets)


class ForgetfulRanges(LogRanges):
    """Ranges of the log that keep no event ids, and that nobody asks for any."""

    def candidates(self, event_ids: pl.Series) -> tuple[Hashes, list[KnownRecord]]:
        return numpy.zeros(len(event_ids), numpy.uint64), []

    def add(self, *_: object) -> None:
        """Keep nothing."""

    def load_more(self, session: Session) -> bool:
        return False


class FullRanges(LogRanges):
    """Ranges whose open one is all but full of ids that nobody sends, and as many filters as there is room for.

    What a worker of a full log keeps in memory, without the log's rows: 48 open ranges would take 25 GB.
    """

    def __init__(self, topic: str, partition: int, budget: IdBudget) -> None:
        super().__init__(topic, partition, budget)
        self._fillers: list[IdFilter] = []

    def _begin(self, first_offset: int, table: str) -> None:
        super()._begin(first_offset, table)
        assert self._open is not None
        chance = numpy.random.default_rng()
        for first in range(0, FULL_IDS, LOADED_OFFSETS):
            offsets = numpy.arange(first, min(first + LOADED_OFFSETS, FULL_IDS)) + first_offset
            hashes = chance.integers(0, (1 << 64) - 1, len(offsets), dtype=numpy.uint64)
            self._open.add(hashes, offsets, first_offset)

    def load_more(self, session: Session) -> bool:
        if self._budget.is_exceeded and self._fillers:
            self._fillers.pop()
            self._budget.release(FILTER_BYTES)
        elif self._budget.try_reserve(FILTER_BYTES):
            filler = IdFilter()
            filler._words.fill(1)  # memory that is not written to is not taken
            self._fillers.append(filler)
        return super().load_more(session)


def feed_alone(*names: str) -> None:
    """Feed no other read models, whatever the database keeps."""
    load, keys = stored_builds.load_builds, stored_builds.fed_keys
    stored_builds.load_builds = lambda session, release: [  # type: ignore[assignment]
        model for model in load(session, release) if model.name in names
    ]
    stored_builds.fed_keys = lambda session, release: {  # type: ignore[assignment]
        key for key in keys(session, release) if key.partition("/")[0] in names
    }


def main() -> None:
    variant, topic = sys.argv[1], next(iter(sys.argv[2:]), EVENTS_TOPIC)
    if variant == "without chain":
        log_writer.extend_slice = no_hashes
    if variant == "without repeat check":
        engine.LogRanges = ForgetfulRanges  # type: ignore[misc]
    if variant == "full ranges":
        engine.LogRanges = FullRanges  # type: ignore[misc]
    feed_alone(*MODELS.get(variant, ("agents",)))
    settings = load_settings()
    configure(settings)
    uvloop.run(worker.serve_worker(settings, [topic]))


if __name__ == "__main__":
    main()
