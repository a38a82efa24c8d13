"""docs/how-to/add-an-event-type.md followed to the letter, in a copy of the repository."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import dedent

from database import migrate
from projections.session import Session
from runtime.settings import Settings
from tests.support import ROOT
from tests.support.command_line import environ_with
from tests.support.followed_pages import copy_folders, follow, run

PAGE = (ROOT / "docs" / "how-to" / "add-an-event-type.md").read_text("utf-8")
PRINTS_THE_LAST = re.compile(r"^ls database/migrations/versions .*$", re.MULTILINE)
A_MIGRATION = re.compile(r"\b0\d\d(?:_|\b)")

ARRIVE = dedent("""
    import sys
    from ingress.payloads import read_webhook
    from ingress.routes import WEBHOOK_ROUTES
    from projections.engine import PartitionProjector
    from projections.read_model import READ_MODELS
    from schemas.examples import examples, webhook_body
    from tests.support.batches import TOPIC, WATERMARKS, batch_of
    kind = WEBHOOK_ROUTES["/webhook/genesis/agent-promoted"]
    body = webhook_body(examples()[kind]).encode()
    event = read_webhook(body, kind, "genesis", "msg_12", "webhook").event
    projector = PartitionProjector(sys.argv[1], TOPIC, 0, READ_MODELS)
    projector.project(batch_of([event], token=projector.acquire(WATERMARKS).token))
    projector.close()
""")
"""A webhook as ingress reads it, and its record as a worker takes it."""


def numbered(page: str) -> str:
    """The page with the migrations' numbers, as its own command prints them."""
    (command,) = PRINTS_THE_LAST.findall(page)
    last = run(["sh", "-c", command], ROOT, {}).strip()
    assert [last] == list(migrate.heads())
    return page.replace("NNN", f"{int(last) + 1:03}").replace("LLL", last)


def test_the_page_names_no_migration() -> None:
    """It would be another one's number before long."""
    assert A_MIGRATION.findall(PAGE) == []


def test_the_page_adds_an_event_type(tmp_path: Path, settings: Settings, superuser: Session) -> None:
    """From the webhook to the log: struct, Avro, registry, route, contracts, enum."""
    copy = copy_folders(tmp_path, "database", "docs", "ingress", "operations", "schemas")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    printed = follow(numbered(PAGE), copy, {**environ_with(settings), "PATH": path})
    assert "genesis.agent.promoted.avsc" in printed
    assert "genesis.events-genesis.AgentPromoted\t1" in printed
    openapi = json.loads((copy / "docs" / "reference" / "openapi.json").read_text("utf-8"))
    assert "/webhook/genesis/agent-promoted" in openapi["paths"]
    assert "genesis.agent.promoted" in (copy / "docs" / "reference" / "events.md").read_text("utf-8")

    run([sys.executable, "-c", ARRIVE, settings.database_writer_url], copy, {})
    logged = "SELECT event_type::text, disposition::text, entity_type::text FROM log_records"
    assert superuser.query(logged) == [("genesis.agent.promoted", "applied", "agent")]
