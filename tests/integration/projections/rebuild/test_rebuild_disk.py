"""The disk is full while a rebuild is made, filled or given its indexes: readers and workers notice nothing of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from database.errors import DatabaseUnreachable
from projections.rebuild import pace, rebuilds
from projections.session import Session
from tests.conftest import Database
from tests.support import small_disks
from tests.support.made_models import ACTIVITY
from tests.support.model_tables import model_tables
from tests.support.rebuilding import ProjectedLog, begun, fill, session_of

PAGE_BYTES = 8192
SIZE_BYTES = 4 * 1024 * 1024
DROP_REBUILDS = """
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname ~ '_b[0-9]+_v[0-9]+$' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END
$$
"""
READ = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM model_checkpoints WHERE projection ~ '^activity_b'"


@pytest.fixture
def full_disk(database: Database, projected_log: ProjectedLog) -> Iterator[Path]:
    """A file that leaves no room on the disk on which rebuilds lie; the log is elsewhere."""
    with small_disks.small_disk(database, "plant_owner", SIZE_BYTES, [DROP_REBUILDS]) as folder:
        filler = folder / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(folder).free))
        yield filler


def test_a_full_disk_leaves_a_rebuild_that_goes_on(
    database: Database, projected_log: ProjectedLog, full_disk: Path, superuser: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each try fails until there is enough room, twice as much more each time. What was folded stays, nothing is folded
    twice, and workers go on.
    """
    monkeypatch.setattr(pace, "CHUNK_RECORDS", 25)
    superuser.script("SET timezone = 'UTC'")
    refusals, read = list[str](), list[int]()
    made = None
    while made is None:
        with session_of(database.owner_url) as session:  # made after the disk, and with its default
            try:
                known = rebuilds.builds_of(session, "activity")
                going_on = next((each.model for each in known if each.phase == "filling"), None)
                model = going_on or begun(session, "activity")
                fill(database, session, model)
                made = model
            except DatabaseUnreachable as error:
                refusals.append(str(error.why))
        read.append(int(superuser.query(READ)[0][0]))
        with full_disk.open("r+b") as file:
            file.truncate(max(0, full_disk.stat().st_size - PAGE_BYTES * (1 << len(refusals))))
    assert refusals
    assert all("No space left on device" in refusal for refusal in refusals)
    assert read == sorted(read)
    projected_log.project(10)
    projected_log.look()
    assert model_tables(superuser, made) == model_tables(superuser, ACTIVITY)
