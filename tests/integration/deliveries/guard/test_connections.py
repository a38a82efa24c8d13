"""Connections to endpoints, with real sockets, a real DNS server, and a proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from deliveries.errors import DeliveriesMisconfigured, EndpointRefused
from deliveries.guard.connections import DeliveryClient, GuardedResolver
from deliveries.guard.endpoint_policy import EndpointPolicy
from deliveries.signed_request import EndpointKeys, OutgoingEvent, sign_attempt
from runtime.settings import Settings
from signing.hmac_secrets import encode_secret
from tests.support.certificates import Authority
from tests.support.connect_proxy import connect_proxy
from tests.support.dns_server import Answers, DnsServer, dns_server
from tests.support.receivers import receiver
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

NAME = "receiver.test"
UNWANTED_TIMEOUT_SECONDS = 0.5
"""How long a test looks for what must not come."""


@asynccontextmanager
async def client(dns: DnsServer | None = None, **settings: Any) -> AsyncIterator[DeliveryClient]:
    """A client that may connect to 127.0.0.1 by http, and to nothing else on the loopback interface."""
    allowed = {
        "deliveries_schemes": "http,https",
        "deliveries_ports": "1-65535",
        "deliveries_allowed_names": NAME,
        "deliveries_allowed_networks": "127.0.0.1",
        "deliveries_dns_servers": dns.address if dns else "",
    }
    made = DeliveryClient(Settings(**{**allowed, **settings}))
    try:
        yield made
    finally:
        await made.close()


async def post(sender: DeliveryClient, url: str, **options: Any) -> int:
    options = {"headers": {}, "body": b"{}", "timeout_seconds": DEADLINE_SECONDS, **options}
    async with sender.send(url, **options) as response:
        await response.read()
        return response.status


def closing() -> web.Response:
    return web.Response(headers={"Connection": "close"})


async def test_a_signed_request_arrives() -> None:
    """The receiver verifies what it got with the public library; the Host is the name, and no address."""
    event = OutgoingEvent(id="e", type="a.b", source="plant", occurred_at=datetime.now(UTC), data=b"{}")
    signed = sign_attempt(
        event, "standard", EndpointKeys(secrets=(bytes(24),)), delivery_id="d1", now=datetime.now(UTC)
    )
    async with dns_server({NAME: [["127.0.0.1"]]}) as dns, receiver() as there, client(dns) as sender:
        url = f"http://{NAME}:{there.port}/hooks/%C3%A4?a=%2F"
        assert await post(sender, url, headers=signed.headers, body=signed.body) == 200
    ((method, path, headers, body),) = there.requests
    assert (method, path, headers["host"]) == ("POST", "/hooks/%C3%A4?a=%2F", f"{NAME}:{there.port}")
    assert headers["user-agent"] == "Plant-Webhooks"
    assert Webhook(encode_secret(bytes(24))).verify(body, headers)["type"] == "a.b"


async def test_a_rebound_name_is_refused_at_the_next_attempt() -> None:
    """The DNS server answers with another address the second time: nothing connects to it."""
    async with (
        dns_server({NAME: [["127.0.0.1"], ["127.0.0.2"]]}) as dns,
        receiver() as there,
        receiver("127.0.0.2", there.port) as inside,
        client(dns) as sender,
    ):
        there.answer = closing
        url = f"http://{NAME}:{there.port}/"
        assert await post(sender, url) == 200
        with pytest.raises(EndpointRefused) as refused:
            await post(sender, url)
    assert refused.value.reason == "address"
    assert "127.0.0.2" not in str(refused.value)
    assert (len(there.requests), inside.requests) == (1, [])


async def test_an_open_connection_stays_at_the_checked_address() -> None:
    """A request over a kept connection goes where the first one went, whatever the DNS server would say by now."""
    async with (
        dns_server({NAME: [["127.0.0.1"], ["127.0.0.2"]]}) as dns,
        receiver() as there,
        receiver("127.0.0.2", there.port) as inside,
        client(dns) as sender,
    ):
        for _ in range(2):
            assert await post(sender, f"http://{NAME}:{there.port}/") == 200
        asked = len(dns.questions)
    assert (len(there.requests), inside.requests, asked) == (2, [], 2)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["127.0.0.1", "::ffff:169.254.169.254"],
        ["127.0.0.1", "64:ff9b::7f00:1"],
        ["127.0.0.1", "fe80::1"],
        ["0.0.0.0"],
    ],
)
async def test_one_refused_address_refuses_the_name(addresses: list[str]) -> None:
    """Every address of a name is checked, of both versions: the connection might else fall back to the worse one."""
    async with dns_server({NAME: [addresses]}) as dns, receiver() as there, client(dns) as sender:
        with pytest.raises(EndpointRefused):
            await post(sender, f"http://{NAME}:{there.port}/")
        with pytest.raises(EndpointRefused):
            await sender.check(f"http://{NAME}:{there.port}/")
    assert there.requests == []


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1"])
async def test_a_literal_address_is_refused(host: str) -> None:
    """An address in the URL, which no resolver sees, is checked like those of a name."""
    async with receiver() as there, client() as sender:
        with pytest.raises(EndpointRefused):
            await post(sender, f"http://{host}:{there.port}/")
    assert there.requests == []


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
async def test_no_socket_opens_to_a_refused_address(host: str) -> None:
    """Even where a URL was not parsed by us, the client makes no socket for an address that is refused."""
    async with receiver("127.0.0.2") as inside, client() as sender:
        with pytest.raises(EndpointRefused):
            await sender._session.get(f"http://{host}:{inside.port}/")
    assert inside.requests == []


async def test_a_redirect_is_not_followed() -> None:
    """A redirect is an answer like others: what it points to, allowed or not, gets no request."""
    async with receiver() as there, client() as sender:
        there.answer = lambda: web.Response(status=307, headers={"Location": "/elsewhere"})
        assert await post(sender, f"http://127.0.0.1:{there.port}/") == 307
    assert [path for _, path, _, _ in there.requests] == ["/"]


async def test_no_cookie_is_sent_back() -> None:
    """The client is shared by all endpoints, so that what one of them sets must reach no other."""
    async with receiver() as there, client() as sender:
        there.answer = lambda: web.Response(headers={"Set-Cookie": "a=b"})
        for _ in range(2):
            await post(sender, f"http://127.0.0.1:{there.port}/")
    assert [headers.get("cookie") for _, _, headers, _ in there.requests] == [None, None]


async def test_tls_checks_the_name_of_a_pinned_connection(tmp_path: Path) -> None:
    """SNI and certificate are those of the name, although the connection is made to an address."""
    authority = Authority(tmp_path)
    certificate = authority.certificate("receiver", host=NAME)
    answers = {NAME: [["127.0.0.1"]], f"other.{NAME}": [["127.0.0.1"]]}
    ours = {"deliveries_ca_file": str(authority.file), "deliveries_schemes": "https"}
    async with (
        dns_server(answers) as dns,
        receiver(certificate=certificate) as there,
        client(dns, **ours) as sender,
        client(dns, deliveries_schemes="https") as stranger,
    ):
        assert await post(sender, f"https://{NAME}:{there.port}/") == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(sender, f"https://other.{NAME}:{there.port}/")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(stranger, f"https://{NAME}:{there.port}/")
    assert there.server_names == [NAME, f"other.{NAME}", NAME]
    assert len(there.requests) == 1


@pytest.mark.parametrize("answers", [{}, {NAME: [[]]}])
async def test_a_name_without_an_address_is_an_os_error(answers: Answers) -> None:
    """A name that does not exist, and one that has no address, can't be connected to, now."""
    async with dns_server(answers) as dns, client(dns) as sender:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await post(sender, f"http://{NAME}:8080/")
        with pytest.raises(OSError, match=r"resolved|no address"):
            await sender.check(f"http://{NAME}:8080/")


