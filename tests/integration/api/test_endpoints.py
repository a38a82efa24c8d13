"""Endpoints over HTTP: added once, changed, rotated, tested; secrets shown once; what can't be is told by its field."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from aiohttp import web
from standardwebhooks import Webhook

from database.connector import connect
from deliveries.endpoint_store import EndpointStore
from devstack import sql
from runtime.settings import Settings
from signing.ed25519 import decode_public_key
from signing.hmac_secrets import encode_secret
from signing.master_key import MasterKeys
from tests.conftest import Database
from tests.support.command_line import operations
from tests.support.dns_server import dns_server
from tests.support.endpoint_api import ORIGIN, URL, EndpointApi, errors
from tests.support.reading import problem, reading_of
from tests.support.receivers import receiver


async def test_an_endpoint_is_recorded_then_added_and_its_secret_shown_once(endpoint_api: EndpointApi) -> None:
    """The answer that added it has the secret; no later one has. What is recorded names the host alone."""
    body = {"url": URL, "event_types": ["genesis.agent.*"], "headers": {"X-Key": "hush-hush"}, "scheme": "both"}
    answer = await endpoint_api.send("POST", "/endpoints", {**body, "reason": "asked"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/endpoints/{made['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert (made["url"], made["state"], made["tenant"], made["header_names"]) == (URL, "active", "genesis", ["x-key"])
    assert len(decode_public_key(made["public_key"])) == 32
    store_of = connect(endpoint_api.settings, "operator")
    try:
        stored = await EndpointStore(store_of, MasterKeys(endpoint_api.settings)).secrets(made["id"])
    finally:
        await store_of.close()
    assert made["secret"] == encode_secret(stored.keys.secrets[0])
    (action,) = await operations(endpoint_api.settings, made["id"])
    assert action.action == "endpoints.add"
    assert action.actor.startswith("token tests/")
    assert action.reason.startswith("asked [host 127.0.0.1; types genesis.agent.*; public key ")
    later = [
        await endpoint_api.send("GET", f"/endpoints/{made['id']}"),
        await endpoint_api.send("GET", "/endpoints"),
        await endpoint_api.send("PATCH", f"/endpoints/{made['id']}", {"description": "x"}),
        await endpoint_api.send("POST", f"/endpoints/{made['id']}/pause"),
    ]
    for each in later:
        assert each.status_code == 200, each.text
        assert made["secret"] not in each.text
        assert "hush-hush" not in each.text


async def test_a_request_that_comes_again_adds_no_second_endpoint(
    endpoint_api: EndpointApi, database: Database
) -> None:
    """One Idempotency-Key, one endpoint, however often and however many at once; its secret is in one answer alone."""
    body = {"url": URL, "event_types": ["*"]}
    answers = await asyncio.gather(
        *(endpoint_api.send("POST", "/endpoints", body, idempotency_key="order-7") for _ in range(4))
    )
    answers.append(await endpoint_api.send("POST", "/endpoints", body, idempotency_key="order-7"))
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 200, 201]
    assert len({each.json()["id"] for each in answers}) == 1
    assert [bool(each.json().get("secret")) for each in answers].count(True) == 1
    assert sql.value(database.operator_url, "SELECT count(*) FROM endpoints") == 1
    other = await endpoint_api.send(
        "POST", "/endpoints", {**body, "event_types": ["genesis.team.*"]}, idempotency_key="order-7"
    )
    assert problem(other) == (409, "id-reused")
    without = await endpoint_api.send("POST", "/endpoints", body)
    assert without.status_code == 201


FAULTS: list[tuple[dict[str, object], str]] = [
    ({"url": "http://10.0.0.1/"}, "#/url"),
    ({"url": "http://127.1/"}, "#/url"),
    ({"url": "http://0x7f000001/"}, "#/url"),
    ({"url": "http://user@127.0.0.1/"}, "#/url"),
    ({"url": "http://127.0.0.1\r\nx: y/"}, "#/url"),
    ({"url": "http://nothing.invalid/"}, "#/url"),
    ({"url": "ftp://127.0.0.1/"}, "#/url"),
    ({"url": ""}, "#/url"),
    ({"url": 7}, "#/url"),
    ({"url": "https://" + "a" * 3000}, "#/url"),
    ({"event_types": []}, "#/event_types"),
    ({"event_types": "*"}, "#/event_types"),
    ({"event_types": ["genesis.nothing.*"]}, "#/event_types"),
    ({"event_types": [None]}, "#/event_types"),
    ({"filter": {"rating": 4.5}}, "#/filter"),
    ({"filter": []}, "#/filter"),
    ({"filter": {"a": "\x00"}}, "#/filter"),
    ({"description": "two\nlines"}, "#/description"),
    ({"description": "a" * 501}, "#/description"),
    ({"payload_form": "xml"}, "#/payload_form"),
    ({"ordering": ["none"]}, "#/ordering"),
    ({"after_dead_letter": "block"}, "#/after_dead_letter"),
    ({"retry_schedule": None}, "#/retry_schedule"),
    ({"rate_per_second": 0}, "#/rate_per_second"),
    ({"rate_per_second": True}, "#/rate_per_second"),
    ({"timeout_seconds": 16}, "#/timeout_seconds"),
    ({"timeout_seconds": 1.5}, "#/timeout_seconds"),
    ({"handshake": 1}, "#/handshake"),
    ({"headers": {"Host": "x"}}, "#/headers"),
    ({"headers": {"webhook-signature": "v1,x"}}, "#/headers"),
    ({"headers": {"x": "a\r\nhost: b"}}, "#/headers"),
    ({"headers": {"x\r\ny": "a"}}, "#/headers"),
    ({"headers": {"Transfer_Encoding": "chunked"}}, "#/headers"),
    ({"headers": {"x": 1}}, "#/headers"),
    ({"headers": [["x", "y"]]}, "#/headers"),
    ({"scheme": "v2"}, "#/scheme"),
    ({"from": "2999-01-01T00:00:00Z"}, "#/from"),
    ({"from": "yesterday"}, "#/from"),
    ({"tenant": "acme"}, "#/tenant"),
    ({"reason": ""}, "#/reason"),
    ({"id": "0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77"}, "#/id"),
    ({"state": "paused"}, "#/state"),
    ({"a/b~\u2028": 1}, "#/a~1b~0%E2%80%A8"),
]


async def test_what_can_not_be_is_told_by_its_field(endpoint_api: EndpointApi, database: Database) -> None:
    """422 with a pointer, for another tenant by its name, and nothing is stored."""
    for changes, pointer in FAULTS:
        answer = await endpoint_api.send("POST", "/endpoints", {"url": URL, "event_types": ["*"], **changes})
        assert problem(answer) == (422, "endpoint"), changes
        assert list(errors(answer)) == [pointer], changes
        if pointer == "#/tenant":
            assert "all of them belong to 'genesis'" in errors(answer)["#/tenant"]
    assert sql.value(database.operator_url, "SELECT count(*) FROM endpoints") == 0


async def test_all_faults_are_told_at_once(endpoint_api: EndpointApi) -> None:
    """Each field's, and those that are missing."""
    answer = await endpoint_api.send("POST", "/endpoints", {"event_types": 1, "scheme": "x", "filter": 2, "?": 3})
    assert problem(answer) == (422, "endpoint")
    assert set(errors(answer)) == {"#/url", "#/event_types", "#/scheme", "#/filter", "#/%3F"}


