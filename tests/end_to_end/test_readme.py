"""The README's snippets, and SQL of how-tos, run as they stand on real services."""

from __future__ import annotations

import asyncio
import base64
import re
import runpy
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from devstack import sql
from runtime.settings import Settings
from streams.topics import EVENTS_TOPIC, apply
from tests.conftest import Database
from tests.support import ROOT
from tests.support.faults.scene import scene_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import add_key


def example(name: str) -> dict[str, Any]:
    """Return the names that an example defines."""
    return runpy.run_path(str(ROOT / "examples" / name))


async def test_publish_consume_and_query(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that `publish.py` onboards is in what `consume.py` reads and in the table that `query.py` reads."""
    await apply(settings)
    _, sender = await add_key(settings)
    secret = "whsec_" + base64.b64encode(sender.secret).decode()
    name = f"agent {uuid4()}"
    agent = {"agent_id": str(uuid4()), "name": name, "skill_ids": []}
    with scene_of(settings, database.superuser_url, EVENTS_TOPIC, tmp_path) as scene:
        for variable in ("PLANT_KAFKA_BOOTSTRAP_SERVERS", "PLANT_DATABASE_API_URL"):
            monkeypatch.setenv(variable, scene.environ[variable])
        scene.worker()
        _, port = await asyncio.to_thread(scene.ingress)
        call = (example("publish.py")["onboard"], f"http://127.0.0.1:{port}", secret, "message_1", agent)
        answer = await asyncio.to_thread(*call)
        assert await asyncio.to_thread(*call) == answer  # the same id again
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            await asyncio.to_thread(call[0], call[1], "whsec_d3Jvbmc=", "message_2", agent)
        async with asyncio.timeout(DEADLINE_SECONDS):
            async with aclosing(example("consume.py")["onboarded"]()) as lines:
                while not (line := await anext(lines)).endswith(name):
                    pass
            agents = example("query.py")["agents"]

            async def projected() -> bool:
                return name in await agents()

            await wait_until_async(projected, "the agent is in the table")
            rows = await agents()
    assert f'"offset":{line.partition(":")[0].split("@")[1]}' in answer.replace(" ", "")
    assert rows[name] == "onboarded"


@pytest.mark.parametrize("page", ["consume.md", "dead-letters.md"])
def test_sql_of_how_tos(database: Database, page: str) -> None:
    """Postgres runs each query that a how-to shows, as plant_auditor."""
    text = (ROOT / "docs" / "how-to" / page).read_text("utf-8")
    snippets = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert snippets
    sql.execute(database.auditor_url, snippets)
