"""Attempts that were in flight as their owner ended, and those that were made again, as seen from outside. Pure.

Receivers know which requests came, the topic of attempts which of them have a record, and Postgres who owned a
partition, and since when. An owner that begins reads the topic to its end first. So it may make an attempt again that
had no record by then, and none that had one. Times are seconds since 1970, of one machine.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.support.faults.subscribers import ReceivedRequest

BROKER_TIME_SECONDS = 0.001
"""The broker tells when it appended a record in milliseconds, without the rest."""


class Ownership(NamedTuple):
    """A process that delivers what is in a partition, until another ownership of it begins."""

    partition: int
    token: int
    pid: int
    began_at: float


class AttemptRecord(NamedTuple):
    """The record of an attempt that was made, and when the broker appended it; of copies, the first one."""

    delivery: str
    attempt: int
    partition: int
    token: int
    attempted_at: float
    appended_at: float


class Harm(NamedTuple):
    """What was killed or frozen, and when; a deliverer's process too, and until when it did not run."""

    part: str
    began_at: float
    pid: int | None = None
    away_until: float = math.inf
    ends_owners: bool = True
    """Whether an owner of deliveries may end by it: not by a dispatcher's end, which owns others."""


class SentAttempt(NamedTuple):
    """A request and the number of its attempt."""

    request: ReceivedRequest
    attempt: int
    recorded_at: float
    """When its record was appended; infinite: it has none."""
    lost_by: Ownership | None
    """The ownership that began while it had no record, so that it may be made again; None: its record was in time."""


