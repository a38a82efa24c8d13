"""Connections that brokers refuse: why, in an error, rather than in log lines of aiokafka and endless attempts.

aiokafka logs why a connection can't be opened and raises that no broker answers. One that is given up on the way, since
the client is stopped, stays open. A token that the broker refuses
counts as accepted, since the last step of OAUTHBEARER is left out (RFC 7628, section 3.2.3). And an error of a login
that is no KafkaError ends the task that keeps metadata.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from aiokafka import client as client_module
from aiokafka import conn as conn_module
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from runtime.errors import PlantError
from streams.errors import ConnectionRefused
from streams.kafka.repair import Repair
from streams.kafka.tls import reload_certificate

REPAIR: Final = Repair(
    name="refused connections",
    needed_by="aiokafka 0.14.0",
    reason="Why a broker refuses a connection is logged and not raised, a token that it refuses counts as accepted, an"
    " error of a login that is no KafkaError ends the task that keeps metadata, and a start that is given up leaves its"
    " connection open.",
    until="aiokafka raises authentication errors from `start`, answers the broker's error of OAUTHBEARER, and closes"
    " the connection of a start that is cancelled.",
    touches=(
        "aiokafka.client:create_conn",
        "aiokafka.conn:OAuthAuthenticator._token_sent",
        "aiokafka.conn:OAuthAuthenticator.step(payload)",
    ),
)

LOGIN_ERRORS: Final = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)
REASON_MAX_CHARACTERS: Final = 200


class _Start:
    """A client's start: the connections that it has opened, and why others were refused."""

    def __init__(self) -> None:
        self.opened: list[AIOKafkaConnection] = []
        self.is_over = False
        """Tasks that it has started go on with its context, and open connections too."""
        self.reasons: dict[str, str] = {}


_start: ContextVar[_Start | None] = ContextVar("start", default=None)


def tell_refusals() -> None:
    """Make this process's aiokafka clients tell why connections are refused."""
    client_module.create_conn = open_connection
    conn_module.OAuthAuthenticator = AnsweringAuthenticator


class AnsweringAuthenticator(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka is not type-checked here
    """OAUTHBEARER with its last step: an error of the broker is answered, and then it fails the login."""

    async def step(self, payload: bytes | None) -> Any:
        if self._token_sent and payload:
            return b"\x01", True
        return await super().step(payload)


@contextmanager
def raising_refusals() -> Iterator[None]:
    """Raise ConnectionRefused, rather than that no broker answers, where a broker refused a connection inside.

    What was opened inside is closed where that is cancelled.
    """
    start = _Start()
    token = _start.set(start)
    try:
        yield
    except KafkaConnectionError as error:
        if start.reasons:
            why = " ".join(f"{server}: {reason}" for server, reason in start.reasons.items())
            raise ConnectionRefused(why=why) from error
        raise
    except asyncio.CancelledError:
        for connection in start.opened:
            connection.close()
        raise
    finally:
        start.is_over = True
        start.opened.clear()
        _start.reset(token)


async def open_connection(host: str, port: int, **options: Any) -> AIOKafkaConnection:
    """Open a connection as aiokafka does, with a client certificate that may be newer than the client.

    Raises OSError, TimeoutError and KafkaError alone: aiokafka expects no others.
    """
    context = options.get("ssl_context")
    if context is not None:
        await asyncio.to_thread(reload_certificate, context)
    start = _start.get()
    try:
        connection = await create_conn(host, port, **options)
        if start is not None and not start.is_over:
            start.opened.append(connection)
        return connection
    except Exception as error:
        why = refusal(error)
        if why and start is not None:
            start.reasons[f"{host}:{port}"] = why
        if isinstance(error, (OSError, TimeoutError, KafkaError)):
            raise
        raise KafkaConnectionError(f"the login failed: {why or type(error).__name__}") from error


def refusal(error: BaseException) -> str:
    """Return one sentence on why a broker, or this client, refused a connection; nothing where it merely failed."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the broker's certificate is not trusted, {each.verify_message} (PLANT_KAFKA_SSL_CAFILE)."
        if isinstance(each, ssl.SSLError):
            return _tls_refusal(each)
        if isinstance(each, LOGIN_ERRORS):
            return f"{_cut(each)} ({type(each).__name__})."
        if isinstance(each, PlantError):
            return str(each)
        if isinstance(each, asyncio.IncompleteReadError):
            return (
                "the connection was closed before the login was done. PLANT_KAFKA_SECURITY_PROTOCOL may not fit this"
                " listener, or it asks for a client certificate (PLANT_KAFKA_SSL_CERTFILE)."
            )
        each = each.__cause__
    if not isinstance(error, (OSError, TimeoutError, KafkaError)):
        return f"the login failed, {type(error).__name__}."  # its text may hold a part of the login
    return ""


def _tls_refusal(error: ssl.SSLError) -> str:
    reason = (error.reason or "TLS failed").replace("_", " ").lower()
    if "alert" in reason and ("certificate" in reason or "handshake" in reason or "unknown ca" in reason):
        return f"the broker does not take this client's certificate, {reason} (PLANT_KAFKA_SSL_CERTFILE)."
    return f"TLS failed, {reason} (PLANT_KAFKA_SECURITY_PROTOCOL)."


def _cut(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return "".join(letter for letter in text if letter.isprintable())[:REASON_MAX_CHARACTERS].rstrip(".")