async def test_how_events_are_sent_can_be_changed(endpoint_api: EndpointApi, database: Database) -> None:
    """Headers too, and back to no rate; which events there are, and in which order, stays."""
    made = await endpoint_api.add(headers={"x-a": "1"}, rate_per_second=5)
    path = f"/endpoints/{made['id']}"
    change = {"url": "http://127.0.0.1:8/", "rate_per_second": None, "timeout_seconds": 3, "headers": {"x-b": "2"}}
    answer = await endpoint_api.send("PATCH", path, change)
    assert answer.status_code == 200, answer.text
    assert {name: answer.json()[name] for name in ("url", "rate_per_second", "timeout_seconds", "header_names")} == {
        "url": "http://127.0.0.1:8/", "rate_per_second": None, "timeout_seconds": 3, "header_names": ["x-b"],
    }  # fmt: skip
    assert sql.value(database.operator_url, "SELECT count(*) FROM endpoint_secrets WHERE kind = 'headers'") == 1
    assert answer.json()["configured_at"] > made["configured_at"]
    for fixed in ({"event_types": ["*"]}, {"filter": {}}, {"ordering": "none"}, {"tenant": "genesis"}):
        refused = await endpoint_api.send("PATCH", path, fixed)
        assert problem(refused) == (422, "endpoint")
        assert "can't be changed" in next(iter(errors(refused).values()))
    internal = await endpoint_api.send("PATCH", path, {"url": "http://169.254.169.254/"})
    assert problem(internal) == (422, "endpoint")
    none = await endpoint_api.send("PATCH", path, {"headers": {}})
    assert none.json()["header_names"] == []
    actions = [each.action for each in await operations(endpoint_api.settings, made["id"])]
    assert actions == ["endpoints.add", "endpoints.change", "endpoints.change"]


