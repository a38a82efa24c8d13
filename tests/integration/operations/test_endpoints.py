"""`plant endpoints`: recorded first, then done; secrets shown once; what can't be is refused before."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import msgspec
import pytest_asyncio
from standardwebhooks import Webhook

from database.connector import connect
from deliveries.endpoint_store import EndpointStore
from devstack import sql
from runtime.settings import Settings
from schemas.examples import examples
from signing.ed25519 import decode_public_key
from signing.hmac_secrets import decode_secret
from signing.master_key import MasterKeys
from streams.producer import EventProducer
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.raw_answers import head, sends, serving
from tests.support.receivers import receiver

URL = "http://127.0.0.1:9/hooks?token=in-the-path"
ALL = ("--event-type", "*")


@pytest_asyncio.fixture
async def local(settings: Settings) -> Settings:
    """Settings of a deployment whose endpoints may be on 127.0.0.1, with its topics."""
    await apply(settings)
    return msgspec.structs.replace(
        settings, deliveries_schemes="http,https", deliveries_ports="1-65535", deliveries_allowed_networks="127.0.0.1"
    )


def added(settings: Settings, *arguments: str, url: str = URL) -> dict[str, Any]:
    made = plant(settings, "endpoints", "add", url, *(arguments or ALL), "--output", "json")
    assert made.returncode == 0, made.stderr
    document: dict[str, Any] = json.loads(made.stdout)
    return document


def shown(settings: Settings, endpoint_id: str) -> dict[str, Any]:
    made = plant(settings, "endpoints", "show", endpoint_id, "--output", "json")
    assert made.returncode == 0, made.stderr
    (document,) = json.loads(made.stdout)
    return dict(document)


async def sent_by(settings: Settings, endpoint_id: str, *options: str) -> CompletedProcess[str]:
    """What `plant endpoints test` says; in a thread, since the receiver is in this loop."""
    return await asyncio.to_thread(plant, settings, "endpoints", "test", endpoint_id, *options)


async def test_an_endpoint_is_recorded_then_added_and_its_secret_shown_once(local: Settings) -> None:
    """stdout is the secret alone; what is recorded for ever has the host, and no path that may hold a token."""
    made = plant(
        local, "endpoints", "add", URL, "--event-type", "genesis.agent.*", "--actor", "ops", "--reason", "asked"
    )
    assert made.returncode == 0, made.stderr
    assert len(decode_secret(made.stdout.strip())) >= 24
    (row,) = json.loads(plant(local, "endpoints", "list", "--output", "json").stdout)
    assert (row["url"], row["state"], row["event_types"], row["tenant"]) == (
        URL,
        "active",
        ["genesis.agent.*"],
        "genesis",
    )
    (action,) = await operations(local, row["id"])
    assert (action.actor, action.action) == ("ops", "endpoints.add")
    assert action.reason == "asked [host 127.0.0.1; types genesis.agent.*]"
    for command in (("list",), ("show", row["id"])):
        for output in ("table", "json", "jsonl"):
            assert made.stdout.strip() not in plant(local, "endpoints", *command, "--output", output).stdout


async def test_every_choice_is_stored(local: Settings, tmp_path: Path) -> None:
    """As it was given; values of headers are stored encrypted and shown nowhere."""
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer abc\n\nX-Team: hooks\n")
    made = added(
        local, "--event-type", "genesis.agent.rated", "--event-type", "genesis.skill.*",
        "--filter", '{"rating": [4, 5]}', "--description", "for tests", "--headers", str(file),
        "--payload", "cloud_event", "--ordering", "per_entity", "--after-dead-letter", "block", "--retries", "long",
        "--rate", "10", "--timeout", "5", "--scheme", "both",
    )  # fmt: skip
    row = shown(local, made["id"])
    assert {name: row[name] for name in ("filter", "description", "payload_form", "ordering", "after_dead_letter",
                                         "retry_schedule", "rate_per_second", "timeout_seconds")} == {
        "filter": {"rating": [4, 5]}, "description": "for tests", "payload_form": "cloud_event",
        "ordering": "per_entity", "after_dead_letter": "block", "retry_schedule": "long", "rate_per_second": 10,
        "timeout_seconds": 5,
    }  # fmt: skip
    assert row["custom_header_names"] == ["authorization", "x-team"]
    assert "Bearer" not in json.dumps(row)
    assert len(decode_public_key(made["public_key"])) == 32
    assert {key["scheme"] for key in row["keys"]} == {"v1", "v1a"}


async def test_an_endpoint_begins_where_the_topic_ends(local: Settings) -> None:
    """Or at the first record of a time; what is published after the answer is never before its start."""
    async with EventProducer(local) as producer:
        before = await producer.publish(examples()["genesis.agent.onboarded"], source="test")
    made_at = datetime.now(UTC)
    now, earlier = added(local), added(local, *ALL, "--from", "1h")
    async with EventProducer(local) as producer:
        after = await producer.publish(examples()["genesis.agent.available"], source="test")
    starts = shown(local, now["id"])["start_offsets"]
    assert before.offset < starts[before.partition] <= after.offset
    row = shown(local, earlier["id"])
    assert row["start_offsets"][before.partition] <= before.offset
    assert abs(datetime.fromisoformat(row["starts_at"]) - (made_at - timedelta(hours=1))) < timedelta(minutes=5)


REFUSED = [
    ((URL, *ALL, "--tenant", "acme"), "'acme'"),
    (("http://10.0.0.1/", *ALL), "not public (private)"),
    (("http://0x7f.1/", *ALL), "four decimal numbers"),
    (("http://does-not-resolve.invalid/", *ALL), "not allowed"),
    (("ftp://example.com/", *ALL), "https"),
    ((URL, "--event-type", "genesis.nothing"), "genesis.nothing"),
    ((URL, "--event-type", "plant.operation.recorded"), "plant.operation.recorded"),
    ((URL, *ALL, "--filter", "["), "filter"),
    ((URL, *ALL, "--filter", "[4]"), "filter"),
    ((URL, *ALL, "--filter", '{"rating": 4.5}'), "rating"),
    ((URL, *ALL, "--after-dead-letter", "block"), "per-entity"),
    ((URL, *ALL, "--description", "a\nb"), "one line"),
    ((URL, *ALL, "--from", "12"), "--from"),
    ((URL, *ALL, "--from", "2999-01-01T00:00Z"), "in the past"),
    ((URL, *ALL, "--timeout", "16"), "--timeout"),
    ((URL, *ALL, "--rate", "100001"), "100000 deliveries"),
    ((URL,), "--event-type"),
]  # fmt: skip
REFUSED_HEADERS = (
    "webhook-id: a", "Host: elsewhere", "X-A: a\x00b", "no colon", "X-Long: " + "a" * 9000, "X-A: a\nX-A: b"
)  # fmt: skip


async def test_what_can_not_be_is_refused(local: Settings, database: Database, tmp_path: Path) -> None:
    """With the reason, before anything is recorded or stored; no value of a header is in the error."""
    file = tmp_path / "headers"
    for arguments, why in REFUSED:
        refused = plant(local, "endpoints", "add", *arguments)
        assert (refused.returncode, refused.stdout) == (2, ""), arguments
        assert why in refused.stderr
        assert "Traceback" not in refused.stderr
    for line in REFUSED_HEADERS:
        file.write_text(f"Authorization: Bearer abc\n{line}\n")
        refused = plant(local, "endpoints", "add", URL, *ALL, "--headers", str(file))
        assert (refused.returncode, refused.stdout) == (2, ""), line
        assert "Bearer abc" not in refused.stderr
    assert sql.value(database.owner_url, "SELECT count(*) FROM endpoints") == 0


async def test_without_kafka_or_the_master_key_nothing_is_done(local: Settings, database: Database) -> None:
    """An action that can't be recorded is not done; one whose secret could not be opened is not recorded."""
    no_kafka = msgspec.structs.replace(local, kafka_bootstrap_servers="127.0.0.1:1")
    away = plant(no_kafka, "endpoints", "add", URL, *ALL)
    added(local)
    other_key = msgspec.structs.replace(local, master_key="MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=")
    reason = f"asked {uuid4()}"
    other = plant(other_key, "endpoints", "add", URL, *ALL, "--reason", reason)
    assert (away.returncode, other.returncode) == (4, 3)
    assert away.stdout + other.stdout == ""
    assert sql.value(database.owner_url, "SELECT count(*) FROM endpoints") == 1
    assert [act for act in await operations(local, "") if act.reason.startswith(reason)] == []


