"""Headers of a record's sender, and which of them are believed about a change in the database."""

from __future__ import annotations

import doctest

import pytest

from schemas import sender_headers as module
from schemas.sender_headers import ChangedVersion, change_headers, changed_version, sender_headers

RELAY = sender_headers("plant.relay")
CHANGE = change_headers("acme", 3)


def test_the_relay_is_believed() -> None:
    """Whatever else stands among the headers, and whatever signs the tenant's name has."""
    assert changed_version([("ce_id", b"1"), *RELAY, *CHANGE, ("traceparent", None)]) == ChangedVersion("acme", 3)
    for tenant, version in (("Öl & Co", 1), ("t" * 200, 10**18 - 1)):
        assert changed_version([*RELAY, *change_headers(tenant, version)]) == (tenant, version)


@pytest.mark.parametrize(
    "headers",
    [
        [*CHANGE],
        [*RELAY],
        [*sender_headers("genesis", "msg_1", key_id="7"), *CHANGE],
        [*sender_headers("plant.relay", key_id="7"), *CHANGE],
        [*sender_headers("plant.relays"), *CHANGE],
        [*sender_headers("genesis"), *RELAY, *CHANGE],
        [*RELAY, *CHANGE, *CHANGE],
        [*RELAY, CHANGE[0]],
        [*RELAY, CHANGE[1]],
        [*RELAY, CHANGE[0], ("plant_version", None)],
        [*RELAY, CHANGE[0], ("plant_version", b"-1")],
        [*RELAY, CHANGE[0], ("plant_version", b"9" * 19)],
        [*RELAY, CHANGE[1], ("plant_tenant", b"")],
        [*RELAY, CHANGE[1], ("plant_tenant", b"\xff")],
        [*RELAY, CHANGE[1], ("plant_tenant", b"a\x00")],
        [*RELAY, CHANGE[1], ("plant_tenant", b"t" * 201)],
    ],
)
def test_nobody_else_is_and_nothing_that_the_relay_does_not_write(headers: list[tuple[str, bytes | None]]) -> None:
    """Such a record is an event like any other."""
    assert changed_version(headers) is None


def test_the_examples_hold() -> None:
    """In the docstrings."""
    assert doctest.testmod(module).failed == 0
