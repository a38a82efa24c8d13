"""TLS to the brokers: the context of a client, its own certificate, and what is wrong with files that can't be used.

OpenSSL decides whether files can be used. What it says of a wrong password or a key of another certificate names
neither, so the files are looked at again then.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.errors import ConfigurationError
from runtime.kafka_settings import PREFIX, KafkaSettings
from runtime.logging import get_logger

log = get_logger(__name__)

CA: Final = f"{PREFIX}KAFKA_SSL_CAFILE"
CERTIFICATE: Final = f"{PREFIX}KAFKA_SSL_CERTFILE"
KEY: Final = f"{PREFIX}KAFKA_SSL_KEYFILE"
KEY_PASSWORD: Final = f"{PREFIX}KAFKA_SSL_KEY_PASSWORD"


def make_tls_context(settings: KafkaSettings, now: datetime | None = None) -> ssl.SSLContext:
    """Return a context that trusts the CA of the settings and shows their client certificate, if there is one.

    Raises ConfigurationError naming the setting: a file that can't be read or used, half a pair, a wrong password, a
    key of another certificate, a certificate that is out of date.
    """
    context = trusting(settings.kafka_ssl_cafile, CA)
    if settings.kafka_ssl_certfile:
        certificate = ClientCertificate(settings)
        certificate.load(context, now or datetime.now(UTC))
        _CERTIFICATES[context] = certificate
    return context


def trusting(ca_file: str, setting: str) -> ssl.SSLContext:
    """Return a context that trusts the authorities of a file, those of the system where none is named.

    Raises ConfigurationError naming the setting.
    """
    if ca_file:
        _read(ca_file, setting)
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(setting, f"{ca_file} holds no certificate in PEM form.") from error


def reload_certificate(context: ssl.SSLContext | None) -> None:
    """Read a context's client certificate again if its files have changed: short-lived ones are replaced in place.

    Files that can't be used leave the one before, with a warning.
    """
    certificate = None if context is None else _CERTIFICATES.get(context)
    if context is None or certificate is None or not certificate.has_changed():
        return
    try:
        certificate.load(context, datetime.now(UTC))
    except ConfigurationError as error:
        log.warning("certificate.not_reloaded", why=str(error))


class ClientCertificate:
    """The files of a client's certificate and key, as the settings name them."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._certificate_file = settings.kafka_ssl_certfile
        self._key_file = settings.kafka_ssl_keyfile or settings.kafka_ssl_certfile
        self._key_setting = KEY if settings.kafka_ssl_keyfile else CERTIFICATE
        self._password = settings.kafka_ssl_key_password
        self._loaded: object = None

    def load(self, context: ssl.SSLContext, now: datetime) -> None:
        """Show this certificate on connections of the context from now on. Raises ConfigurationError."""
        self._loaded = self._versions()
        certificate = _read(self._certificate_file, CERTIFICATE)
        key = _read(self._key_file, self._key_setting)
        self._require_valid(certificate, now)
        try:
            # First into another context: a pair that does not match would leave half of itself behind.
            for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), context):
                # With a password OpenSSL never asks a terminal for one.
                each.load_cert_chain(self._certificate_file, self._key_file, password=lambda: self._password)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise self._diagnosis(certificate, key) from error

    def has_changed(self) -> bool:
        """Return whether a file is another one since it was loaded."""
        return self._versions() != self._loaded

    def _versions(self) -> object:
        try:
            states = [Path(name).stat() for name in (self._certificate_file, self._key_file)]
        except OSError:
            return None
        return [(state.st_ino, state.st_mtime_ns, state.st_size) for state in states]

    def _require_valid(self, pem: bytes, now: datetime) -> None:
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise _unusable(CERTIFICATE, f"{self._certificate_file} holds no certificate in PEM form.") from error
        if certificate.not_valid_after_utc < now:
            ended = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
            raise _unusable(CERTIFICATE, f"The certificate of {self._certificate_file} expired at {ended}.", "renew it")
        if certificate.not_valid_before_utc > now:
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            raise _unusable(CERTIFICATE, f"The certificate of {self._certificate_file} is valid from {begins} on.")

    def _diagnosis(self, certificate_pem: bytes, key_pem: bytes) -> ConfigurationError:
        """Return what is wrong with a pair that OpenSSL does not take."""
        password = self._password.encode() or None
        encrypted = b"ENCRYPTED" in key_pem
        if b"PRIVATE KEY-----" not in key_pem:
            if self._key_setting == CERTIFICATE:
                return _unusable(KEY, f"It is not set, and {self._key_file} holds no key.")
            return _unusable(KEY, f"{self._key_file} holds no key in PEM form.")
        if encrypted and password is None:
            return _unusable(KEY_PASSWORD, f"It is not set, and the key in {self._key_file} is encrypted.")
        try:
            key = load_pem_private_key(key_pem, password if encrypted else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            if encrypted:
                return _unusable(KEY_PASSWORD, f"It does not open the key in {self._key_file}.")
            return _unusable(self._key_setting, f"The key in {self._key_file} can't be read.")
        if key.public_key() != x509.load_pem_x509_certificate(certificate_pem).public_key():
            why = f"The key in {self._key_file} is not the one of the certificate in {self._certificate_file}."
            return _unusable(self._key_setting, why)
        return _unusable(CERTIFICATE, f"OpenSSL does not take {self._certificate_file} with {self._key_file}.")


_CERTIFICATES: Final[WeakKeyDictionary[ssl.SSLContext, ClientCertificate]] = WeakKeyDictionary()


def _read(file: str, setting: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is no path"
        raise _unusable(setting, f"{file} can't be read: {why}.") from error


def _unusable(setting: str, why: str, next_step: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"The setting {setting} can't be used.", why=why, next_step=next_step or "see docs/how-to/secure-kafka.md"
    )
