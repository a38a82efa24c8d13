"""The search for control records ahead of a partition that stands still: which count, and where it goes on."""

from __future__ import annotations

import asyncio
import threading
from uuid import uuid4

import msgspec
import pytest

from runtime.settings import Settings
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from streams import control_search
from streams.control_search import ControlSearch, NamedPoison
from streams.errors import SchemaNewer, TooMuchParked
from tests.support.raw_records import RawRecord, append_raw

KEY = b"72d76358-5032-530d-b5a7-ee89ea19f5a4"
NEWER = RawRecord(KEY, codec.WIRE_PREFIX.pack(0, 99) + b"of a later release")


def skip(offset: int, key: bytes | None = KEY, reason: str = "nobody wrote it") -> RawRecord:
    return RawRecord(key, codec.encode(RecordSkipped(event_id=uuid4(), poison_offset=offset, reason=reason)))


async def look(search: ControlSearch, topic: str, offset: int = 2) -> str | None:
    waiting = SchemaNewer(topic, 0, offset, 99)
    return await asyncio.to_thread(search.find_skip, waiting, threading.Event())


async def test_the_first_skip_of_that_record_and_key_counts(settings: Settings, topic: str) -> None:
    """Not one before it, of another record, with another key or none, nor a skip that is cut off."""
    cut = RawRecord(KEY, (skip(2).value or b"")[:-3])
    records = [skip(2, reason="before it"), RawRecord(KEY, b"x"), NEWER, skip(1), skip(2, b"other"), skip(2, None), cut]
    await append_raw(settings, topic, 0, records)
    search = ControlSearch(settings, topic, 0)
    assert await look(search, topic) is None
    await append_raw(settings, topic, 0, [RawRecord(None, None), skip(2), skip(2, reason="a second one")])
    assert await look(search, topic) == "nobody wrote it"
    assert await look(ControlSearch(settings, topic, 0), topic) == "nobody wrote it"


async def test_a_record_without_a_key_is_skipped_without_one(settings: Settings, topic: str) -> None:
    """By a skip on its own partition that has none either."""
    await append_raw(settings, topic, 0, [RawRecord(None, NEWER.value), skip(0), skip(0, None, "this one")])
    assert await look(ControlSearch(settings, topic, 0), topic, 0) == "this one"


async def test_a_look_goes_on_from_where_the_last_one_ended(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is not read again, some records at a time; another record that is waited at begins anew."""
    monkeypatch.setattr(control_search, "FETCHED_RECORDS_MAX", 7)
    await append_raw(settings, topic, 0, [NEWER, NEWER, NEWER, *[RawRecord(KEY, b"x")] * 100])
    monkeypatch.setattr(control_search, "PREFIXES_MAX", 1)
    search = ControlSearch(settings, topic, 0)
    assert await look(search, topic) is None
    assert search._next_offset == 103
    await append_raw(settings, topic, 0, [skip(1, reason="the other"), skip(2)])
    assert await look(search, topic) == "nobody wrote it"
    assert await look(search, topic, 1) == "the other"


async def test_an_interrupted_look_ends_and_an_unreachable_broker_finds_nothing(settings: Settings, topic: str) -> None:
    """Neither raises: the partition is looked at again."""
    await append_raw(settings, topic, 0, [NEWER, skip(0)])
    interrupted = threading.Event()
    interrupted.set()
    waiting = SchemaNewer(topic, 0, 0, 99)
    assert await asyncio.to_thread(ControlSearch(settings, topic, 0).find_skip, waiting, interrupted) is None
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    assert await look(ControlSearch(away, topic, 0), topic, 0) is None


def redrive(offset: int, key: bytes | None = KEY) -> RawRecord:
    return RawRecord(key, codec.encode(RecordRedriven(event_id=uuid4(), poison_offset=offset, reason="it is mended")))


async def test_every_control_record_further_on_names_a_poison_record(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redrives and skips, of any key, from the record on at which the partition stands; those found are kept, up to a
    bound, until it stands elsewhere.
    """
    records = [skip(0), NEWER, redrive(0), skip(1), skip(1), skip(1, b"other"), skip(9, None), RawRecord(KEY, b"x")]
    await append_raw(settings, topic, 0, [*records, RawRecord(KEY, (skip(5).value or b"")[:-3])])
    search = ControlSearch(settings, topic, 0)

    async def named(offset: int) -> frozenset[NamedPoison]:
        full = TooMuchParked("Too many are parked.", offset, why="a test", next_step="a test")
        return await asyncio.to_thread(search.find_named, full, threading.Event())

    expected = {NamedPoison(KEY, 0), NamedPoison(KEY, 1), NamedPoison(b"other", 1), NamedPoison(None, 9)}
    assert await named(1) == expected
    await append_raw(settings, topic, 0, [redrive(7)])
    assert await named(1) == expected | {NamedPoison(KEY, 7)}
    assert await named(3) == (expected | {NamedPoison(KEY, 7)}) - {NamedPoison(KEY, 0)}
    monkeypatch.setattr(control_search, "NAMED_MAX", 2)
    assert len(await named(0)) == 2
