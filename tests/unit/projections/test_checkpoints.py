"""What is left of a batch, before anything of it is decoded."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest

from projections import checkpoints
from projections.checkpoints import STOP_REASON_CHARACTERS_MAX, Fence, log_end, note_stop, remainder
from streams.batch import EventBatch
from streams.errors import OwnershipLost
from streams.log_end import LogEnd, LoggedRecord
from tests.support.batches import batch_of

TOKEN = 7


def batch(start: int, count: int) -> EventBatch:
    return batch_of([(None, None)] * count, token=TOKEN, start=start)


def fence(next_offset: int) -> Fence:
    return Fence(TOKEN, next_offset, bytes(32), lagging={"agents/1": 0})


@pytest.mark.parametrize(
    ("next_offset", "offsets"),
    [(10, [10, 11, 12]), (11, [11, 12]), (12, [12]), (13, None), (14, None)],
)
def test_what_is_applied_already_is_cut_off(next_offset: int, offsets: list[int] | None) -> None:
    """A batch of offsets 10 to 12 is what is left of it at each checkpoint; nothing from its end on."""
    left = remainder(batch(10, 3), fence(next_offset))

    assert (None if left is None else left.offsets) == offsets
    assert left is None or left.next_offset == 13


@pytest.mark.parametrize("next_offset", [0, 8, 9])
def test_a_hole_of_any_size_is_refused(next_offset: int) -> None:
    """Records between the checkpoint and the batch were not read."""
    with pytest.raises(OwnershipLost, match=f"Offsets {next_offset} to 10 were not read"):
        remainder(batch(10, 3), fence(next_offset))


@pytest.mark.parametrize("token", [TOKEN - 1, TOKEN + 1])
def test_a_batch_of_another_token_is_refused(token: int) -> None:
    """Also where all of it is applied already."""
    for next_offset in (10, 13):
        with pytest.raises(OwnershipLost, match=f"under token {token}, not {TOKEN}"):
            remainder(dataclasses.replace(batch(10, 3), token=token), fence(next_offset))


def test_a_gap_at_the_end_of_a_batch_is_left() -> None:
    """Where only offsets without records are left, the checkpoint still passes them."""
    gappy = dataclasses.replace(batch(10, 3), next_offset=20)

    left = remainder(gappy, fence(13))

    assert left is not None
    assert (len(left), left.next_offset) == (0, 20)


def test_a_stop_reason_is_one_short_line() -> None:
    """It may quote whatever a record or a driver held; Postgres takes no NUL, and a terminal obeys what it is shown."""
    written: list[tuple[object, ...]] = []

    class Session:
        def execute(self, _statement: str, values: tuple[object, ...]) -> None:
            written.append(values)

    note_stop(Session(), "projector", "t", 0, 1, "a\x00b\x1b[2J\n" + "\x01" * 5000)  # type: ignore[arg-type]
    (values,) = written
    reason = str(values[3])
    assert reason.startswith("a\\x00b\\x1b[2J\\n\\x01")
    assert (reason.isprintable(), len(reason)) == (True, STOP_REASON_CHARACTERS_MAX)


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(checkpoints).failed == 0


@pytest.mark.parametrize("rows", [[], [(9, 1_000, b"k", b"v", b"h")]])
def test_the_logs_end_is_its_last_record(rows: list[tuple[Any, ...]]) -> None:
    """With the checkpoint of the log, whatever models have; an empty log has none."""

    class Session:
        def query(self, _sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
            assert values == ("t", 3, 10)
            return rows

    end = log_end(Session(), "t", 3, fence(10))  # type: ignore[arg-type]
    assert end == LogEnd(LoggedRecord(*rows[0]) if rows else None, 10)
