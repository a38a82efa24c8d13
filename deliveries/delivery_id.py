"""The id of a delivery, which is also the `webhook-id` of its attempts."""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from schemas.event_id import NAMESPACE_PLANT

_PREFIX: Final = sha1(NAMESPACE_PLANT.bytes + b"plant.delivery\n", usedforsecurity=False)


def delivery_id(event_id: bytes, endpoint_id: bytes) -> bytes:
    r"""Return the 16 bytes of the id of an event's delivery to an endpoint, from the 16 bytes of both ids.

        UUIDv5(NAMESPACE_PLANT, "plant.delivery\n" || event id || endpoint id)

    One event and endpoint have one delivery, whoever dispatches it, and how often. Source: RFC 9562, 5.5.

    >>> delivery_id(bytes(16), bytes(15) + b"\1").hex()
    'cdb82cbfed2c5c36b3ede1992e9830a4'
    """
    digest = _PREFIX.copy()
    digest.update(event_id)
    digest.update(endpoint_id)
    number = bytearray(digest.digest()[:16])
    number[6] = number[6] & 0x0F | 0x50
    number[8] = number[8] & 0x3F | 0x80
    return bytes(number)
