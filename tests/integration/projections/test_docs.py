"""What the pages on the log tell operators to run is run as it stands there, on ranges of 64 offsets."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from devstack import sql
from devstack.postgres_binaries import bin_folder
from projections.engine import PartitionProjector
from projections.errors import RepeatApplied
from projections.session import Session
from schemas.events import Event
from tests.conftest import Database
from tests.support import ROOT
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.log_tables import set_range_offsets

RANGE = 64
RUNBOOK = ROOT / "docs" / "runbooks" / "the-log.md"
EXPLANATION = ROOT / "docs" / "explanation" / "the-log.md"
CHAIN = "SELECT encode(hash, 'hex') AS hash FROM log_records WHERE partition = 0 ORDER BY \"offset\""
CLOSED = "SELECT first_offset FROM log_ranges WHERE closed_at IS NOT NULL ORDER BY first_offset"
PUT_BEHIND = """
INSERT INTO log_records ("offset", created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers)
SELECT 151, created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers
FROM log_records WHERE "offset" = 3
"""


@pytest.fixture(autouse=True)
def small_ranges(database: Database) -> None:
    """A range has 64 offsets."""
    set_range_offsets(database.superuser_url, RANGE)


@pytest.fixture
def projected(projector: PartitionProjector) -> PartitionProjector:
    """Two closed ranges and an open one: 150 events of partition 0."""
    project(projector, some_events(150))
    return projector


@pytest.fixture
def slow(database: Database) -> Iterator[str]:
    """A tablespace in a folder of the server's own; its name is for this test, since the server may be others' too."""
    name = f"slow_{secrets.token_hex(4)}"
    settings = "SET allow_in_place_tablespaces = true"
    sql.execute(database.superuser_url, [settings, f"CREATE TABLESPACE {name} LOCATION ''"])
    sql.execute(database.superuser_url, [f"GRANT CREATE ON TABLESPACE {name} TO plant_owner"])
    yield name
    shell(database, moves_to("pg_default"))
    sql.execute(database.superuser_url, [f"DROP TABLESPACE {name}"])


def moves_to(tablespace: str) -> str:
    """The page's lines that move ranges, to another tablespace."""
    return block(RUNBOOK, "\\gexec").replace("TABLESPACE slow", f"TABLESPACE {tablespace}")


def project(projector: PartitionProjector, events: Sequence[Event], start: int = 0) -> None:
    """Acquire the partition, project events in one batch, and let the projector close what is full."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(events, token=token, start=start))
    for _ in range(20):
        projector.idle()


def block(page: Path, part: str) -> str:
    """The one fenced block of a page that has a text in it, for partition 0 and ranges of any age."""
    found = re.findall(r"^ *```(?:sh|sql)\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (text,) = [text for text in found if part in text]
    return dedent(text).replace("partition = 3", "partition = 0").replace("90 days", "0 days").replace("/3/", "/0/")


def rows(session: Session, part: str, page: Path = RUNBOOK) -> list[tuple[Any, ...]]:
    return session.query(block(page, part).rstrip().rstrip(";"))


def shell(database: Database, script: str, **variables: str) -> str:
    """Run shell lines with the addresses of a database, and programs of its version; returns what they print."""
    major = 16 if int(sql.value(database.superuser_url, "SHOW server_version_num")) < 170_000 else 18
    environ = {
        "PATH": f"{bin_folder(major)}:{os.environ['PATH']}",
        "PLANT_DATABASE_AUDITOR_URL": database.auditor_url,
        "PLANT_DATABASE_OWNER_URL": database.owner_url,
        "PLANT_DATABASE_SUPERUSER_URL": database.superuser_url,
        **variables,
    }
    done = subprocess.run(["bash", "-eu", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_sizes_are_those_of_the_ranges(projected: PartitionProjector, superuser: Session) -> None:
    """One row a partition, with how many of its ranges are closed."""
    ((topic, partition, ranges, closed, *sizes),) = rows(superuser, "pg_size_pretty")
    assert (topic, partition, ranges, closed) == (TOPIC, 0, 3, 2)
    assert all(size.endswith(("kB", "bytes")) for size in sizes)


def test_a_lost_index_is_listed_and_made_again(
    projected: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The list is empty before, names the range meanwhile, and is empty once the writer has made the index."""
    assert rows(superuser, "indisvalid") == []
    index = f"event_ids_' || md5('{TOPIC}/0/64')"
    ((name,),) = superuser.query(f"SELECT '{index} AS name")
    superuser.script(f"DROP INDEX log.{name}")
    assert [row[2] for row in rows(superuser, "indisvalid")] == [64]
    make = block(RUNBOOK, "SELECT index_log_range").replace("3, 1048576", "0, 64")
    printed = shell(database, f"psql '{database.writer_url}' --no-psqlrc -At -c \"{make}\"")
    assert printed == "t\n"
    assert rows(superuser, "indisvalid") == []


