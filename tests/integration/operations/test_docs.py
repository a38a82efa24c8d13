"""What the page on dead letters tells operators to run is run as it stands there, beside a worker."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from operations.services.worker import build_worker
from projections.session import Session
from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentRated
from streams import ownership
from streams.topics import apply
from tests.conftest import Database
from tests.support import ROOT
from tests.support.command_line import plant
from tests.support.made_events import unchecked_value
from tests.support.raw_records import RawRecord, append_raw
from tests.support.waiting import wait_until_async

PAGE = (ROOT / "docs" / "how-to" / "dead-letters.md").read_text("utf-8")
AGENT = UUID(int=1)
KEY = str(AGENT).encode()
FILES = ("dead.jsonl", "repaired.jsonl")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def rated(stars: int) -> RawRecord:
    """A rating of so many stars; Plant's own writer takes no more than five."""
    fields = {"event_id": uuid4(), "agent_id": AGENT, "occurred_at": datetime.now(UTC), "rater_id": UUID(int=9)}
    return RawRecord(KEY, unchecked_value(AgentRated, {**fields, "rating": stars, "skill_id": None}))


def run(settings: Settings, line: str, folder: Path, topic: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the page: in this process if it is Plant's, else in a shell."""
    line = re.sub(r"genesis\.events(?![.\w])", topic, line)
    if not line.startswith("plant "):
        return subprocess.run(["bash", "-euc", line], cwd=folder, capture_output=True, text=True, check=False)
    words = [str(folder / word) if word in FILES else word for word in shlex.split(line, comments=True)]
    target = Path(words[words.index(">") + 1]) if ">" in words else None
    done = plant(settings, *words[1 : words.index(">") if target else None])
    if target is not None:
        target.write_text(done.stdout)
    return done


async def test_the_page_on_dead_letters_runs(
    settings: Settings, database: Database, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first line to its last: nothing waits in the end, and the parked event has taken effect."""
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.1)
    await apply(settings)
    newer = codec.WIRE_PREFIX.pack(0, 99) + b"not written by Plant"
    for partition, records in enumerate(
        ([rated(9), rated(3)], [RawRecord(KEY, b"no event")], [RawRecord(None, b"x")], [RawRecord(KEY, newer)])
    ):
        await append_raw(settings, topic, partition, records)
    worker = build_worker(settings, [topic])
    await worker.start()

    async def listed(state: str = "waiting") -> int:
        # The worker of this process may log to stderr meanwhile.
        asked = ("dead-letters", "list", "--state", state, "--output", "jsonl")
        return len((await asyncio.to_thread(plant, settings, *asked)).stdout.splitlines())

    async def waits() -> bool:
        shown = await asyncio.to_thread(plant, settings, "dead-letters", "show", f"{topic}/3/0")
        return await listed() == 3 and shown.returncode == 0

    try:
        await wait_until_async(waits, "three records are poison, and a partition waits at a fourth")
        for line in "".join(blocks("sh")).splitlines():
            done = await asyncio.to_thread(run, settings, line, tmp_path, topic)
            assert done.returncode == 0, (line, done.stderr)

        async def resolved() -> bool:
            return (await listed("resolved"), await listed()) == (4, 0)

        await wait_until_async(resolved, "all four are resolved")
    finally:
        await worker.stop()
    session = Session(database.superuser_url)
    try:
        for query in blocks("sql"):
            assert session.query(query.rstrip().rstrip(";")) == []
        # Five stars that were nine, and the three that were parked behind them.
        assert session.query("SELECT sum(ratings) AS n, sum(rating_sum) AS s FROM ratings_v1.ratings") == [(2, 8)]
    finally:
        session.close()
