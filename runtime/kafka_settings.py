"""The settings that say how to reach Kafka. They are part of every process's :class:`runtime.settings.Settings`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from runtime.errors import ConfigurationError
from runtime.servers import parse_servers

PREFIX: Final = "PLANT_"
"""Of the variables of all settings."""
KAFKA_PORT: Final = 9092

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of the brokers, and what a client shows them so that they let it in."""

    kafka_bootstrap_servers: Annotated[
        str, Meta(description="Kafka brokers, `host:port,host:port`. Set by `plant up` locally.")
    ] = ""
    kafka_security_protocol: Annotated[SecurityProtocol, Meta(description="How to talk to the brokers.")] = "PLAINTEXT"
    kafka_ssl_cafile: Annotated[str, Meta(description="CA file for TLS to the brokers; empty: the system's.")] = ""
    kafka_ssl_certfile: Annotated[
        str,
        Meta(
            description="Client certificate for brokers that ask for one: a PEM file, with the certificates between it "
            "and the CA. It is read again when it has changed."
        ),
    ] = ""
    kafka_ssl_keyfile: Annotated[
        str, Meta(description="Key of the client certificate, a PEM file; empty: it is in the certificate's file.")
    ] = ""
    kafka_ssl_key_password: Annotated[str, Meta(description="Password of an encrypted key file.")] = ""
    kafka_sasl_mechanism: Annotated[SaslMechanism, Meta(description="SASL mechanism, with a SASL protocol.")] = (
        "SCRAM-SHA-512"
    )
    kafka_sasl_username: Annotated[str, Meta(description="SASL user name, for all mechanisms but OAUTHBEARER.")] = ""
    kafka_sasl_password: Annotated[str, Meta(description="SASL password, for all mechanisms but OAUTHBEARER.")] = ""
    kafka_oauth_token_url: Annotated[
        str, Meta(description="Token endpoint for OAUTHBEARER, https; it grants client credentials.")
    ] = ""
    kafka_oauth_client_id: Annotated[str, Meta(description="Client id at the token endpoint.")] = ""
    kafka_oauth_client_secret: Annotated[str, Meta(description="Client secret at the token endpoint.")] = ""
    kafka_oauth_scope: Annotated[str, Meta(description="Scope to ask the token endpoint for; empty: its default.")] = ""
    kafka_oauth_extensions: Annotated[
        str,
        Meta(
            description="SASL extensions that go with the token, `name=value,name=value`; Confluent Cloud wants "
            "`logicalCluster` and `identityPoolId`."
        ),
    ] = ""
    kafka_oauth_cafile: Annotated[
        str, Meta(description="CA file for TLS to the token endpoint; empty: the system's.")
    ] = ""

    def kafka_address(self) -> str:
        """Return the brokers' addresses; raises ConfigurationError where none is known, or one can't be used."""
        if not self.kafka_bootstrap_servers:
            raise ConfigurationError(
                "No Kafka address.",
                why="PLANT_KAFKA_BOOTSTRAP_SERVERS is not set and no local stack is up.",
                next_step="plant up",
            )
        try:
            servers = parse_servers(self.kafka_bootstrap_servers, KAFKA_PORT)
        except ValueError as error:
            raise ConfigurationError(
                f"The setting {PREFIX}KAFKA_BOOTSTRAP_SERVERS can't be used.",
                why=str(error),
                next_step=f"export {PREFIX}KAFKA_BOOTSTRAP_SERVERS=host:9092,host:9092",
            ) from error
        return ",".join(map(str, servers))
