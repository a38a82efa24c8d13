"""Settings into connection options: what is missing, unused or unusable is named, with exit code 2."""

from __future__ import annotations

import doctest
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from operations.cli.main import main
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from streams.agents import Worker
from streams.kafka import oauth
from streams.kafka.connection import check_credentials, connection_options
from streams.kafka.tls import reload_certificate
from streams.producer import EventProducer
from tests.support.certificates import Authority, CertificateFiles

SERVERS = {"kafka_bootstrap_servers": "127.0.0.1:1"}
TLS = {**SERVERS, "kafka_security_protocol": "SSL"}
SASL = {**SERVERS, "kafka_security_protocol": "SASL_SSL"}
OAUTH = {
    **SASL,
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_oauth_token_url": "https://issuer/token",
    "kafka_oauth_client_id": "plant",
    "kafka_oauth_client_secret": "client-s3cret",
}
PASSWORD = "key-Passw0rd"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def pair(files: CertificateFiles, **changes: str) -> Settings:
    names = {"kafka_ssl_certfile": str(files.certificate_file), "kafka_ssl_keyfile": str(files.key_file)}
    return Settings(**{**TLS, **names, **changes})  # type: ignore[arg-type]  # Each of these is a text.


def test_a_pair_is_shown_in_one_file_or_two_encrypted_or_not(authority: Authority) -> None:
    """Each makes a context that verifies brokers and their names."""
    plain, locked = authority.certificate("plain"), authority.certificate("locked", password=PASSWORD)
    for settings in (
        pair(plain),
        pair(plain, kafka_ssl_certfile=str(plain.both_file), kafka_ssl_keyfile=""),
        pair(plain, kafka_ssl_key_password="of no use"),
        pair(locked, kafka_ssl_key_password=PASSWORD, kafka_ssl_cafile=str(authority.file)),
    ):
        context = connection_options(settings)["ssl_context"]
        assert isinstance(context, ssl.SSLContext)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """The error names the setting and what is wrong, and holds no password."""
    good, other = authority.certificate("good"), authority.certificate("other")
    locked = authority.certificate("locked", password=PASSWORD)
    expired = authority.certificate("expired", valid_until=timedelta(minutes=-1))
    later = authority.certificate("later", valid_from=timedelta(hours=1))
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    missing = str(tmp_path / "missing.pem")
    cases = [
        (pair(good, kafka_ssl_cafile=missing), "PLANT_KAFKA_SSL_CAFILE", "No such file"),
        (pair(good, kafka_ssl_cafile=str(text)), "PLANT_KAFKA_SSL_CAFILE", "no certificate"),
        (pair(good, kafka_ssl_cafile=str(tmp_path)), "PLANT_KAFKA_SSL_CAFILE", "Is a directory"),
        (pair(good, kafka_ssl_certfile=missing), "PLANT_KAFKA_SSL_CERTFILE", "No such file"),
        (pair(good, kafka_ssl_certfile=str(text)), "PLANT_KAFKA_SSL_CERTFILE", "no certificate"),
        (pair(good, kafka_ssl_certfile=""), "PLANT_KAFKA_SSL_CERTFILE", "half a pair"),
        (pair(good, kafka_ssl_keyfile=""), "PLANT_KAFKA_SSL_KEYFILE", "holds no key"),
        (pair(good, kafka_ssl_keyfile=missing), "PLANT_KAFKA_SSL_KEYFILE", "No such file"),
        (pair(good, kafka_ssl_keyfile=str(text)), "PLANT_KAFKA_SSL_KEYFILE", "no key"),
        (
            pair(good, kafka_ssl_keyfile=str(other.key_file)),
            "PLANT_KAFKA_SSL_KEYFILE",
            "not the one of the certificate",
        ),
        (pair(locked), "PLANT_KAFKA_SSL_KEY_PASSWORD", "encrypted"),
        (pair(locked, kafka_ssl_key_password="wr0ng-Passw"), "PLANT_KAFKA_SSL_KEY_PASSWORD", "does not open"),
        (pair(expired), "PLANT_KAFKA_SSL_CERTFILE", "expired at"),
        (pair(later), "PLANT_KAFKA_SSL_CERTFILE", "valid from"),
    ]
    for settings, name, why in cases:
        with pytest.raises(ConfigurationError) as caught:
            connection_options(settings)
        assert caught.value.exit_code == 2
        assert (name in caught.value.what, why in caught.value.why) == (True, True), str(caught.value)
        assert "wr0ng-Passw" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "name", "what"),
    [
        ({**SASL, "kafka_sasl_password": "p"}, "PLANT_KAFKA_SASL_USERNAME", "missing"),
        ({**SASL, "kafka_sasl_username": "u"}, "PLANT_KAFKA_SASL_PASSWORD", "missing"),
        ({**OAUTH, "kafka_oauth_client_secret": ""}, "PLANT_KAFKA_OAUTH_CLIENT_SECRET", "missing"),
        ({**OAUTH, "kafka_sasl_username": "u"}, "PLANT_KAFKA_SASL_USERNAME", "no effect"),
        ({**OAUTH, "kafka_sasl_mechanism": "PLAIN"}, "PLANT_KAFKA_SASL_USERNAME", "missing"),
        ({**SERVERS, "kafka_sasl_password": "p"}, "PLANT_KAFKA_SASL_PASSWORD", "no effect"),
        ({**SERVERS, "kafka_ssl_certfile": "c"}, "PLANT_KAFKA_SSL_CERTFILE", "no effect"),
        ({**TLS, "kafka_oauth_client_id": "c"}, "PLANT_KAFKA_OAUTH_CLIENT_ID", "no effect"),
    ],
)
def test_credentials_that_are_missing_or_unused_are_named(changes: dict[str, str], name: str, what: str) -> None:
    """Whoever sets a password or a certificate would believe that the connection is protected by it."""
    with pytest.raises(ConfigurationError, match=f"{name} .*{what}"):
        check_credentials(Settings(**changes))  # type: ignore[arg-type]  # Each of these is a text.


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("kafka_oauth_token_url", "http://issuer/token", "in the clear"),
        ("kafka_oauth_token_url", "issuer/token", "no https address"),
        ("kafka_oauth_token_url", "https://:x/", "no https address"),
        ("kafka_oauth_extensions", "auth=x", "no name=value"),
        ("kafka_oauth_extensions", "a", "no name=value"),
        ("kafka_oauth_extensions", "a=\x01", "no name=value"),
        ("kafka_oauth_cafile", "/missing", "No such file"),
    ],
)
async def test_settings_of_the_token_endpoint_that_cannot_be_used_are_named(name: str, value: str, why: str) -> None:
    """A secret goes over TLS, or stays on the machine."""
    with pytest.raises(ConfigurationError, match=f"PLANT_{name.upper()} can't be used.*{why}"):
        connection_options(Settings(**{**OAUTH, name: value}))  # type: ignore[arg-type]  # Each of these is a text.


