"""The headers by which a record says who sent it; the audit chain covers them, as it covers all headers.

`plant_producer` is the verified producer, `plant_key` the id of the key that signed, `plant_message_id` the sender's
own id of the message. Ingress writes all three, and never from a header of the request. What Plant publishes itself has
no key. `plant_operation` is the id of the operator's action that published the event, as `plant publish` does; that
action is an event of `plant.operations`.

The relay also names the change that its event tells of: `plant_tenant` is the tenant of the entity, `plant_version` the
entity's version that the change made. Nothing else that Plant publishes has these two.

Whoever may write to Kafka past Plant can write these headers as well: Kafka's own rights keep them true.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from schemas.clock_fields import ClockStamped
from schemas.events import Event

Header = tuple[str, bytes]

PRODUCER_HEADER: Final = "plant_producer"
KEY_HEADER: Final = "plant_key"
MESSAGE_ID_HEADER: Final = "plant_message_id"
OPERATION_HEADER: Final = "plant_operation"
TENANT_HEADER: Final = "plant_tenant"
VERSION_HEADER: Final = "plant_version"

RELAY_PRODUCER: Final = "plant.relay"
"""The producer's name of what the relay publishes. Ingress has no producer whose name begins with `plant.`."""

_VERSION_DIGITS_MAX: Final = 18
"""Any number of so many digits is a bigint."""


class ChangedVersion(NamedTuple):
    """The change of an entity in the database that an event tells of: its tenant, and the version that it made."""

    tenant: str
    version: int


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


def change_headers(tenant: str, version: int) -> tuple[Header, ...]:
    """Return the headers by which the relay says which change of an entity its event tells of.

    >>> change_headers("genesis", 7)
    (('plant_tenant', b'genesis'), ('plant_version', b'7'))
    """
    return (TENANT_HEADER, tenant.encode()), (VERSION_HEADER, b"%d" % version)


def changed_version(headers: Iterable[tuple[str, bytes | None]]) -> ChangedVersion | None:
    """Return the change that a record tells of; None where it is not the relay's, or does not say.

    A producer of ingress has a key, and no name of Plant's own, so it is never believed. Nor is a header that comes
    twice: no record of the relay has one.

    >>> changed_version([*sender_headers("plant.relay"), *change_headers("genesis", 7)])
    ChangedVersion(tenant='genesis', version=7)
    >>> changed_version([*sender_headers("other", key_id="7"), *change_headers("genesis", 7)])
    """
    own = [(name, value) for name, value in headers if name in _OF_CHANGES]
    said = dict(own)
    tenant, version = said.get(TENANT_HEADER), said.get(VERSION_HEADER)
    if len(own) != len(said) or said.get(PRODUCER_HEADER) != RELAY_PRODUCER.encode() or KEY_HEADER in said:
        return None
    if not tenant or not version or not version.isdigit() or len(version) > _VERSION_DIGITS_MAX:
        return None
    try:
        name = tenant.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in name or len(name) > _TENANT_MAX_CHARACTERS else ChangedVersion(name, int(version))


_OF_CHANGES: Final = frozenset((PRODUCER_HEADER, KEY_HEADER, TENANT_HEADER, VERSION_HEADER))
_TENANT_MAX_CHARACTERS: Final = 200


@lru_cache(maxsize=4096)
def _of_producer(producer: str, key_id: str | None) -> tuple[Header, ...]:
    headers = ((PRODUCER_HEADER, producer.encode()),)
    return headers if key_id is None else (*headers, (KEY_HEADER, key_id.encode()))
