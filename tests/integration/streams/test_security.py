"""A real broker that asks for client certificates, tokens and passwords: who is refused learns why."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from operations.services.worker import build_worker
from runtime.settings import Settings
from schemas.events import AgentAvailable
from streams.consume import consume
from streams.errors import ConnectionRefused, KafkaUnavailable
from streams.kafka import oauth
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC, apply, describe
from tests.conftest import Database
from tests.support.certificates import Authority
from tests.support.log_rows import applied
from tests.support.secure_broker import (
    CLIENT_ID,
    CLIENT_SECRET,
    PASSWORD,
    REAUTHENTICATE_MS,
    USER,
    SecureKafka,
    secure_kafka,
)
from tests.support.waiting import wait_until_async

KEY_PASSWORD = "key-Passw0rd"


@pytest.fixture(scope="module")
def kafka() -> Iterator[SecureKafka]:
    """One broker for this file."""
    with secure_kafka() as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh_tokens() -> Iterator[None]:
    """No test uses a token of another one."""
    oauth._cache_of.cache_clear()
    yield
    oauth._cache_of.cache_clear()


Connected = Callable[..., Settings]


@pytest.fixture
def connected(settings: Settings, kafka: SecureKafka) -> Connected:
    """Settings that are let in by one of the broker's listeners, with changes."""
    client = kafka.authority.certificate("client", password=KEY_PASSWORD)
    kinds: dict[str, dict[str, str]] = {
        "mtls": {
            "kafka_bootstrap_servers": kafka.mtls,
            "kafka_security_protocol": "SSL",
            "kafka_ssl_cafile": str(kafka.authority.file),
            "kafka_ssl_certfile": str(client.certificate_file),
            "kafka_ssl_keyfile": str(client.key_file),
            "kafka_ssl_key_password": KEY_PASSWORD,
        },
        "oauth": {
            "kafka_bootstrap_servers": kafka.oauth,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ssl_cafile": str(kafka.authority.file),
            "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_oauth_token_url": f"{kafka.issuer.url}/token",
            "kafka_oauth_client_id": CLIENT_ID,
            "kafka_oauth_client_secret": CLIENT_SECRET,
        },
        "scram": {
            "kafka_bootstrap_servers": kafka.scram,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ssl_cafile": str(kafka.authority.file),
            "kafka_sasl_username": USER,
            "kafka_sasl_password": PASSWORD,
        },
    }
    kinds["plain"] = {**kinds["scram"], "kafka_sasl_mechanism": "PLAIN"}

    def build(kind: str, **changes: object) -> Settings:
        return msgspec.structs.replace(
            settings, topic_replication_factor=1, topic_partitions=4, **{**kinds[kind], **changes}
        )

    return build


def available() -> AgentAvailable:
    return AgentAvailable(event_id=uuid4(), agent_id=uuid4(), occurred_at=datetime.now(UTC), available=True)


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[None]:
    worker = build_worker(settings, [EVENTS_TOPIC])
    try:
        await worker.start()
        yield
    finally:
        await worker.stop()