REFUSED_URLS = (
    "http://hooks.example.com/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/",
    "https://inside.example.com/", "https://both.example.com/", "https://missing.example.com/",
    "https://2130706433/", "https://0x7f.1/", "https://127.1/",
)  # fmt: skip


async def test_a_changed_url_is_checked_as_a_new_one_is(local: Settings) -> None:
    """By scheme, spelling, and every address of its name: the problem is that of adding it, and nothing changes."""
    names = {
        "hooks.example.com": [["8.8.8.8"]],
        "inside.example.com": [["10.0.0.1"]],
        "both.example.com": [["8.8.8.8", "127.0.0.1"]],
    }
    async with dns_server(names) as dns:
        strict = msgspec.structs.replace(
            local, deliveries_schemes="https", deliveries_ports="443", deliveries_allowed_networks="",
            deliveries_dns_servers=dns.address,
        )  # fmt: skip
        async with reading_of(strict) as reading:
            endpoint_api = EndpointApi(reading, strict, (await reading.add_token("endpoints")).text)
            made = await endpoint_api.add("https://hooks.example.com/a")
            path = f"/endpoints/{made['id']}"
            before = (await endpoint_api.send("GET", path)).json()
            for url in REFUSED_URLS:
                added = await endpoint_api.send("POST", "/endpoints", {"url": url, "event_types": ["*"]})
                changed = await endpoint_api.send("PATCH", path, {"url": url, "timeout_seconds": 3})
                assert problem(changed) == (422, "endpoint"), url
                assert list(errors(changed)) == ["#/url"], url
                assert changed.json() == added.json(), url
                assert (await endpoint_api.send("GET", path)).json() == before, url
            moved = await endpoint_api.send("PATCH", path, {"url": "HTTPS://Hooks.Example.com:443/b"})
            assert moved.json()["url"] == "https://hooks.example.com/b"
    actions = [each.action for each in await operations(strict, made["id"])]
    assert actions == ["endpoints.add", "endpoints.change"]


async def test_headers_are_sent_to_no_other_host_than_they_are_for(
    endpoint_api: EndpointApi, database: Database
) -> None:
    """A URL of another scheme, host or port takes headers of its own, or none; another path keeps them."""
    made = await endpoint_api.add("http://127.0.0.1:9/hooks", headers={"authorization": "Bearer of-the-host"})
    path = f"/endpoints/{made['id']}"
    elsewhere = {"url": "http://127.0.0.1:8/hooks"}
    refused = await endpoint_api.send("PATCH", path, elsewhere)
    assert problem(refused) == (422, "endpoint")
    assert set(errors(refused)) == {"#/headers"}
    assert (await endpoint_api.send("GET", path)).json()["url"] == made["url"]
    moved = await endpoint_api.send("PATCH", path, {"url": "http://127.0.0.1:9/other"})
    assert (moved.status_code, moved.json()["header_names"]) == (200, ["authorization"])
    assert (await endpoint_api.send("PATCH", path, {**elsewhere, "headers": {}})).status_code == 200
    assert (await endpoint_api.send("PATCH", path, {"url": "http://127.0.0.1:7/hooks"})).status_code == 200


