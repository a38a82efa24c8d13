"""The index of endpoints gives what a loop over all of them gives, in few steps."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.endpoints import EndpointId
from deliveries.errors import EndpointFilterRefused
from deliveries.event_filters import parse_event_filter, parse_event_types
from deliveries.matching import EndpointIndex, Subscription, make_subscription

ENDPOINTS_MANY = 2_000
CALLS_MAX = 150
RATED = "genesis.agent.rated"

scalars = st.sampled_from([None, True, False, 0, 1, 2, "", "1", "a"])
filters = st.dictionaries(
    st.sampled_from(["a", "b", "a.b", "a.b.c", "c"]), scalars | st.lists(scalars, min_size=1, max_size=3), max_size=3
)
types = st.lists(
    st.sampled_from(["*", "genesis.*", "genesis.agent.*", RATED, "genesis.team.formed", "plant.endpoint.*"]),
    min_size=1,
    max_size=3,
)
payloads = st.recursive(
    scalars | st.just(1.0) | st.just([1]),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), inner, max_size=4),
    max_leaves=12,
)


def endpoint_id(number: int) -> EndpointId:
    return EndpointId(UUID(int=number))


def subscription(number: int, chosen: list[str], fields: dict[str, Any] | None = None) -> Subscription:
    return Subscription(
        endpoint_id=endpoint_id(number),
        event_types=parse_event_types(chosen),
        event_filter=parse_event_filter(fields or {}),
    )


def numbers(found: list[EndpointId]) -> list[int]:
    return [each.int for each in found]


@given(
    st.lists(st.tuples(types, filters), max_size=12),
    st.lists(st.tuples(st.sampled_from([RATED, "genesis.team.formed", "plant.endpoint.disabled", "x"]), payloads)),
    st.randoms(use_true_random=False),
)
def test_the_index_is_the_loop(
    choices: list[tuple[list[str], dict[str, Any]]], events: list[tuple[str, Any]], random: Any
) -> None:
    """For any endpoints and events, the index gives those that match one by one, in the order of their ids."""
    subscriptions = [subscription(number, *choice) for number, choice in enumerate(choices)]
    index = EndpointIndex(random.sample(subscriptions, len(subscriptions)))
    for event_type, data in events:
        expected = [each.endpoint_id for each in subscriptions if each.matches_event(event_type, data)]
        assert index.match(event_type, data) == expected


def test_an_endpoint_matches_once() -> None:
    """An endpoint that asks for a type by its name and by two patterns gets an event of it once."""
    index = EndpointIndex([subscription(1, [RATED, "genesis.agent.*", "*"], {"rating": [4, 5]})])
    assert numbers(index.match(RATED, {"rating": 5})) == [1]


def test_values_keep_their_kind() -> None:
    """Filters for true, 1 and "1" are three filters, in the index too."""
    index = EndpointIndex([subscription(at, ["*"], {"a": value}) for at, value in enumerate([True, 1, "1", None])])
    found = [numbers(index.match(RATED, {"a": value})) for value in (True, 1, "1", None, 1.0, [1])]
    assert found == [[0], [1], [2], [3], [], []]


def test_matches_are_sorted() -> None:
    """Endpoints with and without filters come in the order of their ids, in whatever order they were given."""
    chosen = [{"a": 1}, {}, {"b": 1}, {"a": 1, "b": 1}, {}, {"c": 1}]
    index = EndpointIndex([subscription(at, ["*"], chosen[at]) for at in (5, 2, 0, 4, 3, 1)])
    assert numbers(index.match(RATED, {"a": 1, "b": 1})) == [0, 1, 2, 3, 4]


def test_an_endpoint_has_one_subscription() -> None:
    """Two subscriptions of one endpoint are a mistake of the caller."""
    with pytest.raises(ValueError, match="one subscription"):
        EndpointIndex([subscription(1, ["*"]), subscription(1, [RATED])])


def test_subscriptions_are_found_by_their_ids() -> None:
    """The index gives an endpoint's subscription back, and its length is their number."""
    index = EndpointIndex([subscription(1, ["*"]), subscription(2, [RATED])])
    assert index.subscription(endpoint_id(2)) == subscription(2, [RATED])
    assert len(index) == 2
    with pytest.raises(KeyError):
        index.subscription(endpoint_id(3))


@pytest.mark.parametrize(
    ("partition", "offset", "covered"), [(0, 9, False), (0, 10, True), (1, 0, True), (2, 0, True), (0, 11, True)]
)
def test_a_start_is_an_offset_of_each_partition(partition: int, offset: int, covered: bool) -> None:
    """An endpoint gets a partition's records from its start on, the first one included."""
    started = msgspec.structs.replace(subscription(1, ["*"]), start_offsets=(10, 0))
    assert started.covers(partition, offset) is covered


def test_a_stored_endpoint_is_a_subscription() -> None:
    """What is stored of an endpoint is read as it was at registration, and refused where it can't be."""
    expected = msgspec.structs.replace(subscription(7, [RATED], {"rating": 5}), start_offsets=(3, 4))
    assert make_subscription(endpoint_id(7), [RATED], {"rating": 5}, [3, 4]) == expected
    with pytest.raises(EndpointFilterRefused):
        make_subscription(endpoint_id(7), [RATED], {"rating": 0.5}, [3, 4])


def function_calls(index: EndpointIndex, data: dict[str, Any]) -> tuple[int, int]:
    """The matches of a rating, and the calls of functions that finding them takes, the second time."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    index.match(RATED, data)
    sys.setprofile(count)
    try:
        found = index.match(RATED, data)
    finally:
        sys.setprofile(None)
    return len(found), calls


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(lambda number: {"agent_id": f"agent-{number // 10}"}, id="one field"),
        pytest.param(lambda number: {"verified": True, "agent_id": f"agent-{number // 10}"}, id="a frequent value too"),
        pytest.param(lambda number: {"agent_id": [f"agent-{number // 10}", "other"]}, id="alternatives"),
        pytest.param(
            lambda number: {"agent_id": "agent-7"} if number < 10 else {f"odd_{number}": 1}, id="a field an endpoint"
        ),
        pytest.param(
            lambda number: {"agent_id": "agent-7"} if number < 10 else {"agent_id": "agent-7", "rating": 0},
            id="one filter of many endpoints",
        ),
    ],
)
def test_steps_follow_the_matches(fields: Any) -> None:
    """Ten matches among thousands of endpoints take a few steps, whichever way their filters name their fields."""
    index = EndpointIndex(
        [subscription(number, ["genesis.agent.*"], fields(number)) for number in range(ENDPOINTS_MANY)]
    )
    matches, calls = function_calls(index, {"agent_id": "agent-7", "rating": 5, "verified": True})
    assert matches == 10
    assert calls <= CALLS_MAX


def test_types_with_the_same_endpoints_have_one_part() -> None:
    """Which takes long to make of many filters, and is made anew when any endpoint comes or goes."""
    index = EndpointIndex([subscription(1, ["genesis.agent.*"], {"a": 1}), subscription(2, ["genesis.team.formed"])])
    available, team = "genesis.agent.available", "genesis.team.formed"
    assert [numbers(index.match(each, {"a": 1})) for each in (RATED, available, team)] == [[1], [1], [2]]
    assert index._by_type[RATED] is index._by_type[available]
    assert index._by_type[RATED] is not index._by_type[team]
