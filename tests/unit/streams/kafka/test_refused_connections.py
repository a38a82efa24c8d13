"""Why a broker refuses a connection comes out as an error, and no error of a login ends a client's tasks."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from runtime.settings import Settings
from streams.errors import ConnectionRefused, KafkaUnavailable
from streams.kafka import refused_connections
from streams.kafka.clients import make_admin
from streams.kafka.refused_connections import AnsweringAuthenticator, open_connection, raising_refusals, refusal


def caused_by(cause: BaseException) -> KafkaConnectionError:
    error = KafkaConnectionError("closed")
    error.__cause__ = cause
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "x")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (caused_by(tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "does not take this client's certificate"),
        (tls("WRONG_VERSION_NUMBER"), "wrong version number"),
        (SaslAuthenticationFailed("wrong\n\x1b[1m password"), "wrong [1m password"),
        (caused_by(asyncio.IncompleteReadError(b"", 4)), "PLANT_KAFKA_SECURITY_PROTOCOL"),
        (KafkaUnavailable(why="issuer: it answered 401."), "it answered 401."),
        (ValueError("Server sent wrong signature! p=secret"), "the login failed, ValueError."),
    ],
)
def test_a_refusal_has_its_reason(error: BaseException, words: str) -> None:
    """One printable sentence."""
    assert words in refusal(error)
    assert refusal(error).isprintable()
    assert "secret" not in refusal(error)


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "x"), TimeoutError(), KafkaConnectionError("x")])
def test_a_broker_that_is_away_refuses_nothing(error: BaseException) -> None:
    """It is tried again, as before."""
    assert refusal(error) == ""


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [
        (SaslAuthenticationFailed("no"), SaslAuthenticationFailed, ConnectionRefused),
        (ValueError("wrong signature"), KafkaConnectionError, ConnectionRefused),
        (KafkaUnavailable(why="401."), KafkaConnectionError, ConnectionRefused),
        (OSError(111, "x"), OSError, KafkaConnectionError),
    ],
)
async def test_clients_meet_errors_that_they_expect(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], raised: type[Exception]
) -> None:
    """aiokafka expects OSError, TimeoutError and KafkaError; any other would end its tasks."""

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(refused_connections, "create_conn", fail)

    async def bootstrap() -> None:
        with raising_refusals():
            with pytest.raises(kind):
                await open_connection("h", 1)
            raise KafkaConnectionError("no broker")

    with pytest.raises(raised):
        await bootstrap()


async def test_an_error_of_oauthbearer_is_answered() -> None:
    """RFC 7628, section 3.2.3: the client sends %x01, and then the broker fails the login."""

    class Tokens:
        async def token(self) -> str:
            return "t"

    login = AnsweringAuthenticator(sasl_oauth_token_provider=Tokens())
    assert await login.step(None) == (b"n,,\x01auth=Bearer t\x01\x01", True)
    assert await login.step(b'{"status":"invalid_token"}') == (b"\x01", True)
    login = AnsweringAuthenticator(sasl_oauth_token_provider=Tokens())
    await login.step(None)
    assert await login.step(b"") is None


class Connection:
    """A connection that is open, and whose broker never answers."""

    def __init__(self) -> None:
        self.asked, self.is_open = asyncio.Event(), True

    async def send(self, _request: object) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    def close(self) -> None:
        self.is_open = False


async def test_a_start_that_is_given_up_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is stopped while its first broker is asked for the others."""
    connection = Connection()

    async def connect(*_: Any, **__: Any) -> Connection:
        return connection

    monkeypatch.setattr(refused_connections, "create_conn", connect)
    client = make_admin(Settings(kafka_bootstrap_servers="127.0.0.1:1")).client
    starting = asyncio.create_task(client.bootstrap())
    await connection.asked.wait()
    assert connection.is_open
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert not connection.is_open
    await client.close()