async def test_a_dns_server_that_does_not_answer_ends_with_the_deadline() -> None:
    """Resolving counts against the attempt's time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        async with client(deliveries_dns_servers=f"127.0.0.1:{mute.getsockname()[1]}") as sender:
            with pytest.raises(TimeoutError):
                await post(sender, f"http://{NAME}:8080/", timeout_seconds=0.1)


async def test_names_are_resolved_as_they_stand() -> None:
    """No search domain is tried, and both versions are asked for."""
    async with dns_server({}) as dns:
        resolver = GuardedResolver(EndpointPolicy(), dns.address)
        with pytest.raises(OSError, match="resolved"):
            await resolver.resolve("missing.example.com", 443)
        await resolver.close()
        assert sorted(set(dns.questions)) == [("missing.example.com", 1), ("missing.example.com", 28)]


async def test_public_addresses_are_resolved() -> None:
    """A name whose addresses are all public resolves to all of them, in both versions."""
    public = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"]
    async with dns_server({"example.com": [public]}) as dns:
        resolver = GuardedResolver(EndpointPolicy(), dns.address)
        found = await resolver.resolve("example.com", 443)
        await resolver.close()
    assert {each["host"] for each in found} == set(public)
    assert all((each["family"] == socket.AF_INET6) == (ip_address(each["host"]).version == 6) for each in found)


async def test_a_request_goes_through_the_proxy() -> None:
    """The proxy may have a refused address; it gets the whole URL, and the endpoint no connection from us."""
    async with (
        dns_server({NAME: [["127.0.0.1"]]}) as dns,
        receiver() as there,
        receiver("127.0.0.3") as proxy,
        client(dns, deliveries_proxy_url=f"http://127.0.0.3:{proxy.port}") as sender,
    ):
        assert await post(sender, f"http://{NAME}:{there.port}/a") == 200
    assert [path for _, path, _, _ in proxy.requests] == [f"http://{NAME}:{there.port}/a"]
    assert there.requests == []


async def test_tls_goes_through_a_tunnel_of_the_proxy(tmp_path: Path) -> None:
    """The proxy learns name and port alone; SNI, Host and the certificate's check are those of the name, as without."""
    authority = Authority(tmp_path)
    async with (
        dns_server({NAME: [["127.0.0.1"]]}) as dns,
        receiver(certificate=authority.certificate("receiver", host=NAME)) as there,
        connect_proxy("127.0.0.3") as proxy,
        client(
            dns, deliveries_proxy_url=f"http://127.0.0.3:{proxy.port}", deliveries_ca_file=str(authority.file)
        ) as sender,
        client(dns, deliveries_proxy_url=f"http://127.0.0.3:{proxy.port}") as stranger,
    ):
        target = f"{NAME}:{there.port}"
        assert await post(sender, f"https://{target}/a", headers={"x-secret": "abc"}) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(stranger, f"https://{target}/")
    ((_, path, headers, _),) = there.requests
    assert (path, headers["host"], headers["x-secret"]) == ("/a", target, "abc")
    assert there.server_names == [NAME] * 2
    assert [head.partition("\r\n")[0] for head in proxy.heads] == [f"CONNECT {target} HTTP/1.1"] * 2
    assert "x-secret" not in "".join(proxy.heads).lower()


