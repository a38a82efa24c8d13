"""Point reads through `plant api`, next to bare asyncpg with the same transaction: tenant, select, commit.

Both have ten connections to the same Postgres and read random agents of ten thousand. The rate is that of sixteen at a
time, in turns of the two sides, and the median of the turns' ratios counts. At 1,000 reads a second each begins when
it is due, so a read that waits for the one before is measured with its wait. Guarantees that are on: token, scope,
row-level security, a read-only transaction, an entity tag.

`python -m benchmarks.read_api SIDE WHERE SECONDS [RATE]` is the load, in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import uvloop

from api.access_tokens import new_token
from api.token_store import TokenStore
from benchmarks.stage import Stage, clean_database
from database.connector import connect
from devstack.stack import Stack

AGENTS: Final = 10_000
CONNECTIONS: Final = 10
AT_A_TIME: Final = 16
ROUNDS: Final = 3
ROUND_SECONDS: Final = 4
PACED_SECONDS: Final = 10
PACED_RATE: Final = 1_000
PACED_CONNECTIONS: Final = 64
READY_TIMEOUT_SECONDS: Final = 60
SCRIPT: Final = Path(__file__).with_name("ingress.lua")
"""It plays requests from a file; these here ask for rows."""

FILL: Final = f"""
INSERT INTO agents_v1.agents (agent_id, name, skill_ids, status, profile_offset, profile_changed_at, available)
SELECT lpad(to_hex(number), 32, '0')::uuid, 'Agent ' || number, ARRAY[gen_random_uuid(), gen_random_uuid()],
       'onboarded', number, now(), true
