"""Connection options: settings into aiokafka's keyword arguments."""

from __future__ import annotations

import ssl

from runtime.settings import Settings


def connection_options(settings: Settings) -> dict[str, object]:
    """Return keyword arguments that every aiokafka client (producer, consumer, admin) takes.

    Raises ConfigurationError where no broker address is known.
    """
    options: dict[str, object] = {
        "bootstrap_servers": settings.kafka_address(),
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ssl_cafile or None)
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password
    return options