async def test_states_follow_what_is_asked_and_again_changes_nothing(endpoint_api: EndpointApi) -> None:
    """An action that comes twice is recorded once; one that the state does not allow is 409; removed is for good."""
    made = await endpoint_api.add()
    path = f"/endpoints/{made['id']}"
    for action, state in (("pause", "paused"), ("resume", "active"), ("disable", "disabled"), ("enable", "active")):
        for _ in range(2):
            answer = await endpoint_api.send("POST", f"{path}/{action}", {"reason": "why not"})
            assert answer.status_code == 200, answer.text
            assert (answer.json()["state"], answer.json()["state_reason"]) == (state, "why not")
    await endpoint_api.send("POST", f"{path}/disable")
    assert problem(await endpoint_api.send("POST", f"{path}/resume")) == (409, "endpoint-state")
    for _ in range(2):
        gone = await endpoint_api.send("DELETE", path)
        assert (gone.status_code, gone.content) == (204, b"")
    assert (await endpoint_api.send("GET", path)).json()["state"] == "removed"
    assert (await endpoint_api.send("GET", "/endpoints")).json()["items"] == []
    for method, under, body in (("POST", "/enable", None), ("POST", "/rotate-key", None), ("POST", "/test", None),
                                ("PATCH", "", {"description": "x"}), ("POST", "/handshake", None)):  # fmt: skip
        assert problem(await endpoint_api.send(method, path + under, body)) == (409, "endpoint-state")
    actions = [each.action for each in await operations(endpoint_api.settings, made["id"])]
    assert actions == [
        f"endpoints.{each}" for each in ("add", "pause", "resume", "disable", "enable", "disable", "remove")
    ]


async def test_a_key_is_rotated_and_shown_once(endpoint_api: EndpointApi) -> None:
    """Both sign meanwhile; a third is refused; the answer alone has the secret."""
    made = await endpoint_api.add()
    path = f"/endpoints/{made['id']}"
    rotated = await endpoint_api.send("POST", f"{path}/rotate-key", {"overlap_seconds": 60})
    assert rotated.status_code == 200, rotated.text
    assert rotated.json()["secret"] not in (made["secret"], None)
    assert problem(await endpoint_api.send("POST", f"{path}/rotate-key")) == (409, "endpoint-keys")
    pair = await endpoint_api.send("POST", f"{path}/rotate-key", {"scheme": "v1a"})
    assert (pair.json()["secret"], len(decode_public_key(pair.json()["public_key"]))) == (None, 32)
    shown = await endpoint_api.send("GET", path)
    assert sorted(key["scheme"] for key in shown.json()["keys"]) == ["v1", "v1", "v1a"]
    assert rotated.json()["secret"] not in shown.text


async def test_a_rotation_whose_answer_was_lost_is_repeated(endpoint_api: EndpointApi, database: Database) -> None:
    """With its Idempotency-Key: another key takes the place of the lost one; the older one ends when it was to."""
    made = await endpoint_api.add()
    path = f"/endpoints/{made['id']}/rotate-key"
    body = {"overlap_seconds": 60}
    ends = "SELECT max(expires_at)::text FROM endpoint_secrets"
    lost = await endpoint_api.send("POST", path, body, idempotency_key="r")
    until = sql.value(database.operator_url, ends)
    again = await endpoint_api.send("POST", path, body, idempotency_key="r")
    assert (lost.status_code, again.status_code) == (200, 200)
    assert len({made["secret"], lost.json()["secret"], again.json()["secret"]}) == 3
    assert sql.value(database.operator_url, ends) == until
    operator = connect(endpoint_api.settings, "operator")
    try:
        store = EndpointStore(operator, MasterKeys(endpoint_api.settings))
        secrets = [encode_secret(each) for each in (await store.secrets(UUID(made["id"]))).keys.secrets]
    finally:
        await operator.close()
    assert secrets == [again.json()["secret"], made["secret"]]
    for other in ({"idempotency_key": "s"}, {}):
        assert problem(await endpoint_api.send("POST", path, body, **other)) == (409, "endpoint-keys")
    changed = await endpoint_api.send("POST", path, {"overlap_seconds": 61}, idempotency_key="r")
    assert problem(changed) == (409, "endpoint-keys")
    pair = [await endpoint_api.send("POST", path, {"scheme": "v1a"}, idempotency_key="r") for _ in range(2)]
    assert len({each.json()["public_key"] for each in pair}) == 2
    sql.execute(database.owner_url, ["UPDATE endpoint_secrets SET expires_at = now() + interval '1 hour'"
                                     " WHERE expires_at IS NULL"])  # fmt: skip
    assert problem(await endpoint_api.send("POST", path, body, idempotency_key="r")) == (409, "endpoint-keys")
    assert problem(await endpoint_api.send("POST", path, body, idempotency_key=" ")) == (400, "parameter")


