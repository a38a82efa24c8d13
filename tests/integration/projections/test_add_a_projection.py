"""docs/how-to/add-a-projection.md followed to the letter, in a copy of the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

from projections.session import Session
from runtime.settings import Settings
from tests.support import ROOT
from tests.support.command_line import environ_with
from tests.support.followed_pages import blocks, copy_folders, follow, run

PAGE = (ROOT / "docs" / "how-to" / "add-a-projection.md").read_text("utf-8")
LINES_MAX = 60

WORK = dedent("""
    import sys
    from projections.engine import PartitionProjector
    from projections.read_model import READ_MODELS
    from tests.support.batches import TOPIC, WATERMARKS, batch_of
    from tests.support.load import some_events
    for partition in (0, 1):
        projector = PartitionProjector(sys.argv[1], TOPIC, partition, READ_MODELS)
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of(some_events(100, seed=partition + 1), token=token, partition=partition))
        projector.close()
""")
"""A worker, as far as a read model goes."""


def test_the_page_adds_a_read_model(tmp_path: Path, settings: Settings, superuser: Session) -> None:
    """It is under 60 lines; its folder alone makes a build, which is filled, listed and explained."""
    assert len(PAGE.splitlines()) < LINES_MAX
    assert {block.file for block in blocks(PAGE) if block.file} == {
        f"projections/absences/{name}" for name in ("__init__.py", "tables.sql", "apply.sql")
    }
    copy = copy_folders(tmp_path, "docs", "operations", "projections")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    printed = follow(PAGE, copy, {**environ_with(settings), "PATH": path})
    assert "absences\t1\t" in printed
    assert re.search(r"^absences +1 +live ", printed, re.MULTILINE)
    reference = (copy / "docs" / "reference" / "database.md").read_text("utf-8")
    assert "| `away` | `boolean` | no |  |  | Whether it is away. |" in reference

    run([sys.executable, "-c", WORK, settings.database_writer_url], copy, {})
    absences = superuser.query("SELECT agent_id::text AS agent, away, until FROM read_models.absences ORDER BY 1")
    expected = """
        SELECT agent_id::text AS agent, NOT available AS away, available_from AS until FROM read_models.agents
        WHERE available IS NOT NULL ORDER BY 1
    """
    assert absences == superuser.query(expected)
    assert len({away for _, away, _ in absences}) > 1
