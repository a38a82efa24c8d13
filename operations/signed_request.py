"""One signed webhook, sent to a running ingress as a producer sends it, and what to do about each answer."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from ingress.headers import MESSAGE_ID
from ingress.intake import CLOUD_EVENTS_ROUTE
from ingress.routes import WEBHOOK_ROUTES
from operations.signing_keys import SigningKey
from runtime.errors import CheckFailed, ConfigurationError, Unreachable
from server.problems import URN
from signing.signatures import TOLERANCE_SECONDS

if TYPE_CHECKING:
    import httpx

STEP_TIMEOUT_SECONDS: Final = 10.0
TOTAL_TIMEOUT_SECONDS: Final = 30.0
ANSWER_MAX_BYTES: Final = 64 * 1024
SHOWN_MAX: Final = 500

AGAIN: Final = frozenset((408, 429))
"""Statuses below 500 after which the same request may be taken later."""

LOG: Final = "Its log says why."
ADVICE: Final = {
    "malformed-headers": ("Something between here and ingress has changed the headers.", "plant webhook send --help"),
    "malformed-body": ("Send one JSON object in UTF-8.", "plant webhook send --help"),
    "malformed-request": ("Something between here and ingress has changed the request.", "plant webhook send --help"),
    "signature": (
        "The key is another one, revoked or expired, or not of this producer, or a proxy has changed the request."
        " The log of ingress says which.",
        "plant keys list",
    ),
    "forbidden": ("The signature is good, and the producer's policy is against it.", "plant producers list"),
    "not-found": ("Give the address of ingress itself, without a path.", "plant status"),
    "method": ("Give the address of ingress itself, without a path.", "plant status"),
    "slow-request": ("The connection is slow, or ingress is; send it again.", "plant status"),
    "id-reused": ("Leave out --id, or send the body that the id was first used with.", "plant webhook send --help"),
    "body-too-large": ("Send one event, in fewer bytes.", "plant webhook send --help"),
    "media-type": ("Something between here and ingress has changed the headers.", "plant webhook send --help"),
    "event": ("The signature is good, and the event is not: mend the body.", "plant schemas list"),
    "rate-limited": ("The producer has sent more than its rate; send it again later.", "plant producers list"),
    "headers-too-large": ("Something between here and ingress has added headers.", "plant webhook send --help"),
    "unexpected": ("This is a fault of Plant's. " + LOG, "plant status"),
    "kafka-unavailable": ("The event may be stored; send it again with the same --id.", "plant status"),
    "overloaded": ("Send it again later, with the same --id.", "plant status"),
    "starting": ("Send it again later. " + LOG, "plant status"),
}
"""What to do about each kind of problem, and the command that tells more."""


class WebhookRefused(CheckFailed):
    """Ingress has refused the webhook."""


class WebhookNotTaken(Unreachable):
    """Ingress has not taken the webhook; it may take the same one later."""


class MessageUnusable(ConfigurationError):
    """There is no message to send."""


class SignedRequest(msgspec.Struct, frozen=True):
    """A webhook and its headers, for a route of ingress."""

    route: str
    message_id: str
    body: bytes
    headers: dict[str, str]


class IngressAnswer(msgspec.Struct, frozen=True):
    """What came back. `clock_ahead_seconds` is how far ingress's clock is ahead of ours; None where it did not say."""

    status: int
    document: Any
    """Of JSON; text where it was none."""
    retry_after: str
    clock_ahead_seconds: float | None


def example_body(now: datetime) -> bytes:
    """Return the payload of a test: a new agent was onboarded."""
    data = {"agent_id": str(uuid4()), "name": "Test webhook", "skill_ids": []}
    return json.dumps({"type": "genesis.agent.onboarded", "timestamp": now.isoformat(), "data": data}).encode()


def sign_request(
    key: SigningKey, body: bytes, *, message_id: str | None, producer: str | None, now: datetime
) -> SignedRequest:
    """Return the request of a body: a webhook's payload with its type, or a CloudEvent. Raises MessageUnusable."""
    route = _route(body)
    message_id = message_id or f"msg_{uuid4().hex}"
    if not MESSAGE_ID.fullmatch(message_id.encode("utf-8", "surrogateescape")):
        raise MessageUnusable("--id can't be used.", why="It has 1 to 256 visible ASCII characters, without { and [.")
    timestamp = str(int(now.timestamp()))
    headers = {
        "content-type": "application/cloudevents+json" if route == CLOUD_EVENTS_ROUTE else "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": key.sign(message_id.encode(), timestamp.encode(), body).decode(),
    }
    if producer is not None:
        headers["plant-producer"] = producer
    return SignedRequest(route, message_id, body, headers)