def test_a_range_left_open_is_closed_once_its_index_is_there(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody drops the index before the owner notes that the range is closed; the owner makes it again."""
    query, dropped = Session.query, []

    def drop_first(session: Session, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if "close_log_range" in statement and not dropped:
            ((name,),) = query(superuser, "SELECT relname::text AS n FROM pg_class WHERE relname ~ '^event_ids_'")
            dropped.append(name)
            superuser.script(f"DROP INDEX log.{name}")
        return query(session, statement, parameters)

    monkeypatch.setattr(Session, "query", drop_first)
    with structlog.testing.capture_logs() as lines:
        project(projector, some_events(70))
    assert [line["event"] for line in lines if "log_range" in line["event"]] == [
        "log_range.left_open",
        "log_range.closed",
    ]
    assert len(dropped) == 1
    assert superuser.query(CLOSED) == [(0,)]


def test_closed_ranges_move_with_their_indexes(
    projected: PartitionProjector, superuser: Session, database: Database, slow: str
) -> None:
    """The open range stays, a second run changes nothing, and repeats of what has moved are found."""
    stored = (
        "SELECT count(*) AS n FROM pg_class AS c JOIN pg_tablespace AS s ON s.oid = c.reltablespace"
        f" WHERE s.spcname = '{slow}' AND c.relnamespace = 'log'::regnamespace"
    )
    ((tables, indexes),) = superuser.query(
        "SELECT count(DISTINCT x.indrelid) AS t, count(*) AS i FROM log_ranges AS r"
        " JOIN pg_index AS x ON x.indrelid = format('log.%I', r.table_name)::regclass WHERE closed_at IS NOT NULL"
    )
    assert tables == 2
    for _ in range(2):
        shell(database, moves_to(slow))
        assert superuser.query(stored) == [(tables + indexes,)]
    project(projected, some_events(150), start=150)
    assert superuser.query("SELECT count(*) AS n FROM log_records WHERE disposition = 'repeat'") == [(150,)]


def test_a_range_can_be_dumped(projected: PartitionProjector, database: Database, tmp_path: Path) -> None:
    """As the auditor, and read as text without a server."""
    shell(database, f"cd {tmp_path}\n" + block(RUNBOOK, "--table="))
    text = (tmp_path / "range.sql").read_text("utf-8")
    assert len(re.findall(r"^\d+\t.*\tgenesis\.events\t", text, re.MULTILINE)) == RANGE


def test_a_closed_range_can_be_vacuumed(projected: PartitionProjector, superuser: Session, database: Database) -> None:
    """Autovacuum's part by hand: all pages of a closed range are visible afterwards."""
    shell(database, block(RUNBOOK, "VACUUM (FREEZE").replace(" -c", " -q -c"))
    pages = {row[0]: row[3] for row in rows(superuser, "pages_visible")}
    visible, total = pages[f"{TOPIC}/0/0"].split(" of ")
    assert int(visible) == int(total) > 0


def test_a_restored_log_goes_on_to_the_same_chain(
    projected: PartitionProjector, superuser: Session, database: Database, tmp_path: Path
) -> None:
    """The backup lacks the newest records; read again from where it ends, they have the hashes that they had."""
    create, restored = "CREATE DATABASE plant OWNER plant_owner", f"{database.name}_restored"
    backup, _, create_line, restore, _ = block(RUNBOOK, "pg_restore --dbname").splitlines()
    assert create in create_line
    shell(database, f"cd {tmp_path}\n{backup}")
    project(projected, some_events(90, seed=2), start=150)
    chain = superuser.query(CHAIN)
    address = urlsplit(database.superuser_url)
    elsewhere = address._replace(path=f"/{restored}").geturl()
    try:
        admin = address._replace(path="/postgres").geturl()
        create_line = create_line.replace("DATABASE plant", f"DATABASE {restored}").replace("-c", "-qc")
        shell(database, create_line, ADMIN_URL=admin)
        shell(database, f"cd {tmp_path}\n{restore}", PLANT_DATABASE_SUPERUSER_URL=elsewhere)
        writer = urlsplit(database.writer_url)._replace(path=f"/{restored}").geturl()
        session, again = Session(elsewhere), PartitionProjector(writer, TOPIC, 0, [])
        assert session.query(CHAIN) == chain[:150]
        project(again, some_events(90, seed=2), start=150)
        assert session.query(CHAIN) == chain
        session.close()
        again.forget()
    finally:
        sql.execute(database.superuser_url, [f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)"])


def test_an_event_that_is_there_twice_is_listed(projected: PartitionProjector, superuser: Session) -> None:
    """In whatever ranges its records are, with both offsets."""
    assert rows(superuser, "HAVING") == []
    superuser.script(PUT_BEHIND)
    ((_, offsets),) = rows(superuser, "HAVING")
    assert list(offsets) == [3, 151]


def test_an_event_id_that_was_changed_can_be_put_back(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The partition is stopped when the range is closed; with the right id again its owner closes it, and goes on."""
    project(projector, some_events(120))
    ((first, right),) = superuser.query(
        'SELECT min(event_id::text) FILTER (WHERE "offset" = 3) AS first,'
        ' min(event_id::text) FILTER (WHERE "offset" = 100) AS right_one FROM log_records'
    )
    script = block(RUNBOOK, "session_replication_role").replace("1050000", "100")
    put = f"psql -q \"$PLANT_DATABASE_SUPERUSER_URL\" <<'SQL'\n{script}SQL\n"
    shell(database, put.replace("68ff1da4-34df-579d-a92c-f88d5e88af27", first))
    with pytest.raises(RepeatApplied, match="from offset 64 on"):
        project(projector, some_events(10, seed=2), start=120)
    assert superuser.query(CLOSED) == [(0,)]
    shell(database, put.replace("68ff1da4-34df-579d-a92c-f88d5e88af27", right))
    project(projector, some_events(10, seed=2), start=120)
    assert superuser.query(CLOSED) == [(0,), (64,)]
    assert superuser.query("SELECT count(*) AS n FROM log_records WHERE disposition = 'applied'") == [(130,)]


def test_a_look_up_by_id_asks_the_indexes(projected: PartitionProjector, superuser: Session) -> None:
    """That of each closed range, with the page's condition on the disposition; none without it."""
    query = block(EXPLANATION, "event_id = ").rstrip().rstrip(";")
    superuser.script("SET enable_seqscan = off")
    plan = "\n".join(line for (line,) in superuser.query(f"EXPLAIN {query}"))
    assert plan.count("using event_ids_") == 2
    without = query.replace("AND disposition IN ('applied', 'parked')", "")
    assert without != query
    assert "event_ids_" not in "\n".join(line for (line,) in superuser.query(f"EXPLAIN {without}"))


def test_a_look_up_by_position_reads_one_range(projected: PartitionProjector, superuser: Session) -> None:
    """The page's query by topic, partition and offset."""
    query = block(EXPLANATION, '"offset" = 1048600').replace("1048600", "100").rstrip().rstrip(";")
    plan = "\n".join(line for (line,) in superuser.query(f"EXPLAIN {query}"))
    assert [first for first in (0, 64, 128) if f'"{TOPIC}/0/{first}"' in plan] == [64]
