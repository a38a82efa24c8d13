"""An entity's deliveries to an endpoint that asks for order go one after the other, and those of others pass."""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from deliveries.deliverer import entity_order
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.entity_order import BEHIND_MAX, EntityOfEndpoint, EntityOrder, held_by
from tests.support.made_deliveries import made_delivery


class Rows:
    """Postgres's side as the order expects it: rows by entity, and a release of the first one that waits behind."""

    def __init__(self) -> None:
        self.rows: dict[EntityOfEndpoint, dict[int, Delivery]] = defaultdict(dict)

    def keep(self, delivery: Delivery) -> None:
        self.rows[held_by(delivery)][delivery.source_offset] = delivery

    def drop(self, delivery: Delivery) -> None:
        self.rows[held_by(delivery)].pop(delivery.source_offset, None)

    def first(self, held: EntityOfEndpoint) -> Delivery | None:
        rows = self.rows[held]
        return rows[min(rows)] if rows else None


@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([2, BEHIND_MAX]))
def test_no_delivery_overtakes_another_of_its_entity(seed: int, entities: int, behind_max: int) -> None:
    """Whatever fails, waits and is released, each entity's deliveries are done in the order in which they came."""
    chance = random.Random(seed)
    before = entity_order.BEHIND_MAX
    entity_order.BEHIND_MAX = behind_max  # type: ignore[misc]
    try:
        order, rows = EntityOrder(()), Rows()
        coming = [made_delivery(entity=chance.randrange(entities), offset=offset) for offset in range(30)]
        going: list[Delivery] = []
        waiting: list[Delivery] = []
        done: dict[bytes, list[int]] = defaultdict(list)
        while coming or going or waiting:
            step = chance.random()
            if coming and step < 0.5:
                delivery = coming.pop(0)
                match order.enter(delivery):
                    case "go":
                        going.append(delivery)
                    case "row":
                        rows.keep(delivery)
                        release(order, rows, held_by(delivery), waiting, going)
                    case "behind":
                        pass
            elif going and step < 0.8:
                delivery = going.pop(chance.randrange(len(going)))
                if chance.random() < 0.4:
                    for each in (delivery, *order.wait(delivery)):
                        rows.keep(each)
                    waiting.append(delivery)
                    continue
                done[delivery.entity_id].append(delivery.source_offset)
                rows.drop(delivery)
                following = order.end(delivery)
                if following is not None:
                    going.append(following)
                elif order.has_rows(held_by(delivery)):
                    release(order, rows, held_by(delivery), waiting, going)
            elif waiting:
                delivery = waiting.pop(chance.randrange(len(waiting)))
                assert order.resume(delivery)
                going.append(delivery)
            assert len({held_by(each) for each in going}) == len(going)
        assert all(offsets == sorted(offsets) for offsets in done.values())
        assert sum(len(offsets) for offsets in done.values()) == 30
    finally:
        entity_order.BEHIND_MAX = before  # type: ignore[misc]


def release(
    order: EntityOrder, rows: Rows, held: EntityOfEndpoint, waiting: list[Delivery], going: list[Delivery]
) -> None:
    """Let the first row of an entity go, as a round does where nothing of it is under way."""
    if order.is_going(held) or any(held_by(each) == held for each in waiting):
        return
    first = rows.first(held)
    if first is None:
        order.note_empty([held])
        return
    order.resume(first)
    going.append(first)


def test_what_waited_before_a_restart_is_waited_for() -> None:
    """An owner that begins again knows of the rows; a new delivery goes behind them."""
    first, second = made_delivery(offset=1), made_delivery(offset=2)
    order = EntityOrder({held_by(first)})
    assert order.enter(second) == "row"
    assert order.enter(made_delivery(entity=2, offset=3)) == "go"
    assert order.enter(made_delivery(2, offset=3)) == "go"


def test_so_many_wait_in_memory_and_the_next_ones_in_rows() -> None:
    """And a new one goes at once, as soon as no row of its entity is left."""
    order = EntityOrder(())
    deliveries = [made_delivery(offset=offset) for offset in range(BEHIND_MAX + 3)]
    entered = [order.enter(each) for each in deliveries]
    assert entered == ["go", *["behind"] * BEHIND_MAX, "row", "row"]
    assert order.has_rows(held_by(deliveries[0]))
    for each in deliveries[: BEHIND_MAX + 1]:
        order.end(each)
    assert order.enter(made_delivery(offset=500)) == "row"
    order.note_empty([held_by(deliveries[0])])
    assert order.enter(made_delivery(offset=501)) == "go"
