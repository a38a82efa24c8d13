"""Where records lie: a table's first and last record against its bounds."""

from __future__ import annotations

import pytest

from audit.verifier.chain_range import Chain
from audit.verifier.log_tables import TableEnd

BOUNDS = "FOR VALUES FROM ('64') TO ('128')"
PARTITION_BOUNDS = "FOR VALUES FROM ('t', 3) TO ('t', 4)"


@pytest.mark.parametrize(
    ("topic", "partition", "offset", "misplaced"),
    [
        ("t", 3, 64, False),
        ("t", 3, 127, False),
        ("t", 3, 63, True),
        ("t", 3, 128, True),
        ("t", 2, 64, True),
        ("u", 3, 64, True),
    ],
)
def test_a_record_outside_of_its_tables_bounds_is_misplaced(
    topic: str, partition: int, offset: int, misplaced: bool
) -> None:
    """By its offset, its partition or its topic; the upper bound is not part of the table."""
    assert TableEnd(Chain(topic, partition), offset, BOUNDS, PARTITION_BOUNDS).is_misplaced is misplaced


@pytest.mark.parametrize("bounds", [(None, PARTITION_BOUNDS), (BOUNDS, None), ("DEFAULT", PARTITION_BOUNDS)])
def test_a_table_without_bounds_of_its_own_holds_none(bounds: tuple[str | None, str | None]) -> None:
    """A table that takes all that no other takes is none of the log's."""
    assert TableEnd(Chain("t", 3), 64, *bounds).is_misplaced