FROM generate_series(1, {AGENTS}) AS number
"""
TENANT: Final = "SELECT set_config('plant.governance_agent_id', $1, true)"
SELECT: Final = """SELECT agent_id, name, industry_id, job_role_id, team_id, skill_ids, status, profile_changed_at,
available, available_from, availability_changed_at FROM read_models.agents WHERE agent_id = $1"""

Read = Callable[[], Awaitable[object]]


def run(stack: Stack) -> list[dict[str, object]]:
    """Return the rates of both sides, and their p99 at 1,000 reads a second."""
    with clean_database(stack) as stage, tempfile.TemporaryDirectory() as folder:
        stage.execute(FILL)
        stage.execute("ANALYZE agents_v1.agents")
        token = asyncio.run(_add_token(stage))
        ready = Path(folder) / "ready.json"
        program = [str(Path(sys.executable).with_name("plant")), "api", "--port", "0", "--ready-file", str(ready)]
        process = subprocess.Popen(program, env=dict(stage.environ))
        try:
            url = _wait_ready(ready)
            return [_rates(stage, url, token, Path(folder)), _paced(stage, url, token)]
        finally:
            process.terminate()
            process.wait(READY_TIMEOUT_SECONDS)


async def _add_token(stage: Stage) -> str:
    database, token = connect(stage.settings, "operator"), new_token()
    try:
        await TokenStore(database).add(
            uuid4(), token, name="benchmark", scopes=("read",), tenant="genesis", expires_at=None
        )
    finally:
        await database.close()
    return token.text


def _wait_ready(ready: Path) -> str:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while not ready.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("plant api was not ready in time")
        time.sleep(0.05)
    url: str = json.loads(ready.read_text())["url"]
    return url


def _rates(stage: Stage, url: str, token: str, folder: Path) -> dict[str, object]:
    requests = folder / "requests"
    with requests.open("wb") as file:
        for _ in range(AGENTS):
            request = _request(token)
            file.write(b"%d\n%b" % (len(request), request))
    rates: dict[str, list[float]] = {"api": [], "asyncpg": []}
    _wrk(url, requests, 2)
    for number in range(ROUNDS):
        for side in ("api", "asyncpg") if number % 2 else ("asyncpg", "api"):
            if side == "api":
                rates[side].append(_wrk(url, requests, ROUND_SECONDS))
            else:
                rates[side].append(_load(stage, "asyncpg", "", token, ROUND_SECONDS)["per_second"])
    ratio = statistics.median(ours / bare for ours, bare in zip(rates["api"], rates["asyncpg"], strict=True))
    return {
        "read": f"a row by its id, {AT_A_TIME} at a time",
        "api_per_second": round(statistics.median(rates["api"])),
        "asyncpg_per_second": round(statistics.median(rates["asyncpg"])),
        "percent_of_asyncpg": round(ratio * 100, 1),
    }


def _paced(stage: Stage, url: str, token: str) -> dict[str, object]:
    bare = _load(stage, "asyncpg", "", token, PACED_SECONDS, PACED_RATE)
    ours = _load(stage, "api", url, token, PACED_SECONDS, PACED_RATE)
    return {
        "read": f"a row by its id, {PACED_RATE:,} a second",
        "api_p50_ms": ours["p50_ms"],
        "asyncpg_p50_ms": bare["p50_ms"],
        "api_p99_ms": ours["p99_ms"],
        "asyncpg_p99_ms": bare["p99_ms"],
        "p99_times_asyncpg": round(ours["p99_ms"] / bare["p99_ms"], 2),
    }


def _wrk(url: str, requests: Path, seconds: int) -> float:
    done = subprocess.run(
        ["wrk", "-t1", f"-c{AT_A_TIME}", f"-d{seconds}s", "-s", str(SCRIPT), url],
        env={**os.environ, "PLANT_REQUESTS": str(requests)},
        capture_output=True,
        check=True,
    )
    counts: dict[str, int] = json.loads(done.stderr.decode().strip().splitlines()[-1])
    if counts["refused"] or counts["socket_errors"]:
        raise RuntimeError(f"not every read was answered: {counts}")
    return counts["requests"] / (counts["duration_us"] / 1e6)


def _load(stage: Stage, side: str, url: str, token: str, seconds: int, rate: int = 0) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.read_api", side, url, str(seconds), str(rate)],
        env={**stage.environ, "PLANT_READ_TOKEN": token},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _request(token: str) -> bytes:
    head = f"GET /agents/{_some_id()} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    return head.encode()


def _some_id() -> UUID:
    return UUID(int=random.randint(1, AGENTS))


class ApiSide:
    """Connections to the API, each with one request at a time."""

    def __init__(self, url: str, token: str) -> None:
        self._address = urlsplit(url)
        self._token = token
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def open(self) -> None:
        for _ in range(PACED_CONNECTIONS):
            self._idle.put_nowait(await asyncio.open_connection(self._address.hostname, self._address.port))

    async def read(self) -> object:
        reader, writer = await self._idle.get()
        writer.write(_request(self._token))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self._idle.put_nowait((reader, writer))
        return body


async def _bare_read(pool: Any) -> object:
    async with pool.acquire() as connection, connection.transaction(readonly=True):
        await connection.execute(TENANT, "genesis")
        return await connection.fetchrow(SELECT, _some_id())


async def _measure(side: str, url: str, seconds: int, rate: int) -> dict[str, float]:
    pool = None
    if side == "asyncpg":
        address = os.environ["PLANT_DATABASE_API_URL"]
        pool = await asyncpg.create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS, ssl=False)

        async def read() -> object:
            return await _bare_read(pool)
    else:
        api = ApiSide(url, os.environ["PLANT_READ_TOKEN"])
        await api.open()
        read = api.read
    await _closed(read, 1)
    found = await (_open(read, seconds, rate) if rate else _closed(read, seconds))
    if pool is not None:
        await pool.close()
    return found


async def _closed(read: Read, seconds: int) -> dict[str, float]:
    """So many at a time, each after the one before."""
    count, deadline = 0, time.perf_counter() + seconds

    async def one_after_another() -> None:
        nonlocal count
        while time.perf_counter() < deadline:
            await read()
            count += 1

    await asyncio.gather(*(one_after_another() for _ in range(AT_A_TIME)))
    return {"per_second": count / seconds}


async def _open(read: Read, seconds: int, rate: int) -> dict[str, float]:
    """Each when it is due."""
    took: list[float] = []

    async def timed(due: float) -> None:
        await read()
        took.append(time.perf_counter() - due)

    started = time.perf_counter()
    tasks = []
    for number in range(seconds * rate):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(timed(due)))
    await asyncio.gather(*tasks)
    took.sort()
    return {"p50_ms": round(took[len(took) // 2] * 1e3, 2), "p99_ms": round(took[len(took) * 99 // 100] * 1e3, 2)}


def main() -> None:
    side, url, seconds, rate = sys.argv[1:5]
    print(json.dumps(uvloop.run(_measure(side, url, int(seconds), int(rate)))))


if __name__ == "__main__":
    main()
