"""Deliveries read from records: one by one and in frames they are the same."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from deliveries.deliverer import delivery
from deliveries.deliverer.delivery import FEW_RECORDS, read_deliveries
from schemas import codec
from schemas.errors import UnknownSchema
from tests.support.delivering import queued


def some_values(count: int) -> list[bytes]:
    """Return records of deliveries, some of which wait, and some of which are traced."""
    due = datetime(2026, 3, 1, 12, 0, 1, 250_000, tzinfo=UTC)
    return [
        codec.encode(queued(uuid4(), number, traceparent=f"00-{number:032x}-{1:016x}-01" if number % 3 else None,
                            due_at=due if number % 2 else None, hop=number, attempt=1 + number % 6))
        for number in range(count)
    ]  # fmt: skip


def test_few_are_read_as_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field by field, with where they were read."""
    values = some_values(FEW_RECORDS)
    offsets = range(100, 100 + len(values))
    few = read_deliveries(values, "genesis.deliveries", 3, offsets)
    rows = read_deliveries(values)
    monkeypatch.setattr(delivery, "FEW_RECORDS", -1)
    assert few == read_deliveries(values, "genesis.deliveries", 3, offsets)
    assert rows == read_deliveries(values)
    assert [each.offset for each in few[0]] == list(offsets)
    assert {(each.topic, each.partition, each.offset) for each in rows[0]} == {("", -1, -1)}


@pytest.mark.parametrize("count", [3, FEW_RECORDS + 1])
def test_what_is_no_delivery_is_rejected_with_its_row(count: int) -> None:
    """However many there are; the others are read."""
    values: list[bytes | None] = [*some_values(count)]
    values[1], values[2] = None, b"\0\0\0\0\x0fgarbage"
    read, rejected = read_deliveries(values, "genesis.deliveries", 0, range(count))
    assert [each.row for each in rejected] == [1, 2]
    assert [each.offset for each in read] == [0, *range(3, count)]


def test_a_schema_of_a_later_release_is_told_with_its_row() -> None:
    """The partition waits there."""
    with pytest.raises(UnknownSchema) as raised:
        read_deliveries([*some_values(2), b"\0\0\0\0\x63..."])
    assert raised.value.row == 2
