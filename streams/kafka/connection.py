"""Connection options: settings into aiokafka's keyword arguments."""

from __future__ import annotations

from typing import Final

from runtime.errors import ConfigurationError
from runtime.kafka_settings import PREFIX, KafkaSettings
from streams.kafka.tls import make_tls_context

PASSWORD_SETTINGS: Final = ("kafka_sasl_username", "kafka_sasl_password")
OAUTH_SETTINGS: Final = ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
CERTIFICATE_SETTINGS: Final = ("kafka_ssl_certfile", "kafka_ssl_keyfile")


def connection_options(settings: KafkaSettings) -> dict[str, object]:
    """Return keyword arguments that every aiokafka client (producer, consumer, admin) takes.

    Raises ConfigurationError where no broker address is known, or a setting is missing or can't be used. Call it
    inside an event loop where the mechanism is OAUTHBEARER.
    """
    check_credentials(settings)
    options: dict[str, object] = {
        "bootstrap_servers": settings.kafka_address(),
        "security_protocol": settings.kafka_security_protocol,
    }
    if uses_tls(settings):
        options["ssl_context"] = make_tls_context(settings)
    if uses_sasl(settings):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        if settings.kafka_sasl_mechanism == "OAUTHBEARER":
            from streams.kafka.oauth import make_token_provider  # it brings an HTTP client

            options["sasl_oauth_token_provider"] = make_token_provider(settings)
        else:
            options["sasl_plain_username"] = settings.kafka_sasl_username
            options["sasl_plain_password"] = settings.kafka_sasl_password
    return options


def check_credentials(settings: KafkaSettings) -> None:
    """Raise ConfigurationError for credentials that are missing, or that the security protocol would not use.

    Whoever sets a certificate or a password expects that it protects the connection.
    """
    protocol, mechanism = settings.kafka_security_protocol, settings.kafka_sasl_mechanism
    needed: tuple[str, ...] = ()
    if uses_sasl(settings):
        needed = OAUTH_SETTINGS if mechanism == "OAUTHBEARER" else PASSWORD_SETTINGS
        for name in needed:
            if not getattr(settings, name):
                raise _error(name, "is missing.", f"SASL {mechanism} needs it.")
    for name in (*PASSWORD_SETTINGS, *OAUTH_SETTINGS):
        if getattr(settings, name) and name not in needed:
            with_mechanism = f" with {mechanism}" if uses_sasl(settings) else ""
            raise _error(name, "has no effect.", f"{PREFIX}KAFKA_SECURITY_PROTOCOL is {protocol}{with_mechanism}.")
    if not uses_tls(settings):
        for name in CERTIFICATE_SETTINGS:
            if getattr(settings, name):
                raise _error(name, "has no effect.", f"{PREFIX}KAFKA_SECURITY_PROTOCOL is {protocol}: there is no TLS.")
    if settings.kafka_ssl_keyfile and not settings.kafka_ssl_certfile:
        raise _error("kafka_ssl_certfile", "is missing.", f"{PREFIX}KAFKA_SSL_KEYFILE is set, and is half a pair.")


def uses_tls(settings: KafkaSettings) -> bool:
    """Return whether connections are encrypted."""
    return settings.kafka_security_protocol in ("SSL", "SASL_SSL")


def uses_sasl(settings: KafkaSettings) -> bool:
    """Return whether connections begin with a login."""
    return settings.kafka_security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")


def _error(name: str, what: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The setting {PREFIX}{name.upper()} {what}", why=why, next_step="see docs/how-to/secure-kafka.md"
    )