class AttemptsInFlight:
    """All requests of a run, by delivery and number of the attempt, in the order in which they came."""

    def __init__(
        self, requests: Iterable[ReceivedRequest], records: Iterable[AttemptRecord], ownerships: Iterable[Ownership]
    ) -> None:
        """Take what is known once nothing is under way."""
        self._ownerships: dict[int, list[Ownership]] = defaultdict(list)
        for each in sorted(ownerships):
            self._ownerships[each.partition].append(each)
        requests_of: dict[str, list[ReceivedRequest]] = defaultdict(list)
        records_of: dict[str, list[AttemptRecord]] = defaultdict(list)
        for request in sorted(requests):
            requests_of[request.delivery].append(request)
        for record in sorted(records, key=lambda record: record.attempted_at):
            records_of[record.delivery].append(record)
        self._sent: dict[tuple[str, int], list[SentAttempt]] = defaultdict(list)
        self._partitions = {delivery: its_records[0].partition for delivery, its_records in records_of.items()}
        for delivery, its_requests in requests_of.items():
            for sent in self._judge(its_requests, records_of[delivery]):
                self._sent[delivery, sent.attempt].append(sent)
        self.lost: Counter[Ownership] = Counter()
        """Attempts that had no record as an ownership began."""
        self.lost_of: Counter[str] = Counter()
        """The same by delivery."""
        self.repeated: Counter[Ownership] = Counter()
        """Attempts that were made again then."""
        self.recorded_twice: list[list[SentAttempt]] = []
        """Attempts that were made again though they had a record in time: there is to be none."""
        for (delivery, _), all_sent in self._sent.items():
            self._count(delivery, all_sent)

    def in_flight_at(self, time: float) -> int:
        """Return how many requests had come by a time and had no record then, nor an owner that knew of none."""
        return sum(
            sent.request.came_at <= time < min(sent.recorded_at, sent.lost_by.began_at if sent.lost_by else math.inf)
            for all_sent in self._sent.values()
            for sent in all_sent
        )

    def by_harm(self, counts: Mapping[Ownership, int], harms: Sequence[Harm]) -> list[int]:
        """Return the counts of ownerships by the harms that they came of; the first is of those before any harm."""
        summed = [0] * (len(harms) + 1)
        for ownership, count in counts.items():
            summed[self._harm_of(ownership, harms)] += count
        return summed

    def _harm_of(self, ownership: Ownership, harms: Sequence[Harm]) -> int:
        """Return the number of the last harm to the former owner before it was succeeded, else of the last harm."""
        _, former, _ = self._around(ownership.partition, ownership.token)
        before = [
            number
            for number, harm in enumerate(harms, start=1)
            if harm.ends_owners and harm.began_at <= ownership.began_at
        ]
        its_own = [
            number
            for number in before
            if former is not None
            and harms[number - 1].pid == former.pid
            and ownership.began_at <= harms[number - 1].away_until
        ]
        return max(its_own or before, default=0)

    def _around(self, partition: int, token: int) -> tuple[Ownership, Ownership | None, Ownership | None]:
        """Return the ownership of a token, the one before it and the one behind it."""
        its_own = self._ownerships[partition]
        (at,) = (number for number, each in enumerate(its_own) if each.token == token)
        return its_own[at], its_own[at - 1] if at else None, its_own[at + 1] if at + 1 < len(its_own) else None

    def _judge(self, requests: Sequence[ReceivedRequest], records: Sequence[AttemptRecord]) -> list[SentAttempt]:
        """Find the record of each request of a delivery; one without belongs to the attempt that is recorded next."""
        found = _records_found(requests, records)
        sent: list[SentAttempt] = []
        for number, (request, record) in enumerate(zip(requests, found, strict=True)):
            if record is not None:
                sent.append(SentAttempt(request, record.attempt, record.appended_at, self._missed_by(record)))
                continue
            following = next((each for each in found[number:] if each is not None), records[-1])
            before = [each for each in found[:number] if each is not None and each.attempt == following.attempt]
            lost_by = self._lost_by(request, following.partition, before)
            sent.append(SentAttempt(request, following.attempt, math.inf, lost_by))
        return sent

    def _lost_by(self, request: ReceivedRequest, partition: int, before: Sequence[AttemptRecord]) -> Ownership | None:
        """Return the ownership behind that of a request without a record; `before` are records of its attempt."""
        for record in before:
            if self._missed_by(record) is None:
                # Its owner knew that the attempt was made: a former one sent this, as one does that was frozen.
                ownership, former, _ = self._around(partition, record.token)
                return ownership if former is not None else None
        return next((each for each in self._ownerships[partition][1:] if each.began_at >= request.came_at), None)

    def _missed_by(self, record: AttemptRecord) -> Ownership | None:
        """Return the ownership behind a record's own, if it had begun before the record was there."""
        _, _, behind = self._around(record.partition, record.token)
        is_late = behind is not None and record.appended_at + BROKER_TIME_SECONDS > behind.began_at
        return behind if is_late else None

    def _count(self, delivery: str, all_sent: Sequence[SentAttempt]) -> None:
        lost = [sent.lost_by for sent in all_sent if sent.lost_by is not None]
        in_time = [sent for sent in all_sent if sent.lost_by is None]
        self.lost.update(lost)
        self.lost_of[delivery] += len(lost)
        self.repeated.update(lost[: len(all_sent) - 1])
        for sent in in_time[1:]:
            its_own = self._ownerships[self._partitions[delivery]]
            self.repeated[max(each for each in its_own if each.began_at <= sent.request.came_at)] += 1
        if len(in_time) > 1:
            self.recorded_twice.append(list(all_sent))


def _records_found(requests: Sequence[ReceivedRequest], records: Sequence[AttemptRecord]) -> list[AttemptRecord | None]:
    """Return the record of each request: of the first one that came after the attempt began, and before the next."""
    found: list[AttemptRecord | None] = [None] * len(requests)
    for number, record in enumerate(records):
        until = records[number + 1].attempted_at if number + 1 < len(records) else math.inf
        for index, request in enumerate(requests):
            if found[index] is None and record.attempted_at <= request.came_at < until:
                found[index] = record
                break
    return found