@pytest.mark.parametrize(
    "make",
    [EventProducer, lambda settings: Worker(settings, ["t"], lambda topic, partition: pytest.fail("assigned"))],
    ids=["EventProducer", "Worker"],
)
async def test_a_process_ends_before_it_connects(make: object) -> None:
    """It would try again and again otherwise, and its settings stay wrong."""
    assert callable(make)
    with pytest.raises(ConfigurationError, match="PLANT_KAFKA_SSL_CERTFILE"):
        make(Settings(**TLS, kafka_ssl_certfile="/missing"))  # type: ignore[arg-type]  # Each of these is a text.


def test_a_command_ends_with_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what to do."""
    for name, value in {**TLS, "kafka_ssl_keyfile": "/missing"}.items():
        monkeypatch.setenv(f"PLANT_{name.upper()}", value)
    with pytest.raises(SystemExit) as ended:
        main(["topics", "list"])
    assert ended.value.code == 2
    assert "PLANT_KAFKA_SSL_CERTFILE" in capsys.readouterr().err


def test_a_context_keeps_its_certificate_where_the_new_files_cannot_be_used(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half-written files are read again at the next connection."""
    files, other = authority.certificate("own"), authority.certificate("other")
    context = connection_options(pair(files))["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    loads: list[object] = []
    context.load_cert_chain = lambda *_, **__: loads.append(1)  # type: ignore[method-assign,assignment]

    reload_certificate(context)
    assert loads == []
    files.certificate_file.write_bytes(other.certificate_file.read_bytes() + b"\n")
    reload_certificate(context)
    assert loads == []
    files.key_file.write_bytes(other.key_file.read_bytes() + b"\n")
    reload_certificate(context)
    assert loads == [1]


def test_the_docstrings_are_right() -> None:
    """The examples in the modules hold."""
    assert doctest.testmod(oauth).failed == 0
