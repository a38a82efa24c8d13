"""The first record of a delivery is known from copies, whoever wrote them and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deliveries.deliverer.source_marks import MarkedSource, SourceMarks, redrive_stream
from deliveries.hops import first_hop
from tests.support.made_deliveries import made_delivery

DELIVERIES = [
    made_delivery(endpoint, offset=offset, source_rank=rank)
    for offset in range(5)
    for rank in range(2)
    for endpoint in range(1, 4)
]


@given(st.lists(st.tuples(st.integers(0, len(DELIVERIES)), st.integers(1, len(DELIVERIES))), max_size=12))
def test_each_delivery_is_new_once(runs: list[tuple[int, int]]) -> None:
    """Dispatchers that begin again somewhere before where the last one came, and go on from there, add no copy."""
    marks, new, reached = SourceMarks({}), [], 0
    for start, count in [*runs, (0, len(DELIVERIES))]:
        begin = min(start, reached)
        for delivery in DELIVERIES[begin : begin + count]:
            if marks.pass_new(delivery):
                new.append(delivery)
        reached = max(reached, min(begin + count, len(DELIVERIES)))
    assert new == DELIVERIES


def test_sources_and_streams_have_their_own_order() -> None:
    """Partitions are not ordered against each other, nor is what is fed to a new endpoint against what is live."""
    marks = SourceMarks({})
    assert marks.pass_new(made_delivery(offset=9))
    assert marks.pass_new(made_delivery(offset=3, source_partition=1))
    assert marks.pass_new(made_delivery(offset=3, stream="backfill"))
    assert marks.pass_new(made_delivery(2, offset=2, stream="backfill"))
    assert not marks.pass_new(made_delivery(offset=3, stream="backfill"))
    assert not marks.pass_new(made_delivery(offset=8))


def test_each_redrive_has_its_own_order() -> None:
    """Another redrive of a delivery is no copy of the first, whichever has the larger number, and whatever waits."""
    marks = SourceMarks({})
    assert marks.pass_new(made_delivery(offset=8, stream="redrive", hop=first_hop(2)))
    assert not marks.pass_new(made_delivery(offset=8, stream="redrive", hop=first_hop(2) + 5))
    assert not marks.pass_new(made_delivery(offset=7, stream="redrive", hop=first_hop(2)))
    assert marks.pass_new(made_delivery(offset=8, stream="redrive", hop=first_hop(1)))
    assert marks.pass_new(made_delivery(offset=8, stream="redrive", hop=first_hop(3)))
    assert {source.stream for source in marks.changed()} == {redrive_stream(number) for number in (1, 2, 3)}


def test_what_is_stored_goes_on_where_it_was() -> None:
    """Only marks that have changed are stored, and one that changes while it is being stored is stored again."""
    marks = SourceMarks({})
    marks.pass_new(made_delivery(offset=1))
    first = marks.changed()
    marks.pass_new(made_delivery(offset=2))
    marks.note_stored(first)
    second = marks.changed()
    assert [mark.source_offset for mark in second.values()] == [2]
    marks.note_stored(second)
    assert marks.changed() == {}
    again = SourceMarks(second)
    assert not again.pass_new(made_delivery(offset=2))
    assert again.pass_new(made_delivery(offset=3))
    assert set(again.changed()) == {MarkedSource("live", 0)}
