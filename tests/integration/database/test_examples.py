"""What is shown of the database runs as it stands: an example, and the snippets of docs/how-to/database.md."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from database.connector import connect
from devstack import sql
from entities.skill import Skill
from runtime.settings import Settings
from tests.conftest import Database
from tests.support import ROOT

EXAMPLES = ROOT / "examples"
HOW_TO = (ROOT / "docs" / "how-to" / "database.md").read_text("utf-8")


def test_tenants(database: Database, tmp_path: Path) -> None:
    """It prints what the how-to shows: acme alone sees its skill. Two versions of that are there."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PLANT_")},
        "PLANT_HOME": str(tmp_path),
        "PLANT_DATABASE_WRITER_URL": database.writer_url,
        "PLANT_DATABASE_API_URL": database.api_url,
    }
    command = [sys.executable, str(EXAMPLES / "tenants.py")]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("acme: Hand soldering\ngenesis: nothing\nNone: nothing\ngenesis can't write")
    assert f"```text\n{done.stdout}```" in HOW_TO
    versions = "SELECT string_agg(state::jsonb ->> 'name', ' > ' ORDER BY version) FROM entity_versions"
    assert sql.value(database.superuser_url, versions) == "Soldering > Hand soldering"


@pytest.mark.parametrize("snippet", re.findall(r"```sql\n(.*?)```", HOW_TO, re.DOTALL), ids=["sessions", "plan"])
def test_sql_of_the_how_to(database: Database, snippet: str) -> None:
    """Postgres runs it as plant_api."""
    sql.execute(database.api_url, [snippet])


async def test_python_of_the_how_to(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of acme's three skills the functions count all, and find the two next to the one in question, nearest first."""
    monkeypatch.setenv("PLANT_HOME", "/nonexistent")
    monkeypatch.setenv("PLANT_DATABASE_API_URL", database.api_url)
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", HOW_TO, re.DOTALL):
        exec(compile(snippet, "database.md", "exec"), names)
    vectors = {
        name: [1.0, share] + [0.0] * 382 for name, share in (("Welding", 1.0), ("Soldering", 0.5), ("Gluing", 0.0))
    }
    ids = {name: uuid4() for name in vectors}
    writer, reader = connect(settings, "writer"), connect(settings, "api")
    async with writer.session("acme") as session:
        for name, vector in vectors.items():
            plain = {"description": "Joining parts.", "category": "technical", "governance_agent_id": "acme"}
            session.add(Skill(id=ids[name], name=name, embedding=vector, **plain))
    assert await names["skills_of_acme"]() == 3
    assert await names["like"](reader, vectors["Gluing"], ids["Gluing"]) == ["Soldering 0.89", "Welding 0.71"]
    await asyncio.gather(writer.close(), reader.close())
