"""One signed webhook: its request, the answers that can come, and what is advised for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest

from operations.signed_request import (
    ADVICE,
    ANSWER_MAX_BYTES,
    IngressAnswer,
    MessageUnusable,
    SignedRequest,
    WebhookNotTaken,
    WebhookRefused,
    check_answer,
    example_body,
    ingress_address,
    send_request,
    sign_request,
)
from operations.signing_keys import SharedSecret, verifying
from runtime.errors import PlantError
from server import problems
from server.problems import FieldError, Problem
from signing.signatures import Verified, verify_signature

NOW = datetime(2026, 11, 27, 9, tzinfo=UTC)
KEY = SharedSecret(bytes(range(32)))
TEMPORARY = {"slow-request", "rate-limited", "unexpected", "kafka-unavailable", "overloaded", "starting"}


def signed(body: bytes | None = None, **changes: Any) -> SignedRequest:
    return sign_request(
        KEY,
        example_body(NOW) if body is None else body,
        **{"message_id": None, "producer": None, "now": NOW, **changes},
    )


async def answered(answer: httpx.Response | Exception, now: datetime = NOW) -> IngressAnswer:
    """What is made of an answer."""

    def answer_it(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer_it)) as client:
        return await send_request(client, "http://ingress", signed(), now)


def refusal(answer: IngressAnswer) -> PlantError:
    with pytest.raises(PlantError) as refused:
        check_answer(answer, signed())
    return refused.value


def test_a_request_is_signed_as_producers_sign() -> None:
    """Its headers verify against the same key; an id and a producer are sent as they were given."""
    request = signed(message_id="msg_7", producer="genesis")
    headers = {name: value.encode() for name, value in request.headers.items()}
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    verdict = verify_signature([verifying(KEY)], *(headers[name] for name in names), request.body, NOW.timestamp())
    assert isinstance(verdict, Verified)
    assert (headers["webhook-id"], headers["plant-producer"]) == (b"msg_7", b"genesis")
    assert signed().message_id != signed().message_id


@pytest.mark.parametrize(
    ("body", "route", "kind"),
    [
        (b'{"type": "genesis.agent.rated"}', "/webhook/genesis/agent-rated", "application/json"),
        (b'{"specversion": "1.0"}', "/webhook/genesis/events", "application/cloudevents+json"),
    ],
)
def test_the_body_decides_the_route(body: bytes, route: str, kind: str) -> None:
    """A payload goes to the route of its type, a CloudEvent to that of all types."""
    request = signed(body)
    assert (request.route, request.headers["content-type"]) == (route, kind)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\xff", b"{", b"{}", b'{"type": 1}', b'{"type": "no.such"}', b"[" * 10_000]
)
def test_a_body_without_a_route_is_not_sent(body: bytes) -> None:
    """It is exit code 2, with the types that there are."""
    with pytest.raises(MessageUnusable) as refused:
        signed(body)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("message_id", ["a b", "{", "é", "x" * 257, "a\nb", "\udcff"])
def test_an_id_that_no_header_may_hold_is_not_sent(message_id: str) -> None:
    """The id is checked as ingress checks it."""
    with pytest.raises(MessageUnusable):
        signed(message_id=message_id)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ingress:80",
        "ftp://x",
        "http://",
        "http://u:pw@x",
        "http://x:99999",
        "http://xn--/",
        "http://a b",
        "http://[",
        "whsec_A",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """It is never repeated: it may hold a password."""
    with pytest.raises(MessageUnusable) as refused:
        ingress_address(url)
    assert not url or url not in str(refused.value)
    assert ingress_address("https://plant.example/") == "https://plant.example"


async def test_an_event_that_was_taken_is_good() -> None:
    """Its answer is returned as data, and nothing is raised."""
    answer = await answered(httpx.Response(200, json={"event_id": "x", "topic": "t", "partition": 0, "offset": 1}))
    check_answer(answer, signed())
    assert answer.document["offset"] == 1


@pytest.mark.parametrize("kind", sorted(problems._TITLES))
async def test_every_problem_has_advice(kind: str) -> None:
    """Each refusal has its reason, what to do, and an exit code: 4 where the same webhook may be taken later."""
    problem = Problem(kind, "The detail.", errors=(FieldError("wrong", "#/data/rating"),))
    answer = await answered(httpx.Response(problem.status, content=problem.body()))
    refused = refusal(answer)
    assert refused.exit_code == (4 if kind in TEMPORARY else 3)
    assert "The detail. #/data/rating: wrong." in refused.why
    assert refused.why.endswith(ADVICE[kind][0])
    assert refused.next_step.startswith("plant ")


def test_there_is_no_advice_for_other_problems() -> None:
    """The table holds the problems that there are."""
    assert set(ADVICE) == set(problems._TITLES)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"ok": True}),
        httpx.Response(200, json=[]),
        httpx.Response(301, headers={"location": "http://elsewhere"}),
        httpx.Response(404, text="not here"),
        httpx.Response(401, json={"type": "about:blank"}),
        httpx.Response(401, json={"type": 7}),
        httpx.Response(422, json={"type": problems.URN + "no-such"}),
        httpx.Response(204),
    ],
)
async def test_another_servers_answer_is_no_success(answer: httpx.Response) -> None:
    """Only the answer that ingress gives says that the event is stored; no redirection is followed."""
    refused = refusal(await answered(answer))
    assert isinstance(refused, WebhookRefused)
    assert "not one of Plant's" in refused.what


async def test_no_answer_is_unreachable() -> None:
    """Exit code 4, and a word that the event may be stored."""
    with pytest.raises(WebhookNotTaken, match="may be stored") as refused:
        await answered(httpx.ConnectError("refused \x1b[31m"))
    assert refused.value.exit_code == 4
    assert "\x1b" not in str(refused.value)


async def test_clocks_that_differ_are_named() -> None:
    """A 401 names the difference to the Date of the answer, where it is near to what is allowed."""
    body = Problem("signature").body()
    ahead = httpx.Response(401, content=body, headers={"date": "Fri, 27 Nov 2026 09:10:00 GMT"})
    assert "The clocks differ by 600 s; 300 are allowed." in refusal(await answered(ahead)).why
    equal = httpx.Response(401, content=body, headers={"date": "Fri, 27 Nov 2026 09:00:01 GMT"})
    assert "clocks" not in refusal(await answered(equal)).why
    odd = httpx.Response(401, content=body, headers={"date": "yesterday"})
    assert "clocks" not in refusal(await answered(odd)).why


async def test_a_strangers_answer_changes_no_terminal_and_ends() -> None:
    """Control characters are replaced, an answer without end is cut, and how long to wait is printed."""
    problem = msgspec.json.encode({"type": problems.URN + "rate-limited", "title": "\x1b]0;x\x07" + "y" * 5_000})
    refused = refusal(await answered(httpx.Response(429, content=problem, headers={"retry-after": "7"})))
    assert refused.why.isprintable()
    assert len(refused.why) < 1_000

    text = await answered(httpx.Response(200, content=msgspec.json.encode("\x1b]0;x\x07")))
    assert text.document.isprintable()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    answer = await answered(httpx.Response(200, content=endless()))
    assert len(answer.document) < ANSWER_MAX_BYTES