async def test_a_test_sends_one_signed_example(endpoint_api: EndpointApi) -> None:
    """The subscriber's library verifies it; what came back is shown within bounds."""
    async with receiver() as served:
        served.answer = lambda: web.Response(text="thanks" * 1000)
        made = await endpoint_api.add(f"http://127.0.0.1:{served.port}/", headers={"authorization": "Bearer x"})
        answer = await endpoint_api.send("POST", f"/endpoints/{made['id']}/test", {"event_type": "genesis.agent.rated"})
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["status"], shown["outcome"], shown["truncated"], len(shown["answer"])) == (
        200,
        "delivered",
        True,
        4096,
    )
    ((method, _, headers, body),) = served.requests
    Webhook(made["secret"]).verify(body, headers)
    assert (method, json.loads(body)["type"]) == ("POST", "genesis.agent.rated")
    assert headers["webhook-id"].startswith("test_")
    wrong = await endpoint_api.send("POST", f"/endpoints/{made['id']}/test", {"event_type": "genesis.none"})
    assert list(errors(wrong)) == ["#/event_type"]


async def test_a_receiver_that_has_to_agree_is_asked_first(endpoint_api: EndpointApi, database: Database) -> None:
    """Without its yes nothing is stored; another URL is asked anew; its rate bounds the endpoint's."""
    async with receiver() as served, receiver() as elsewhere:
        url = f"http://127.0.0.1:{served.port}/"
        body = {"url": url, "event_types": ["*"], "handshake": True, "rate_per_second": 2}
        refused = await endpoint_api.send("POST", "/endpoints", body)
        assert problem(refused) == (422, "handshake")
        assert sql.value(database.operator_url, "SELECT count(*) FROM endpoints") == 0
        served.answer = lambda: web.Response(headers={"WebHook-Allowed-Origin": ORIGIN, "WebHook-Allowed-Rate": "60"})
        made = (await endpoint_api.send("POST", "/endpoints", body)).json()
        assert (made["handshake"], made["agreed_rate_per_minute"]) == (True, 60)
        path = f"/endpoints/{made['id']}"
        moved = await endpoint_api.send("PATCH", path, {"url": f"http://127.0.0.1:{elsewhere.port}/"})
        assert problem(moved) == (422, "handshake")
        assert (await endpoint_api.send("GET", path)).json()["url"] == url
        served.answer = lambda: web.Response(headers={"WebHook-Allowed-Origin": "*"})
        again = await endpoint_api.send("POST", f"{path}/handshake")
        assert (again.status_code, again.json()["agreed_rate_per_minute"]) == (200, None)
        without = await endpoint_api.send("PATCH", path, {"handshake": False})
        assert (without.json()["handshake"], without.json()["agreed_at"]) == (False, None)
        assert problem(await endpoint_api.send("POST", f"{path}/handshake")) == (409, "endpoint-state")
    assert {method for method, *_ in served.requests} == {"OPTIONS"}


async def test_endpoints_are_listed_in_pages(endpoint_api: EndpointApi) -> None:
    """Oldest first, each once, by state; a cursor of another listing or of another making is refused."""
    made = [(await endpoint_api.add(description=str(number)))["id"] for number in range(5)]
    await endpoint_api.send("POST", f"/endpoints/{made[2]}/pause")
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await endpoint_api.send("GET", f"/endpoints?limit=2{cursor}")).json()
        seen += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == made
    paused = (await endpoint_api.send("GET", "/endpoints?state=paused")).json()["items"]
    assert [each["id"] for each in paused] == [made[2]]
    for query in (f"state=active{cursor}", f"{cursor[1:]}x", "cursor=AAAA"):
        assert problem(await endpoint_api.send("GET", f"/endpoints?{query}")) == (400, "cursor")
    assert problem(await endpoint_api.send("GET", f"/deliveries?{cursor[1:]}")) == (400, "cursor")
    for query in ("limit=0", "limit=501", "state=gone", "x=1", "state=paused&state=active"):
        assert problem(await endpoint_api.send("GET", f"/endpoints?{query}")) == (400, "parameter")


async def test_an_endpoint_may_begin_in_the_past(endpoint_api: EndpointApi) -> None:
    """At a time; its start is shown."""
    at = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    made = await endpoint_api.add(**{"from": at})
    assert datetime.fromisoformat(made["starts_at"]) == datetime.fromisoformat(at)
    assert made["start_offsets"] == [0] * len(made["start_offsets"])
