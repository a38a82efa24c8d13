"""What a connection's protocol tells the handlers of its requests, in the scope: the peer."""

from __future__ import annotations

from typing import Any, Final, Protocol, cast

from litestar.types import Scope

PEER: Final = "plant.peer"


class Peer(Protocol):
    """The other end of a connection. It has proved itself when one of its requests was signed."""

    proved: bool

    @property
    def body_is_whole(self) -> bool:
        """Whether the newest request that began to be read has arrived to its end."""

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
