"""`/livez` and `/readyz`: whether a process lives, and whether it can do its work."""

from __future__ import annotations

from typing import Protocol

from litestar import get
from litestar.handlers import HTTPRouteHandler

from server.problems import Problem, retry_after


class ReadinessCheck(Protocol):
    """The readiness of a process for requests."""

    async def faults(self) -> dict[str, str]:
        """Return what is missing, by part; empty when ready."""

    async def wait(self) -> None:
        """Return when requests can be accepted."""


def health_routes(readiness: ReadinessCheck) -> list[HTTPRouteHandler]:
    """Return the two routes."""

    @get("/livez")
    async def livez() -> dict[str, str]:
        """Answer that the process runs and its event loop turns."""
        return {"status": "alive"}

    @get("/readyz")
    async def readyz() -> dict[str, str]:
        """Answer 200 if requests can be accepted, else 503 with the parts that are missing."""
        faults = await readiness.faults()
        if faults:
            what = " ".join(f"{part}: {fault}" for part, fault in faults.items())
            raise Problem("starting", what, headers=(retry_after(1),))
        return {"status": "ready"}

    return [livez, readyz]
