"""The lines of docs/how-to/endpoints.md about HTTP are run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from devstack.processes import choose_port
from runtime.settings import Settings
from tests.support import ROOT
from tests.support.ingress_process import PLANT, environ
from tests.support.waiting import DEADLINE_SECONDS

PAGE = ROOT / "docs" / "how-to" / "endpoints.md"


async def test_the_lines_of_the_page_add_an_endpoint(local: Settings) -> None:
    """They make a token, start the API, and add an endpoint, whose secret is printed."""
    missing = [tool for tool in ("bash", "curl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    port = choose_port(None, set())
    section = PAGE.read_text("utf-8").partition("## Over HTTP")[2]
    lines = section.partition("```bash\n")[2].partition("```")[0]
    assert "8082" in lines
    assert "https://hooks.example.com" in lines
    lines = lines.replace("8082", str(port)).replace("https://hooks.example.com", "http://127.0.0.1:9")
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", f"{lines}\nkill $!; wait",
        env=environ(msgspec.structs.replace(local, api_port=port, api_admin_address="127.0.0.1:0"))
        | {"PATH": f"{Path(PLANT).parent}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    made = json.loads(printed)
    assert made["secret"].startswith("whsec_"), wrong.decode()
    assert made["event_types"] == ["genesis.agent.*"]
