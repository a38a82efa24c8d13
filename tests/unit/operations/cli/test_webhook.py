"""`plant webhook send` and `verify`, run in this process against an ingress that a test plays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from operations.cli.main import run
from operations.signing_keys import read_signing_key, verifying
from server.problems import Problem
from signing.hmac_secrets import encode_secret, new_secret
from signing.signatures import Verified, verify_signature

SECRET = encode_secret(new_secret())
Play = Callable[[httpx.Response | Exception], list[httpx.Request]]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANT_WEBHOOK_SECRET", SECRET)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Answers every request alike, and returns those that came."""
    make = httpx.AsyncClient

    def play(answer: httpx.Response | Exception) -> list[httpx.Request]:
        came: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            came.append(request)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def client(**options: Any) -> httpx.AsyncClient:
            assert options["follow_redirects"] is False
            return make(transport=httpx.MockTransport(handle), **options)

        monkeypatch.setattr(httpx, "AsyncClient", client)
        return came

    return play


def test_a_webhook_is_sent_and_its_answer_printed(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    """It verifies under the key of the environment, and stdout holds status, id and answer as data."""
    came = play(httpx.Response(200, json={"event_id": "e", "topic": "t", "partition": 1, "offset": 2}))
    assert run(["webhook", "send", "--url", "http://ingress:1/", "--output", "jsonl", "--producer", "genesis"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["status"], row["answer"]["offset"]) == (200, 2)
    (request,) = came
    assert str(request.url) == "http://ingress:1/webhook/genesis/agent-onboarded"
    assert request.headers["plant-producer"] == "genesis"
    message_id, timestamp, signature = (
        request.headers[name].encode() for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    )
    assert message_id.decode() == row["message_id"]
    keys = [verifying(read_signing_key(SECRET))]
    assert isinstance(
        verify_signature(keys, message_id, timestamp, signature, request.content, int(timestamp)), Verified
    )


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Problem("signature"), 3),
        (Problem("event"), 3),
        (Problem("rate-limited"), 4),
        (Problem("kafka-unavailable"), 4),
        (httpx.ConnectError("no"), 4),
        (httpx.Response(502, text="bad gateway"), 3),
    ],
)
def test_a_refusal_is_an_exit_code(
    answer: Problem | httpx.Response | Exception, code: int, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three lines of an error go to stderr, and the secret to neither stream."""
    play(httpx.Response(answer.status, content=answer.body()) if isinstance(answer, Problem) else answer)
    assert run(["webhook", "send"]) == code
    shown = capsys.readouterr()
    assert [word in shown.err for word in ("error:", "why:", "next:")] == [True] * 3
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "--url", f"http://u:{SECRET}@x"],
        ["send", "--secret-file", SECRET],
        ["send", SECRET],
        ["send", "--secret-file", "/nowhere"],
        ["send", "/nowhere"],
        ["send", "--producer", "no such\n"],
        ["send", "--id", "a b"],
        ["send", "--secret", SECRET],
        ["verify"],
        ["verify", SECRET],
        ["verify", "/nowhere"],
    ],
)
def test_what_can_not_be_used_is_a_usage_error(
    arguments: list[str], play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent, and a secret that was put on the command line is not repeated."""
    came = play(httpx.Response(200))
    assert run(["webhook", *arguments]) == 2
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert came == []


def test_a_proxy_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The environment's proxies are used, so a wrong one is a usage error."""
    monkeypatch.setenv("ALL_PROXY", "nothing://x")
    assert run(["webhook", "send"]) == 2
    assert "ALL_PROXY" in capsys.readouterr().err


def test_a_request_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good request is exit code 0, an old one 3 unless its age is ignored, a changed one 3 with its part named."""
    key, body, old = read_signing_key(SECRET), b'{"a": 1}', b"1795680000"
    head = b"webhook-id: m\nwebhook-timestamp: %b\nwebhook-signature: %b\n\n" % (old, key.sign(b"m", old, body))
    file, body_file = tmp_path / "request.http", tmp_path / "body"
    file.write_bytes(head + body)
    body_file.write_bytes(body + b"\n")
    assert run(["webhook", "verify", str(file), "--ignore-age"]) == 0
    assert run(["webhook", "verify", str(file)]) == 3
    assert "webhook-timestamp" in capsys.readouterr().err
    file.write_bytes(head)
    assert run(["webhook", "verify", str(file), "--body", str(body_file), "--ignore-age", "--output", "jsonl"]) == 3
    shown = capsys.readouterr()
    rows = {row["part"]: row for row in map(json.loads, shown.out.splitlines())}
    assert [part for part, row in rows.items() if row["result"] != "good"] == ["match"]
    assert "a line end was added" in shown.err
    assert SECRET not in shown.out + shown.err
