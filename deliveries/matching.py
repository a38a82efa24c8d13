"""The index of endpoints: which of them get an event, in time that grows with the matches and not with the endpoints.

For each event type the endpoints are grouped by equal filters, and each filter is kept under one of its fields, the one
whose values the fewest other filters name. An event is looked up by the values that it has; the other fields of the
filters found there are compared one by one. The fields of all filters form a tree, so no step is spent on fields that
the event does not have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from deliveries.endpoints import EndpointId
from deliveries.event_filters import (
    EventFilter,
    EventTypes,
    FieldFilter,
    ScalarKey,
    parse_event_filter,
    parse_event_types,
    passes_filter,
    prefixes_of,
    scalar_key,
)


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """The choice of one endpoint: which events, and from where on."""

    endpoint_id: EndpointId
    event_types: EventTypes
    event_filter: EventFilter = EventFilter()
    start_offsets: tuple[int, ...] = ()
    """The first offset of each partition, from partition 0 on. A partition without one begins at its beginning."""
    in_order: bool = False
    """Whether an entity's events have to come in their order."""

    def covers(self, partition: int, offset: int) -> bool:
        """Return whether a record comes after the endpoint's start."""
        return offset >= self.start_offset(partition)

    def start_offset(self, partition: int) -> int:
        """Return the first offset of a partition that the endpoint gets."""
        return self.start_offsets[partition] if partition < len(self.start_offsets) else 0

    def matches_event(self, event_type: str, data: object) -> bool:
        """Return whether the endpoint asks for an event. The index answers the same for all endpoints at once."""
        return self.event_types.include(event_type) and passes_filter(self.event_filter, data)


def make_subscription(
    endpoint_id: EndpointId,
    event_types: Sequence[str],
    fields: Mapping[str, object],
    start_offsets: Iterable[int],
    *,
    in_order: bool = False,
) -> Subscription:
    """Return the choice of a stored endpoint. Raises EndpointFilterRefused where it could not be registered today."""
    return Subscription(
        endpoint_id=endpoint_id,
        event_types=parse_event_types(event_types),
        event_filter=parse_event_filter(fields),
        start_offsets=tuple(start_offsets),
        in_order=in_order,
    )


class EndpointIndex:
    """The subscriptions of endpoints, made once and never changed. A type's part is made with its first event."""

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        """Index subscriptions, in any order. Raises ValueError where an endpoint has two."""
        self._sorted: Final = sorted(subscriptions, key=lambda each: each.endpoint_id)
        self._by_id: Final = {each.endpoint_id: each for each in self._sorted}
        if len(self._by_id) < len(self._sorted):
            raise ValueError("an endpoint has one subscription")
        self._by_name: Final[dict[str, list[int]]] = defaultdict(list)
        self._by_prefix: Final[dict[str, list[int]]] = defaultdict(list)
        for rank, each in enumerate(self._sorted):
            for name in each.event_types.names:
                self._by_name[name].append(rank)
            for prefix in each.event_types.prefixes:
                self._by_prefix[prefix].append(rank)
        self._by_type: Final[dict[str, _TypeIndex]] = {}
        self._by_ranks: Final[dict[tuple[int, ...], _TypeIndex]] = {}
        """Of types that the same endpoints ask for, which is most of them, there is one: large ones take seconds."""

    def __len__(self) -> int:
        return len(self._sorted)

    def subscription(self, endpoint_id: EndpointId) -> Subscription:
        """Return an endpoint's subscription. Raises KeyError where it has none."""
        return self._by_id[endpoint_id]

    def has_type(self, event_type: str) -> bool:
        """Return whether a type's part is made."""
        return event_type in self._by_type

    def match(self, event_type: str, data: object) -> list[EndpointId]:
        """Return the endpoints that ask for an event, in the order of their ids. `data` is decoded from JSON.

        Their starts are not looked at: see `Subscription.covers`.
        """
        of_type = self._by_type.get(event_type)
        if of_type is None:
            of_type = self._by_type[event_type] = self._index_type(event_type)
        return [self._sorted[rank].endpoint_id for rank in of_type.match(data)]

    def _index_type(self, event_type: str) -> _TypeIndex:
        ranks = set(self._by_name.get(event_type, ()))
        for prefix in prefixes_of(event_type):
            ranks.update(self._by_prefix.get(prefix, ()))
        asking = tuple(sorted(ranks))
        if asking not in self._by_ranks:
            self._by_ranks[asking] = _TypeIndex((rank, self._sorted[rank].event_filter) for rank in asking)
        return self._by_ranks[asking]


class _FilterGroup(msgspec.Struct, frozen=True):
    """The endpoints of one filter, by rank, and the fields of it that are still to be compared."""

    other_fields: tuple[FieldFilter, ...]
    ranks: list[int]


class _FieldIndex:
    """A field of the events: its filters by the value that they ask for, and the fields inside it."""

    def __init__(self) -> None:
        self.groups: Final[dict[ScalarKey, list[_FilterGroup]]] = {}
        self.inner: Final[dict[str, _FieldIndex]] = {}

    def at(self, path: Sequence[str]) -> _FieldIndex:
        """Return the field at a path below this one, made where it is new."""
        field = self
        for segment in path:
            field = field.inner.setdefault(segment, _FieldIndex())
        return field

    def collect(self, value: object, data: object, ranks: list[int]) -> None:
        """Add the ranks of the filters that `data` passes, where this field of it has the value."""
        key = scalar_key(value)
        if key is not None:
            for group in self.groups.get(key, ()):
                if all(field.passes(data) for field in group.other_fields):
                    ranks += group.ranks
        elif type(value) is dict and self.inner:
            names = value if len(value) < len(self.inner) else self.inner
            for name in names:
                inner = self.inner.get(name)
                if inner is not None and name in value:
                    inner.collect(value[name], data, ranks)


class _TypeIndex:
    """The endpoints of one event type: those without a filter, and those with one, under a field of it."""

    def __init__(self, filters: Iterable[tuple[int, EventFilter]]) -> None:
        by_filter: dict[EventFilter, list[int]] = defaultdict(list)
        for rank, event_filter in filters:
            by_filter[event_filter].append(rank)
        self._unfiltered: Final = by_filter.pop(EventFilter(), [])
        self._root: Final = _FieldIndex()
        uses = Counter(
            (field.path, key) for event_filter in by_filter for field in event_filter.fields for key in field.values
        )
        for event_filter, ranks in by_filter.items():
            chosen = min(event_filter.fields, key=lambda field: sum(uses[field.path, key] for key in field.values))
            group = _FilterGroup(tuple(field for field in event_filter.fields if field is not chosen), ranks)
            groups = self._root.at(chosen.path).groups
            for key in chosen.values:
                groups.setdefault(key, []).append(group)

    def match(self, data: object) -> list[int]:
        """Return the ranks of the endpoints whose filters an event's data passes, in order."""
        ranks = self._unfiltered.copy()
        self._root.collect(data, data, ranks)
        ranks.sort()
        return ranks
