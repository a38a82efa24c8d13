"""What a connection's protocol tells the handlers of its requests, in the scope: the peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from litestar.types import Scope

PEER: Final = "plant.peer"

Header: TypeAlias = tuple[bytes, bytes]


class Peer(Protocol):
    """The other end of a connection. It has proved itself when one of its requests was signed."""

    proved: bool

    def take_body(self, scope: Scope) -> bytes | None:
        """Return the body of the request that is under way, if it has arrived to its end, and drop it here."""

    def answer(self, scope: Scope, status: int, headers: Sequence[Header], body: bytes) -> bool:
        """Answer the request at once, as `send` would; return False, and do nothing, where that can't be done."""

    def prove(self) -> None:
        """Keep the connection when others are closed to make room."""

    def break_off(self) -> None:
        """Close the connection in the middle of an answer, so that the peer sees that it is not whole."""


def keep_peer(scope: Any, peer: Peer) -> None:
    """Put the peer into the scope of a request, of whatever type the server has it."""
    scope[PEER] = peer


def peer_of(scope: Scope) -> Peer | None:
    """Return the request's peer, None where another server than ours runs the application."""
    return cast("Peer | None", scope.get(PEER))