async def test_states_are_changed_and_recorded(local: Settings) -> None:
    """Each with its reason; one that the state does not allow says so, and is not recorded."""
    made = added(local)["id"]
    for action, state in (("pause", "paused"), ("resume", "active"), ("disable", "disabled"), ("enable", "active")):
        done = plant(local, "endpoints", action, made, "--reason", f"to {action}")
        assert done.returncode == 0, done.stderr
        row = shown(local, made)
        assert (row["state"], row["state_reason"]) == (state, f"to {action}")
    refused = plant(local, "endpoints", "resume", made)
    assert refused.returncode == 3
    assert "is active" in refused.stderr
    assert "would remove" in plant(local, "endpoints", "remove", made).stderr
    assert shown(local, made)["state"] == "active"
    assert "removed endpoint" in plant(local, "endpoints", "remove", made, "--execute").stderr
    assert json.loads(plant(local, "endpoints", "list", "--output", "json").stdout) == []
    assert [
        row["state"] for row in json.loads(plant(local, "endpoints", "list", "--all", "--output", "json").stdout)
    ] == ["removed"]
    actions = [act.action for act in await operations(local, made)]
    assert actions == [f"endpoints.{verb}" for verb in ("add", "pause", "resume", "disable", "enable", "remove")]
    assert plant(local, "endpoints", "show", str(uuid4())).returncode == 3


