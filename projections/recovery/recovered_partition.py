"""The recovery of one partition: what its worker would do, batch by batch, up to where the topic ended.

The worker's own engine judges the records, writes the log and its chain, and feeds the read models, so what comes out
is what workers of this release make. Each batch advances the log's checkpoint in its transaction: a recovery that was
killed goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from database.errors import DatabaseUnreachable
from projections.engine import PartitionProjector
from projections.recovery.errors import RecoveryRunning
from projections.recovery.recovery_state import UnrecoveredPartition, other_owner
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.control_search import ControlSearch, NamedPoison
from streams.errors import KafkaUnavailable, LeaderChanged, OwnershipLost, ReadModelsChanged, SchemaNewer, TooMuchParked
from streams.log_reader import LogReader

log = get_logger(__name__)

T = TypeVar("T")

RETRY_DELAYS_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Delays after failures in a row; after one more the recovery ends, and goes on when it is run again."""


class RecoveredPartition:
    """One partition while it is recovered. `advance` is told of offsets as they are done."""

    def __init__(
        self, settings: Settings, target: UnrecoveredPartition, projector: PartitionProjector,
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._target = target
        self._projector = projector
        self._advance = advance
        self._search = ControlSearch(settings, target.topic, target.partition)
        self._named: frozenset[NamedPoison] = frozenset()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"recover-{target.topic}-{target.partition}")
        self._interrupted = threading.Event()
        self._failures = 0

    async def run(self) -> None:
        """Recover the partition, or what is left of it.

        Raises RecoveryRunning where a worker has taken it, a named stop, and DatabaseUnreachable or KafkaUnavailable
        once they have stayed away for a while.
        """
        target = self._target
        try:
            async with LogReader(self._settings, target.topic, target.partition) as reader:
                while not await self._attempt(reader):
                    pass
        except OwnershipLost as error:
            raise RecoveryRunning(
                f"Somebody else has taken {target.topic}/{target.partition}.",
                why=f"{error} A worker runs.", next_step="plant recover    # once all workers are stopped",
            ) from error  # fmt: skip
        finally:
            self._interrupted.set()
            with contextlib.suppress(RuntimeError):
                self._thread.submit(self._projector.forget)
            await asyncio.shield(asyncio.to_thread(self._thread.shutdown))

    async def _attempt(self, reader: LogReader) -> bool:
        """Go on from the log's checkpoint; return whether the end was reached, and False where it is to be retried."""
        try:
            await self._project(reader)
        except SchemaNewer as newer:
            reason = await self._blocking(self._search.find_skip, newer, self._interrupted)
            if reason is None:
                raise
            await self._blocking(self._projector.skip, newer.offset, reason)
            return False
        except TooMuchParked as full:
            named = await self._blocking(self._search.find_named, full, self._interrupted)
            if named == self._named:
                raise
            self._named = named
            await self._blocking(self._projector.make_room, named)
            return False
        except ReadModelsChanged:
            return False
        except (DatabaseUnreachable, KafkaUnavailable, LeaderChanged) as error:
            if self._failures == len(RETRY_DELAYS_SECONDS):
                raise
            await self._refuse_other_owner()
            if isinstance(error, DatabaseUnreachable):  # it may have been the size of the batch
                reader.halve()
            delay, self._failures = RETRY_DELAYS_SECONDS[self._failures], self._failures + 1
            log.warning(
                "recovery.waiting", topic=self._target.topic, partition=self._target.partition,
                why=str(error) or repr(error), retry_seconds=delay,
            )  # fmt: skip
            await asyncio.sleep(delay)
            return False
        return True

    async def _refuse_other_owner(self) -> None:
        """Raise OwnershipLost where a worker has ended this recovery's session: each would end the other's again."""
        url, target = self._settings.database_address("writer"), self._target
        with contextlib.suppress(DatabaseUnreachable):
            worker = await self._blocking(other_owner, url, target.topic, target.partition)
            if worker is not None:
                raise OwnershipLost(why=f"{worker} owns the partition now.")

    async def _project(self, reader: LogReader) -> None:
        watermarks = await reader.watermarks()
        acquired = await self._blocking(self._projector.acquire, watermarks, self._interrupted)
        next_offset = acquired.log_end.next_offset
        reader.open(acquired.token, watermarks, acquired.log_end)
        async with contextlib.aclosing(reader.batches(self._target.until)) as batches:
            async for batch in batches:
                done, next_offset = next_offset, await self._blocking(self._projector.project, batch)
                self._advance(min(next_offset, self._target.until) - min(done, self._target.until))
                self._failures = 0
                reader.grow()
        await self._blocking(self._projector.idle)

    async def _blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