def _route(body: bytes) -> str:
    try:
        message = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):  # bytes that are no UTF-8 are a DecodeError too
        message = None
    if not isinstance(message, dict):
        raise MessageUnusable("The body is not a JSON object.", why="A webhook is one object, in UTF-8.")
    if "specversion" in message:
        return CLOUD_EVENTS_ROUTE
    routes = {event_type: route for route, event_type in WEBHOOK_ROUTES.items() if event_type is not None}
    event_type = message.get("type")
    if not isinstance(event_type, str) or event_type not in routes:
        raise MessageUnusable(
            "No route takes the body.",
            why=f"Its type is none of {', '.join(routes)}. Other types come as CloudEvents, which have a specversion.",
            next_step="plant schemas list",
        )
    return routes[event_type]


def ingress_address(url: str) -> str:
    """Return the address without a slash at its end. Raises MessageUnusable, which does not repeat it."""
    import httpx

    try:
        parts = urlsplit(url)
        # httpx reads the host's name by the rules for international names, and only when it is asked for it.
        good = parts.scheme in ("http", "https") and bool(httpx.URL(url).host) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        good = False
    good = good and not any(character.isspace() for character in url)
    if not good or parts.username is not None or parts.query or parts.fragment:
        raise MessageUnusable(
            "--url is no address of ingress.",
            why="It is http or https, a host and a port.",
            next_step="plant webhook send --url http://127.0.0.1:8080",
        )
    return url.rstrip("/")


async def send_request(client: httpx.AsyncClient, url: str, request: SignedRequest, now: datetime) -> IngressAnswer:
    """Send a request once, follow no redirection, and read a bounded answer. Raises WebhookNotTaken."""
    import httpx

    deadline = time.monotonic() + TOTAL_TIMEOUT_SECONDS
    received = b""
    try:
        async with client.stream("POST", url + request.route, content=request.body, headers=request.headers) as answer:
            async for part in answer.aiter_bytes():
                received += part
                if len(received) > ANSWER_MAX_BYTES or time.monotonic() > deadline:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise WebhookNotTaken(
            f"There was no answer from {url}.",
            why=f"{type(error).__name__}: {printable(str(error)).rstrip('.')}. The event may be stored all the same.",
            next_step="plant status",
        ) from error
    received = received[:ANSWER_MAX_BYTES]
    try:
        document = msgspec.json.decode(received)
    except (msgspec.DecodeError, RecursionError):
        document = received.decode("utf-8", "replace")
    if isinstance(document, str):
        document = printable(document)
    ahead = _clock_ahead(answer.headers.get("date"), now)
    return IngressAnswer(answer.status_code, document, printable(answer.headers.get("retry-after", "")), ahead)


def _clock_ahead(date: str | None, now: datetime) -> float | None:
    try:
        time_there = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (time_there.replace(tzinfo=time_there.tzinfo or UTC) - now).total_seconds()


def printable(text: str) -> str:
    """Return what a stranger wrote in a form that changes no terminal, and is not long."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:SHOWN_MAX]
    )


def check_answer(answer: IngressAnswer, request: SignedRequest) -> None:
    """Raise WebhookRefused or WebhookNotTaken, with what to do, unless the event was taken."""
    document = answer.document if isinstance(answer.document, dict) else {}
    if answer.status == 200 and isinstance(document.get("event_id"), str):
        return
    kind = str(document.get("type", ""))
    advice = ADVICE.get(kind.removeprefix(URN)) if kind.startswith(URN) else None
    if advice is None:
        raise WebhookRefused(
            f"The answer {answer.status} is not one of Plant's.",
            why="Another server listens at this address, or a proxy is in between.",
            next_step="plant status",
        )
    told = [str(document.get("title", "")), str(document.get("detail", "")), *_faults(document.get("errors"))]
    if kind == URN + "signature" and abs(answer.clock_ahead_seconds or 0) > TOLERANCE_SECONDS / 2:
        told.append(
            f"The clocks differ by {abs(answer.clock_ahead_seconds or 0):.0f} s; {TOLERANCE_SECONDS} are allowed."
        )
    if answer.retry_after:
        told.append(f"Wait {answer.retry_after} s.")
    what = f"Ingress has answered {answer.status} to {request.message_id}."
    why = printable(" ".join(f"{each.rstrip('.')}." for each in told if each)) + f" {advice[0]}"
    refused = WebhookNotTaken if answer.status >= 500 or answer.status in AGAIN else WebhookRefused
    raise refused(what, why=why, next_step=advice[1])


def _faults(errors: object) -> list[str]:
    """Return the fields that do not fit, and why."""
    if not isinstance(errors, list):
        return []
    return [f"{each.get('pointer', '')}: {each.get('detail', '')}" for each in errors[:3] if isinstance(each, dict)]
