"""What the page on the format promises outsiders is run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest

from devstack import sql
from devstack.postgres_binaries import bin_folder
from tests.conftest import Database
from tests.support import ROOT, log_rows

PAGE = (ROOT / "docs" / "reference" / "audit-format.md").read_text(encoding="utf-8")


def tamper(log_database: Database, statement: str) -> None:
    sql.execute(log_database.superuser_url, ["SET session_replication_role = replica", statement])


def test_the_docs_query_finds_what_the_verifier_finds(log_database: Database) -> None:
    """The SQL on the format's page recomputes every hash, in v1 and v2, and shows those that were changed."""
    stored_log = log_rows.raised_log()
    log_rows.store(log_database, stored_log)
    query = re.search(r"```sql\n(.*?)```", PAGE, re.S)
    assert query is not None
    recomputed = query[1].replace("partition = 3", "partition = 0")

    async def rows(connection: Any) -> list[tuple[int, bool, bool]]:
        return [tuple(row) for row in await connection.fetch(recomputed)]

    good = log_rows.on_connection(log_database.auditor_url, rows)
    assert good == [(row.offset, True, True) for row in stored_log]
    tamper(log_database, "UPDATE log_records SET key = 'x' WHERE \"offset\" = 8")
    tamper(log_database, "UPDATE log_records SET disposition = 'poison', reason = '' WHERE \"offset\" = 32")
    assert [offset for offset, fits, _ in log_rows.on_connection(log_database.auditor_url, rows) if not fits] == [8, 32]


@pytest.mark.parametrize(("offset", "version"), [(8, 1), (31, 2), (32, 2)])
def test_the_docs_pipeline_recomputes_a_hash(log_database: Database, offset: int, version: int) -> None:
    """The shell lines on the format's page give the stored hash, from psql, xxd and openssl alone; in v1 and v2."""
    stored_log = log_rows.raised_log()
    log_rows.store(log_database, stored_log)
    if missing := [tool for tool in ("xxd", "openssl") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    script = re.search(r"```sh\n(.*?)```", PAGE, re.S)
    assert script is not None
    text = script[1].replace("partition=3 offset=41 version=2", f"partition=0 offset={offset} version={version}")
    address = urlsplit(log_database.auditor_url)
    environ = {
        "PATH": f"{bin_folder(18)}:{os.environ['PATH']}",
        "PGHOST": str(address.hostname),
        "PGPORT": str(address.port),
        "PGUSER": str(address.username),
        "PGPASSWORD": str(address.password),
        "PGDATABASE": log_database.name,
    }
    done = subprocess.run(["sh", "-eu", "-c", text], env=environ, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    recomputed, stored = done.stdout.split("\n")[:2]
    (row,) = [row for row in stored_log if row.offset == offset]
    assert recomputed[:64] == stored == row.hash.hex()
