"""Reads through the API for readers: a reader's own write, an answer that it has already, each other read model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import aiohttp
import msgspec

from operations.demo.errors import DemoFailed, NotAsPromised
from operations.demo.outcome import HttpRead
from streams.record_position import RecordPosition

TIMEOUT_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 20
AGAIN_SECONDS: Final = 0.1
NOT_YET: Final = (401, 503)
"""What a token that has just been made may be answered, until the process has read it."""


class ReaderAnswer(msgspec.Struct, frozen=True):
    """An answer of the API; `document` is None where it has no body."""

    path: str
    status: int
    document: Any
    etag: str

    def as_read(self, shown: str) -> HttpRead:
        """Return the request and its status, and in a few words what the answer says."""
        return HttpRead(request=f"GET {self.path}", status=self.status, shown=shown)


class HttpReader:
    """A client of one `plant api`, with a token. `alive` raises when there is no point left."""

    def __init__(self, url: str, token: str, alive: Callable[[], None]) -> None:
        self._bearer = {"authorization": f"Bearer {token}"}
        self._alive = alive
        # Not through a proxy, whatever the environment says: the API is on this machine.
        self._client = aiohttp.ClientSession(
            url,
            timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
            headers={"accept-encoding": "identity"},
            trust_env=False,
        )

    async def get(self, path: str, **headers: str) -> ReaderAnswer:
        """Return the answer to a request with the token."""
        return await self._get(path, {**self._bearer, **headers})

    async def get_known(self, path: str) -> ReaderAnswer:
        """Return the answer once the token is known. Raises DemoFailed where it is not in time."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (answer := await self.get(path)).status in NOT_YET:
            self._alive()
            if time.monotonic() > deadline:
                why = f"It answered {answer.status} for {TIMEOUT_SECONDS:.0f} s."
                raise DemoFailed("plant api does not know its token.", why=why, next_step="plant tokens list")
            await asyncio.sleep(AGAIN_SECONDS)
        return answer

    async def get_without_token(self, path: str) -> ReaderAnswer:
        """Return the answer to a request that holds no token."""
        return await self._get(path, {})

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _get(self, path: str, headers: dict[str, str]) -> ReaderAnswer:
        try:
            async with self._client.get(path, headers=headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._alive()
            why = f"{type(error).__name__} {error}".strip()
            raise DemoFailed("plant api did not answer.", why=why, next_step="plant doctor") from error
        return ReaderAnswer(
            path, answer.status, msgspec.json.decode(body) if body else None, answer.headers.get("etag", "")
        )


async def read_own_write(
    reader: HttpReader, agent_id: UUID, change: Callable[[bool], Any]
) -> tuple[RecordPosition, list[HttpRead]]:
    """Change an agent's availability, and read it at once, waiting for the change's record; then with its entity tag.

    `change` publishes what the agent's availability is from now on, and returns a coroutine of the record's position.
    Raises NotAsPromised where the answer does not show the change.
    """
    path = f"/agents/{agent_id}"
    refused = await reader.get_without_token(path)
    before = await reader.get_known(path)
    position: RecordPosition = await change(not before.document["available"])
    waiting = f"{path}?at-least={position.topic}/{position.partition}/{position.offset}"
    after = await reader.get(waiting, prefer=f"wait={WAIT_SECONDS}")
    again = await reader.get(path, **{"if-none-match": after.etag})
    statuses = refused.status, before.status, after.status, again.status
    if statuses != (401, 200, 200, 304) or after.document["available"] == before.document["available"]:
        raise NotAsPromised("The API did not show a reader's own write.", why=f"It answered {statuses}.")
    return position, [
        refused.as_read("no token"),
        before.as_read(f"available: {_yes_or_no(before.document['available'])}"),
        after.as_read(f"available: {_yes_or_no(after.document['available'])}"),
        again.as_read("same ETag, nothing is sent"),
    ]


async def read_others(reader: HttpReader, agent_id: UUID, skill_id: UUID) -> list[HttpRead]:
    """Read a skill, an agent's ratings, the best agent for the skill, and how many ratings a day had.

    Raises NotAsPromised where one is not answered.
    """
    best = f"/marketplace?skill={skill_id}&sort=rating&limit=1"
    rated = "/activity?event-type=genesis.agent.rated"
    answers = [await reader.get(path) for path in (f"/skills/{skill_id}", f"/ratings/{agent_id}", best, rated)]
    if wrong := [answer for answer in answers if answer.status != 200]:
        why = "; ".join(f"{answer.path} answered {answer.status}" for answer in wrong)
        raise NotAsPromised("The API did not show every read model.", why=why)
    skill, ratings, marketplace, activity = (answer.document for answer in answers)
    overall = next(row for row in ratings["items"] if row["overall"])
    hired = ", ".join(f"{row['name']}, {row['bayesian_average']:.2f}" for row in marketplace["items"]) or "nobody"
    shown = (
        f"{skill['name']}: {skill['validation']}",
        f"{overall['ratings']} ratings, mean {overall['mean']:.2f}",
        f"best rated with it: {hired}",
        f"{sum(row['events'] for row in activity['items']):,} ratings in a day",
    )
    return [answer.as_read(text) for answer, text in zip(answers, shown, strict=True)]


def _yes_or_no(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]