async def test_no_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request goes straight to the receiver: the one proxy that counts is that of the settings."""
    authority = Authority(tmp_path)
    certificate = authority.certificate("receiver", host=NAME)
    async with (
        dns_server({NAME: [["127.0.0.1"]]}) as dns,
        receiver() as plain,
        receiver(certificate=certificate) as secure,
        receiver() as proxy,
    ):
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with client(dns, deliveries_ca_file=str(authority.file)) as sender:
            assert await post(sender, f"http://{NAME}:{plain.port}/") == 200
            assert await post(sender, f"https://{NAME}:{secure.port}/") == 200
    assert (len(plain.requests), len(secure.requests), proxy.requests) == (1, 1, [])


async def test_no_password_of_the_environment_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~/.netrc is of whoever runs Plant, and no receiver gets what it holds for its name."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine {NAME} login operator password s3cret\n", "utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    async with dns_server({NAME: [["127.0.0.1"]]}) as dns, receiver() as there, client(dns) as sender:
        assert await post(sender, f"http://{NAME}:{there.port}/") == 200
    assert ["authorization" in headers for _, _, headers, _ in there.requests] == [False]


@pytest.mark.parametrize("host", [NAME, "10.0.0.1", "127.0.0.3"])
async def test_the_target_is_checked_before_the_proxy_is_asked(host: str) -> None:
    """A proxy does not open the private network, nor itself, to endpoints."""
    async with (
        dns_server({NAME: [["127.0.0.1", "10.0.0.1"]]}) as dns,
        receiver("127.0.0.3") as proxy,
        client(dns, deliveries_proxy_url=f"http://127.0.0.3:{proxy.port}") as sender,
    ):
        with pytest.raises(EndpointRefused):
            await post(sender, f"http://{host}:{proxy.port}/")
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proxy_url", "proxy:3128"),
        ("proxy_url", "socks5://user:s3cret@proxy:1080"),
        ("proxy_url", "http://user:s3cret@proxy:99999"),
        ("dns_servers", "a:b:c"),
        ("ca_file", "/no/such/file"),
    ],
)
async def test_a_setting_of_the_client_is_named(name: str, value: str) -> None:
    """A client whose settings can't be used is not made, and a password in them is not repeated."""
    with pytest.raises(DeliveriesMisconfigured, match=f"PLANT_DELIVERIES_{name.upper()}") as refused:
        DeliveryClient(Settings(**{f"deliveries_{name}": value}))
    assert "s3cret" not in str(refused.value)


async def test_an_endpoint_takes_no_more_than_its_connections() -> None:
    """Requests to one host and port wait for one another beyond the setting, so that others find connections free."""
    release, too_many = asyncio.Event(), asyncio.Event()
    under_way = 0

    async def hold(_request: web.BaseRequest) -> web.Response:
        nonlocal under_way
        under_way += 1
        if under_way > 2:
            too_many.set()
        await release.wait()
        under_way -= 1
        return web.Response()

    runner = web.ServerRunner(web.Server(hold))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with client(deliveries_connections_per_host=2) as sender:
        sent = asyncio.gather(*(post(sender, url) for _ in range(6)))
        await wait_until_async(lambda: under_way == 2, "two requests")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(too_many.wait(), UNWANTED_TIMEOUT_SECONDS)
        release.set()
        assert await sent == [200] * 6
    await runner.cleanup()


async def test_endpoints_at_one_host_do_not_wait_for_one_another() -> None:
    """Of a service that serves many subscribers: requests that hang leave the others theirs."""
    release = asyncio.Event()
    hanging = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal hanging
        if request.path == "/hangs":
            hanging += 1
            await release.wait()
        return web.Response()

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with client() as sender:
        held = asyncio.gather(*(post(sender, f"{url}hangs") for _ in range(40)))
        await wait_until_async(lambda: hanging == 40, "forty requests")
        assert await post(sender, url) == 200
        release.set()
        assert await held == [200] * 40
    await runner.cleanup()
