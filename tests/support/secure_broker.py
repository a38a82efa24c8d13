"""A real broker with a listener for each way to log in, its certificates, and an issuer of tokens for it."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote_plus

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from devstack import processes
from devstack.errors import StartFailed, tail
from devstack.kafka import Broker, Ports
from devstack.progress import Silent
from tests.support.certificates import Authority
from tests.support.services import folder_of_this_run

PASSWORD: Final = "sasl-Passw0rd"
USER: Final = "plant"
CLIENT_ID: Final = "plant-client"
CLIENT_SECRET: Final = "client-secret:/+="
REAUTHENTICATE_MS: Final = 3_000
ATTEMPTS: Final = 3
SCRAM_TIMEOUT_SECONDS: Final = 60

SECURITY: Final = "org.apache.kafka.common.security"
LISTENERS: Final = """
listeners=CONTROLLER://127.0.0.1:{controller_port},PLAINTEXT://127.0.0.1:{port},MTLS://127.0.0.1:{mtls},\\
  OAUTH://127.0.0.1:{oauth},SCRAM://127.0.0.1:{scram}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},MTLS://127.0.0.1:{mtls},OAUTH://127.0.0.1:{oauth},\\
  SCRAM://127.0.0.1:{scram}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,MTLS:SSL,OAUTH:SASL_SSL,SCRAM:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
listener.name.mtls.ssl.client.auth=required
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.connections.max.reauth.ms={reauthenticate_ms}
listener.name.oauth.oauthbearer.sasl.jaas.config={security}.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=\\
  {security}.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url={jwks_url}
listener.name.oauth.sasl.oauthbearer.jwt.validator.class={security}.oauthbearer.BrokerJwtValidator
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.scram.scram-sha-512.sasl.jaas.config={security}.scram.ScramLoginModule required;
listener.name.scram.plain.sasl.jaas.config={security}.plain.PlainLoginModule required user_{user}="{password}";
"""


class Issuer:
    """A token endpoint with the keys to check its tokens, on a loopback port."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self.life_seconds = 4
        self.signing_key = self._key
        """The key of its tokens; another one than that of `keys` makes tokens that brokers refuse."""
        self.granted = 0
        self.refused: list[str] = []
        self.authorizations: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, issuer.keys())

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                issuer.authorizations.append(self.headers["authorization"])
                if form["grant_type"] != ["client_credentials"] or not issuer.knows(self.headers["authorization"]):
                    issuer.refused.append("invalid_client")
                    self.answer(401, {"error": "invalid_client", "error_description": CLIENT_SECRET})
                    return
                issuer.granted += 1
                answer = {"access_token": issuer.token(), "token_type": "Bearer", "expires_in": issuer.life_seconds}
                self.answer(200, answer)

            def answer(self, status: int, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Issuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def knows(self, authorization: str) -> bool:
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        return (unquote_plus(user), unquote_plus(password)) == (CLIENT_ID, CLIENT_SECRET)

    def keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": _number(numbers.n), "e": _number(numbers.e)}
        return {"keys": [key]}

    def token(self) -> str:
        now = int(time.time())
        claims = {"sub": CLIENT_ID, "iss": self.url, "iat": now, "exp": now + self.life_seconds}
        signed = f"{_part({'alg': 'RS256', 'kid': '1'})}.{_part({**claims, 'scope': 'kafka'})}"
        signature = self.signing_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"


@dataclass
class SecureKafka:
    """A running broker: its addresses, and what its clients need."""

    plain: str
    mtls: str
    oauth: str
    scram: str
    authority: Authority
    issuer: Issuer
    folder: Path


class SecureBroker(Broker):
    """A broker with more listeners than the local stack's."""

    def __init__(self, home: Path, lines: str) -> None:
        super().__init__(home, 1, 1)
        self._lines = lines

    def _settings(self, all_ports: Sequence[Ports]) -> str:
        return super()._settings(all_ports) + self._lines


@contextlib.contextmanager
def secure_kafka() -> Iterator[SecureKafka]:
    """A broker that asks for client certificates at one address, for tokens at another, for passwords at a third."""
    with folder_of_this_run() as own, Issuer() as issuer:
        for attempt in range(1, ATTEMPTS + 1):
            home = own / f"secure-kafka-{attempt}"
            try:
                running, record = _started(home, issuer)
            except (OSError, KafkaException, StartFailed) as error:
                # Others start brokers at the same time, and a port that was free may not be so any more.
                print(f"attempt {attempt} to start a broker: {error}")
                if attempt == ATTEMPTS:
                    raise
                continue
            try:
                yield running
            finally:
                _stop(home, record)
            return


def _started(home: Path, issuer: Issuer) -> tuple[SecureKafka, processes.ProcessRecord]:
    home.mkdir()
    authority = Authority(home)
    server = authority.certificate("server")
    port, controller_port, mtls, oauth, scram = _free_ports(5)
    lines = LISTENERS.format(
        port=port,
        controller_port=controller_port,
        security=SECURITY,
        mtls=mtls,
        oauth=oauth,
        scram=scram,
        keystore=server.both_file,
        truststore=authority.file,
        reauthenticate_ms=REAUTHENTICATE_MS,
        jwks_url=f"{issuer.url}/keys",
        user=USER,
        password=PASSWORD,
    )
    broker = SecureBroker(home, lines)
    started: list[processes.ProcessRecord] = []
    allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={issuer.url}/keys"
    ports = [Ports(port, controller_port)]
    broker.start("c2VjdXJlLWthZmthLXRlc3Q", ports, Silent(), started.append, more_options=(allowed,))
    try:
        _add_scram_user(f"127.0.0.1:{port}")
    except BaseException:
        print(tail(broker.log))
        _stop(home, started[0])
        raise
    addresses = (f"127.0.0.1:{each}" for each in (port, mtls, oauth, scram))
    return SecureKafka(*addresses, authority, issuer, home), started[0]


def _stop(home: Path, record: processes.ProcessRecord) -> None:
    Broker(home, 1, 1).stop(record)
    shutil.rmtree(home, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for _ in range(count):
        ports.append(processes.choose_port(None, set(ports)))
    return ports


def _add_scram_user(servers: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    for future in admin.alter_user_scram_credentials(
        [UserScramCredentialUpsertion(USER, credential, PASSWORD.encode())]
    ).values():
        future.result(SCRAM_TIMEOUT_SECONDS)


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _part(document: object) -> str:
    return _base64(json.dumps(document).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
