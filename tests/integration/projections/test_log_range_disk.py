"""The disk is full while ranges of the log are made, filled and closed: at every point where it can be.

The ranges have a file system of their own, without room at first. After each failure there is room for one page more,
and for more at a time where ten were no help: pages that a refused batch has added stay in its table, empty.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit.verifier.chains import verify_chains
from database.errors import DatabaseUnreachable
from projections import log_ranges
from projections.session import Session
from tests.conftest import Database
from tests.support import small_disks
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.log_tables import DROP_RANGES, set_range_offsets
from tests.support.projectors import AGENT_ROWS, MakeProjector

RANGE = 64
PAGE_BYTES = 8192
SIZE_BYTES = 4 * 1024 * 1024
RECORDS = 'SELECT "offset", disposition::text AS name, hash::text AS h FROM log_records WHERE partition = 0 ORDER BY 1'
RANGES = """
SELECT closed_at IS NOT NULL AS closed, to_regclass(format('log.%I', 'event_ids_' || md5(table_name))) IS NOT NULL AS i
FROM log_ranges ORDER BY first_offset
"""


@pytest.fixture
def small_disk(database: Database) -> Iterator[Path]:
    """A file system of 4 MB, on which whatever the writer makes in this database lies from now on."""
    with small_disks.small_disk(database, "plant_writer", SIZE_BYTES, [DROP_RANGES]) as folder:
        yield folder


def test_a_full_disk_costs_no_record(
    make_projector: MakeProjector, superuser: Session, database: Database, small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was logged stays, nothing is applied twice, and with room again all is as on a disk that was never full."""
    monkeypatch.setattr(log_ranges, "LOADED_OFFSETS", RANGE // 4)
    set_range_offsets(database.superuser_url, RANGE)
    events, filler = some_events(150), small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    before: list[tuple[int, str, str]] = []
    stages: list[tuple[int, tuple[tuple[bool, bool], ...]]] = []
    refusals: list[str] = []
    projector, is_done = make_projector(0), False
    while not is_done:
        try:
            token = projector.acquire(WATERMARKS).token
            for start in range(len(before), len(events), 50):
                projector.project(batch_of(events[start : start + 50], token=token, start=start))
            for _ in range(20):
                projector.idle()
            is_done = True
        except DatabaseUnreachable as error:
            refusals.append(str(error.why))
        records = superuser.query(RECORDS)
        assert records[: len(before)] == before
        assert [offset for offset, _, _ in records] == list(range(len(records)))
        before = records
        stages.append((len(records), tuple(superuser.query(RANGES))))
        pages = 1 << max(0, stages.count(stages[-1]) - 10)
        with filler.open("r+b") as file:
            file.truncate(max(0, filler.stat().st_size - pages * PAGE_BYTES))

    assert all("No space left on device" in refusal for refusal in refusals)
    # No range yet; made and empty; full, the next one made, and no index; closed.
    open_range, full, done = (False, False), (False, False), (True, True)
    assert {(0, ()), (0, (open_range,)), (RANGE, (full, open_range))} <= set(stages)
    assert (150, (done, done, open_range)) in stages
    assert [name for _, name, _ in before] == ["applied"] * 150
    with ThreadPoolExecutor(1) as pool:
        verdicts = pool.submit(lambda: verify_chains(database.auditor_url, topic=TOPIC, jobs=1)).result()
    assert [(each.state, each.entries) for each in verdicts] == [("good", 150)]
    agents = superuser.query(AGENT_ROWS)
    filler.unlink()
    set_range_offsets(database.superuser_url, 1 << 20)
    superuser.script("TRUNCATE checkpoints, agents_v1.agents")
    again = make_projector(0)
    again.project(batch_of(events, token=again.acquire(WATERMARKS).token))
    assert superuser.query(RECORDS) == before
    assert superuser.query(AGENT_ROWS) == agents