async def test_a_key_is_rotated_with_both_signing_meanwhile(local: Settings) -> None:
    """The plan first; then the new secret, once. A second rotation waits until the old key has ended."""
    async with receiver() as there:
        made = added(local, url=f"http://127.0.0.1:{there.port}/")
        planned = plant(local, "endpoints", "rotate-key", made["id"])
        assert "would give" in planned.stderr
        assert planned.stdout == ""
        rotated = plant(local, "endpoints", "rotate-key", made["id"], "--overlap", "2h", "--execute")
        assert (await sent_by(local, made["id"])).returncode == 0
        again = plant(local, "endpoints", "rotate-key", made["id"], "--execute")
    assert (again.returncode, again.stdout) == (3, "")
    ((_, _, headers, body),) = there.requests
    for secret in (made["secret"], rotated.stdout.strip()):
        assert Webhook(secret).verify(body, headers)["type"].startswith("genesis.")
    assert made["secret"] != rotated.stdout.strip()
    assert [act.action for act in await operations(local, made["id"])] == ["endpoints.add", "endpoints.rotate_key"]


async def test_a_test_sends_one_signed_example(local: Settings, tmp_path: Path) -> None:
    """With the subscriber's headers, of a type that the endpoint gets; exit 0 where it is accepted."""
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer abc\n")
    async with receiver() as there:
        made = added(
            local, "--event-type", "genesis.skill.*", "--headers", str(file), url=f"http://127.0.0.1:{there.port}/"
        )
        sent = await sent_by(local, made["id"], "--output", "json")
        assert sent.returncode == 0, sent.stderr
        rated = await sent_by(local, made["id"], "--event-type", "genesis.agent.rated")
    (row,) = json.loads(sent.stdout)
    assert (row["status"], row["outcome"], row["error"]) == (200, "delivered", None)
    (_, _, headers, body), (_, _, _, second) = there.requests
    assert headers["webhook-id"].startswith("test_")
    assert headers["authorization"] == "Bearer abc"
    assert Webhook(made["secret"]).verify(body, headers)["type"].startswith("genesis.skill.")
    assert json.loads(second)["type"] == "genesis.agent.rated"
    assert rated.returncode == 0
    assert "Bearer" not in sent.stdout + sent.stderr + rated.stdout


async def test_a_test_that_is_not_accepted_shows_what_came_back(local: Settings, database: Database) -> None:
    """Status and answer, made harmless for a terminal; exit 3. An endpoint that is gone is not disabled by a test."""
    for answer, status, outcome in (
        (head(410, length=9) + b"\x1b[2Jgone!", 410, "gone"),
        (head(302, "Location: http://127.0.0.1:1/"), 302, "failed"),
        (b"220 no HTTP\r\n", None, "failed"),
    ):
        async with serving(sends(answer)) as port:
            made = added(local, url=f"http://127.0.0.1:{port}/")
            sent = await sent_by(local, made["id"], "--output", "json")
            table = await sent_by(local, made["id"])
        (row,) = json.loads(sent.stdout)
        assert (sent.returncode, table.returncode) == (3, 3)
        assert (row["status"], row["outcome"]) == (status, outcome)
        assert "\x1b" not in sent.stdout + table.stdout
        assert shown(local, made["id"])["state"] == "active"


async def test_a_removed_endpoint_is_not_sent_to(local: Settings) -> None:
    """It has no keys any more."""
    async with receiver() as there:
        made = added(local, url=f"http://127.0.0.1:{there.port}/")
        plant(local, "endpoints", "remove", made["id"], "--execute")
        assert (await sent_by(local, made["id"])).returncode == 3
    assert there.requests == []


async def test_the_test_is_guarded_when_it_is_sent(local: Settings, settings: Settings) -> None:
    """An address that is no longer allowed is not connected to, whatever was allowed at registration."""
    async with receiver() as there:
        made = added(local, url=f"http://127.0.0.1:{there.port}/")
        strict = msgspec.structs.replace(local, deliveries_allowed_networks="")
        refused = await sent_by(strict, made["id"])
    assert refused.returncode == 3
    assert there.requests == []


async def test_secrets_of_the_store_are_those_that_were_shown(local: Settings) -> None:
    """What the command printed is what requests are signed with."""
    made = added(local, *ALL, "--scheme", "both")
    database = connect(local, "operator")
    try:
        secrets = await EndpointStore(database, MasterKeys(local)).secrets(made["id"])
    finally:
        await database.close()
    assert secrets.keys.secrets == (decode_secret(made["secret"]),)
    assert secrets.keys.private_keys[0].public_key == decode_public_key(made["public_key"])
