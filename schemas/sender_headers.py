"""The headers by which a record says who sent it; the audit chain covers them, as it covers all headers.

`plant_producer` is the verified producer, `plant_key` the id of the key that signed, `plant_message_id` the sender's
own id of the message. Ingress writes all three, and never from a header of the request. What Plant publishes itself has
no key. `plant_operation` is the id of the operator's action that published the event, as `plant publish` does; that
action is an event of `plant.operations`. Whoever may write to Kafka past Plant can write these headers as well: Kafka's
own rights keep them true.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from schemas.clock_fields import ClockStamped
from schemas.events import Event

Header = tuple[str, bytes]

PRODUCER_HEADER: Final = "plant_producer"
KEY_HEADER: Final = "plant_key"
MESSAGE_ID_HEADER: Final = "plant_message_id"
OPERATION_HEADER: Final = "plant_operation"


class EventOfSender(NamedTuple):
    """An event with the headers of its sender."""

    event: Event | ClockStamped
    sender: tuple[Header, ...]


def sender_headers(producer: str, message_id: str | None = None, *, key_id: str | None = None) -> tuple[Header, ...]:
    """Return the headers of one message's sender.

    >>> sender_headers("genesis", "msg_1", key_id="7")
    (('plant_producer', b'genesis'), ('plant_key', b'7'), ('plant_message_id', b'msg_1'))
    >>> sender_headers("plant.relay")
    (('plant_producer', b'plant.relay'),)
    """
    of_producer = _of_producer(producer, key_id)
    return of_producer if message_id is None else (*of_producer, (MESSAGE_ID_HEADER, message_id.encode()))


@lru_cache(maxsize=4096)
def _of_producer(producer: str, key_id: str | None) -> tuple[Header, ...]:
    headers = ((PRODUCER_HEADER, producer.encode()),)
    return headers if key_id is None else (*headers, (KEY_HEADER, key_id.encode()))
