"""The dead letters that an operator redrives or skips: by positions, by a search, or by a file of repairs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from operations.dead_letters.controls import Control
from operations.dead_letters.dead_letter import DeadLetter
from operations.dead_letters.repairs import RepairsFile
from operations.dead_letters.search import DeadLetterSearch, Search, Unread, refuse_resolved
from runtime.errors import CheckFailed
from streams.record_position import RecordPosition

Make = Callable[[DeadLetter], Control]


class Choice(Protocol):
    """What is to get control records. It is asked twice: for the plan, and to publish."""

    def planned(self) -> AsyncIterator[Control | CheckFailed]:
        """Yield each control record, or why a record that a search found can't get one.

        Raises CheckFailed for what an operator named and can't have.
        """

    def controls(self) -> AsyncIterator[Control]:
        """Yield the control records that were planned, by topic, partition and offset."""


class NamedRecords:
    """Records by their positions: each has to be a dead letter that waits."""

    def __init__(
        self,
        search: DeadLetterSearch,
        positions: Sequence[RecordPosition],
        make: Make,
        *,
        whole: bool,
        unread: Unread | None = None,
    ) -> None:
        self._search = search
        self._positions = positions
        self._make = make
        self._whole = whole
        self._unread = unread

    async def planned(self) -> AsyncIterator[Control | CheckFailed]:
        """Yield each control record.

        Raises NotLogged, NoDeadLetter, DeadLetterResolved, NotRedrivable, PoisonUnchanged.
        """
        async for control in self.controls():
            yield control

    async def controls(self) -> AsyncIterator[Control]:
        """Yield the control records in order."""
        async for dead_letter in self._search.at(self._positions, whole=self._whole, unread=self._unread):
            refuse_resolved(dead_letter)
            yield self._make(dead_letter)


class SearchedRecords:
    """Records that a search finds; those that can't get a control record are left out."""

    def __init__(self, search: DeadLetterSearch, asked: Search, make: Make, *, whole: bool) -> None:
        self._search = search
        self._asked = asked
        self._make = make
        self._whole = whole

    async def planned(self) -> AsyncIterator[Control | CheckFailed]:
        """Yield each control record, or why there is none."""
        async for page in self._search.pages(self._asked, whole=self._whole):
            for dead_letter in page:
                try:
                    control = self._make(dead_letter)
                except CheckFailed as error:
                    yield error
                else:
                    yield control

    async def controls(self) -> AsyncIterator[Control]:
        """Yield the control records in order."""
        async for page in self._search.pages(self._asked, whole=self._whole):
            for dead_letter in page:
                try:
                    control = self._make(dead_letter)
                except CheckFailed:
                    continue
                yield control


class Repairs:
    """The records that a file of repairs names."""

    def __init__(self, search: DeadLetterSearch, file: RepairsFile) -> None:
        self._search = search
        self._file = file

    async def planned(self) -> AsyncIterator[Control | CheckFailed]:
        """Yield each line's control record. Raises BadRepair."""
        async for control in self._file.check(self._search):
            yield control

    def controls(self) -> AsyncIterator[Control]:
        """Yield the control records in order."""
        return self._file.controls()
