"""CloudEvents' abuse protection: a receiver agrees, in a handshake, before anything is sent to it.

    OPTIONS /hooks                                  200
    WebHook-Request-Origin: plant.example.com       WebHook-Allowed-Origin: plant.example.com, or *
    WebHook-Request-Rate: 120    (a minute)         WebHook-Allowed-Rate: 100, or *

Source: CloudEvents, HTTP 1.1 Web Hooks for Event Delivery 1.0.1, section 4. The answer has to say so: no callback is
offered, by which a receiver could agree later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import aiohttp

from deliveries.attempts import failure_words
from deliveries.endpoints import EndpointConfiguration, ReceiverAgreement
from deliveries.errors import DeliveriesMisconfigured, EndpointRefused, HandshakeRefused
from deliveries.guard.connections import DeliveryClient
from runtime.settings import Settings

RATE_MAX_PER_MINUTE: Final = 2**31 - 1
_ORIGIN: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_RATE: Final = re.compile(r"[1-9][0-9]{0,18}")


def request_origin(settings: Settings) -> str:
    """Return the name by which receivers are asked. Raises DeliveriesMisconfigured where there is none."""
    origin = settings.deliveries_origin.lower()
    if not _ORIGIN.fullmatch(origin):
        raise DeliveriesMisconfigured(
            "No receiver can be asked whether it agrees.",
            why="PLANT_DELIVERIES_ORIGIN has to be this Plant's name, as DNS has it.",
            next_step="export PLANT_DELIVERIES_ORIGIN=plant.example.com",
        )
    return origin


async def ask_receiver(
    client: DeliveryClient, configuration: EndpointConfiguration, origin: str, now: datetime
) -> ReceiverAgreement:
    """Ask the receiver at an endpoint's URL whether it takes deliveries, and return what it allows.

    Raises HandshakeRefused unless it says so, and EndpointRefused where it may not be connected to.
    """
    headers = {"webhook-request-origin": origin}
    if configuration.rate_per_second is not None:
        headers["webhook-request-rate"] = str(configuration.rate_per_second * 60)
    try:
        async with client.send(
            configuration.url, headers, b"", timeout_seconds=configuration.timeout_seconds, method="OPTIONS"
        ) as response:
            allowed = [response.headers.getall(name, []) for name in ("webhook-allowed-origin", "webhook-allowed-rate")]
            return ReceiverAgreement(now, read_agreement(response.status, *allowed, origin=origin))
    except EndpointRefused:
        raise
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise HandshakeRefused(why=failure_words(error)) from error


def read_agreement(status_code: int, origins: Sequence[str], rates: Sequence[str], *, origin: str) -> int | None:
    """Return how many deliveries a minute an answer allows, None for any number. Raises HandshakeRefused.

    >>> read_agreement(200, ["plant.example.com"], ["120"], origin="plant.example.com")
    120
    >>> read_agreement(204, ["*"], [], origin="plant.example.com") is None
    True
    >>> read_agreement(200, ["other.example.com"], ["*"], origin="plant.example.com")
    Traceback (most recent call last):
    deliveries.errors.HandshakeRefused: The receiver has not agreed to deliveries. It allows another origin.
    """
    if not 200 <= status_code <= 299:
        raise HandshakeRefused(why=f"It answered {status_code}.")
    if len(origins) != 1 or len(rates) > 1:
        raise HandshakeRefused(why="It has to answer with one WebHook-Allowed-Origin, and one rate at most.")
    if origins[0].strip().lower() not in (origin, "*"):
        raise HandshakeRefused(why="It allows another origin.")
    rate = rates[0].strip() if rates else "*"
    if rate == "*":
        return None
    if not _RATE.fullmatch(rate):
        raise HandshakeRefused(why="Its WebHook-Allowed-Rate is neither * nor a number of deliveries a minute.")
    return min(int(rate), RATE_MAX_PER_MINUTE)