@pytest.mark.parametrize("kind", ["mtls", "oauth", "scram", "plain"])
async def test_every_client_is_let_in(
    connected: Connected, kind: str, database: Database, kafka: SecureKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admin, producer, reader and a worker's group, by certificate, token and password."""
    monkeypatch.setattr(kafka.issuer, "life_seconds", 60)  # one that is about to end ends a connection too
    settings = connected(kind)
    await apply(settings)
    before = sum(each.partitions for each in (await describe(settings)).values())
    assert before > 0
    event = available()
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as producer:
        position = await producer.publish(event, source="urn:test")

    async with running_worker(settings):
        await wait_until_async(lambda: applied(database) >= 1, "the event is applied")

    received = [
        each async for each in consume(settings, partitions=[position.partition], start=position.offset, end="latest")
    ]
    assert event in [each.event for each in received]


async def test_tokens_are_replaced_while_a_worker_runs(
    connected: Connected, kafka: SecureKafka, database: Database
) -> None:
    """The broker closes connections whose token has ended; a producer and a worker go on with new ones."""
    settings = connected("oauth")
    await apply(settings)
    granted = kafka.issuer.granted
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as producer, running_worker(settings):
        for _ in range(3):
            count, tokens = applied(database), kafka.issuer.granted
            await producer.publish(available(), source="urn:test")
            await wait_until_async(lambda count=count: applied(database) > count, "the event is applied")  # type: ignore[misc]
            await wait_until_async(lambda tokens=tokens: kafka.issuer.granted > tokens, "a token is granted")  # type: ignore[misc]
    assert kafka.issuer.granted >= granted + 3
    assert kafka.issuer.life_seconds * 1000 > REAUTHENTICATE_MS


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mtls", {"kafka_ssl_certfile": "", "kafka_ssl_keyfile": ""}, "PLANT_KAFKA_SSL_CERTFILE"),
        ("mtls", {"kafka_ssl_cafile": "other"}, "PLANT_KAFKA_SSL_CAFILE"),
        ("mtls", {"kafka_ssl_certfile": "stranger", "kafka_ssl_keyfile": ""}, "PLANT_KAFKA_SSL_CERTFILE"),
        (
            "mtls",
            {"kafka_security_protocol": "PLAINTEXT", "kafka_ssl_certfile": "", "kafka_ssl_keyfile": ""},
            "PLANT_KAFKA_SECURITY_PROTOCOL",
        ),
        ("scram", {"kafka_sasl_password": "wrong-Passw0rd"}, "SaslAuthenticationFailed"),
        ("plain", {"kafka_sasl_password": "wrong-Passw0rd"}, "SaslAuthenticationFailed"),
        ("oauth", {"kafka_oauth_client_secret": "wrong-Passw0rd"}, "401 invalid_client"),
        ("oauth", {"kafka_sasl_mechanism": "PLAIN", **dict.fromkeys(oauth_names := (
            "kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret"), ""),
            "kafka_sasl_username": USER, "kafka_sasl_password": PASSWORD}, "UnsupportedSaslMechanismError"),
    ],
    ids=["no certificate", "another authority", "a stranger's certificate", "no TLS", "SCRAM password",
         "PLAIN password", "client secret", "mechanism"],
)  # fmt: skip
async def test_who_is_refused_is_told_why_at_once(
    connected: Connected, kafka: SecureKafka, kind: str, changes: dict[str, str], words: str
) -> None:
    """Every client ends with an error that names the cause, and with no secret in it, instead of trying again."""
    strangers = Authority(kafka.folder, "strangers")
    names = {"other": str(strangers.file), "stranger": str(strangers.certificate("stranger").both_file)}
    settings = connected(kind, **{name: names.get(value, value) for name, value in changes.items()})
    for attempt in (lambda: describe(settings), EventProducer(settings).start, build_worker(settings).start):
        with pytest.raises(ConnectionRefused, match=words) as caught:
            await attempt()
        assert settings.kafka_bootstrap_servers in caught.value.why
        for secret in (PASSWORD, CLIENT_SECRET, "wrong-Passw0rd"):
            assert secret not in f"{caught.value} {caught.value.next_step}"


async def test_a_token_that_the_broker_refuses_is_no_login(connected: Connected, kafka: SecureKafka) -> None:
    """The broker's own reason is shown; without the last step of OAUTHBEARER it would be a closed connection."""
    own_key, kafka.issuer.signing_key = kafka.issuer.signing_key, rsa.generate_private_key(65537, 2048)
    try:
        with pytest.raises(ConnectionRefused, match="SaslAuthenticationFailed") as caught:
            await describe(connected("oauth"))
    finally:
        kafka.issuer.signing_key = own_key
    assert "eyJ" not in str(caught.value)


async def test_a_certificate_that_was_renewed_is_used_by_a_running_client(
    connected: Connected, kafka: SecureKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are read again before the next connection; files that can't be used leave the one before."""
    own = kafka.authority.certificate("rotated")
    strangers = Authority(kafka.folder, "strangers").certificate("of-strangers")
    settings = connected(
        "mtls",
        kafka_ssl_certfile=str(own.certificate_file),
        kafka_ssl_keyfile=str(own.key_file),
        kafka_ssl_key_password="",
    )
    await apply(settings)
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as producer:
        await producer.publish(available(), source="urn:test")
        client = producer._connected._kafka.client  # type: ignore[union-attr]
        shutil.copy(strangers.certificate_file, own.certificate_file)
        with caplog.at_level(logging.WARNING):
            assert await _reconnects(client)
        shutil.copy(strangers.key_file, own.key_file)
        assert not await _reconnects(client), "the broker does not know this authority"


async def _reconnects(client: object) -> bool:
    for connection in list(client._conns.values()):  # type: ignore[attr-defined]
        await connection.close()
    await asyncio.sleep(0)
    return await client.ready(1)  # type: ignore[attr-defined, no-any-return]


async def test_an_endpoint_that_is_away_is_named(connected: Connected) -> None:
    """Neither the client id nor the secret is in the message."""
    settings = connected("oauth", kafka_oauth_token_url="http://127.0.0.1:1/token?key=abcdef")
    with pytest.raises(KafkaUnavailable, match=r"http://127\.0\.0\.1:1/token: ConnectError") as caught:
        await describe(settings)
    assert "abcdef" not in str(caught.value)
    assert CLIENT_SECRET not in str(caught.value)
