"""The one HTTP client of deliveries: it connects to checked addresses alone.

A name's addresses are all checked when it is resolved, and the connection is made to these, so a second answer of its
DNS server can't lead elsewhere. Host, SNI and the certificate's check stay those of the name. As a connection is
opened, its address is checked once more, whatever way it came: aiohttp asks no resolver for an address in a URL.
A connection that is kept open goes on to the address that was checked when it was opened.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final

import aiodns
import aiohttp
import pycares
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from deliveries.errors import DeliveriesMisconfigured
from deliveries.guard.addresses import Address
from deliveries.guard.answer_heads import bound_heads
from deliveries.guard.endpoint_policy import EndpointPolicy, make_endpoint_policy
from deliveries.guard.endpoint_urls import EndpointUrl, check_address, parse_endpoint_url
from runtime.servers import parse_servers
from runtime.settings import Settings

IDLE_CONNECTION_TIMEOUT_SECONDS: Final = 15.0
DNS_TRY_TIMEOUT_SECONDS: Final = 2.0
DNS_TRIES: Final = 2
DNS_PORT: Final = 53
USER_AGENT: Final = "Plant-Webhooks"
ANSWER_HEAD_MAX_BYTES: Final = 16 * 1024
URLS_MAX: Final = 16_384
"""URLs that are kept in parts: some 1 KB each."""

AddrInfo = tuple[Any, ...]


class GuardedResolver(AbstractResolver):
    """Resolves names to checked addresses; the name of the proxy, where there is one, to all of its own."""

    def __init__(self, policy: EndpointPolicy, dns_servers: str = "", proxy_host: str | None = None) -> None:
        """Ask these DNS servers, `host:port` with commas between, or the system's. Needs a running loop."""
        servers = [str(server) for server in parse_servers(dns_servers, DNS_PORT)] if dns_servers else None
        self._policy = policy
        self._proxy_host = proxy_host
        # No search domains: a name is resolved as it stands. The system's getaddrinfo would do otherwise, and would
        # keep a thread of a small pool for as long as a subscriber's DNS server does not answer.
        self._dns = aiodns.DNSResolver(
            servers, timeout=DNS_TRY_TIMEOUT_SECONDS, tries=DNS_TRIES, flags=pycares.ARES_FLAG_NOSEARCH
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises EndpointRefused where any of them may not be connected to."""
        addresses = await self.addresses(host, family)
        if self._proxy_host is None or host.lower() != self._proxy_host:
            for address in addresses:
                check_address(address, self._policy)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=_family(address),
                proto=socket.IPPROTO_TCP,
                flags=flags,
            )
            for address in addresses
        ]

    async def addresses(self, host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Address]:
        """Return all addresses of a name, unchecked. Raises OSError where there is none, or no answer in time."""
        try:
            answer = await self._dns.getaddrinfo(host, family=family, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            raise OSError(None, f"The name can't be resolved: {error.args[-1]}.") from error
        texts = dict.fromkeys(node.addr[0].decode("ascii") for node in answer.nodes)
        if not texts:
            raise OSError(None, "The name has no address.")
        return [ip_address(text) for text in texts]

    async def close(self) -> None:
        """Give up what is being resolved."""
        await self._dns.close()


class DeliveryClient:
    """Sends requests to endpoints, over pooled connections. No redirects, no cookies, no proxies of the environment."""

    def __init__(self, settings: Settings) -> None:
        """Make the client in a running loop. Raises ConfigurationError where a setting can't be used."""
        self._policy = make_endpoint_policy(settings)
        self._parse = lru_cache(URLS_MAX)(self._parse_url)  # what is allowed is a setting: a URL's parts do not change
        self._proxy = _parse_proxy(settings.deliveries_proxy_url)
        proxy_host = None if self._proxy is None else (self._proxy.raw_host or "").lower()
        try:
            self._resolver = GuardedResolver(self._policy, settings.deliveries_dns_servers, proxy_host)
        except ValueError as error:
            raise DeliveriesMisconfigured(
                "The setting PLANT_DELIVERIES_DNS_SERVERS can't be used.", why=str(error)
            ) from error
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=_plain_socket if self._proxy else self._checked_socket,
            use_dns_cache=False,
            ssl=_tls_context(settings.deliveries_ca_file),
            limit=settings.deliveries_connections_max,
            limit_per_host=settings.deliveries_connections_per_host,
            keepalive_timeout=IDLE_CONNECTION_TIMEOUT_SECONDS,
        )
        bound_heads(connector)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `send` bounds the whole
            auto_decompress=False,  # whoever reads an answer bounds what it becomes
            max_line_size=ANSWER_HEAD_MAX_BYTES,
            max_field_size=ANSWER_HEAD_MAX_BYTES,
        )

    @asynccontextmanager
    async def send(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_seconds: float, method: str = "POST"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and yield the answer once its head is there; the body is the caller's to read, and to bound.

        The time covers resolving, connecting, sending, and the block. Raises EndpointRefused where the URL or an
        address of its name may not be connected to, TimeoutError, and what aiohttp raises.
        """
        endpoint, target = self._parse(url)
        async with asyncio.timeout(timeout_seconds):
            if self._proxy is not None:  # which resolves the name by itself
                await self._check_target(endpoint)
            async with self._session.request(
                method, target, headers=headers, data=body or None, proxy=self._proxy, allow_redirects=False
            ) as response:
                yield response

    async def check(self, url: str) -> EndpointUrl:
        """Return an endpoint's URL as it is stored, its addresses checked: for registration.

        Raises EndpointRefused, and OSError where its name can't be resolved.
        """
        endpoint, _ = self._parse(url)
        async with asyncio.timeout(DNS_TRIES * DNS_TRY_TIMEOUT_SECONDS):
            await self._check_target(endpoint)
        return endpoint

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._resolver.close()

    def _parse_url(self, url: str) -> tuple[EndpointUrl, URL]:
        endpoint = parse_endpoint_url(url, self._policy)
        return endpoint, URL(str(endpoint), encoded=True)

    async def _check_target(self, endpoint: EndpointUrl) -> None:
        if endpoint.address is None:
            for address in await self._resolver.addresses(endpoint.host):
                check_address(address, self._policy)

    def _checked_socket(self, addr_info: AddrInfo) -> socket.socket:
        """Return a socket for a connection. Raises EndpointRefused unless its address may be connected to."""
        check_address(ip_address(addr_info[4][0]), self._policy)
        return _plain_socket(addr_info)


def _plain_socket(addr_info: AddrInfo) -> socket.socket:
    family, kind, protocol = addr_info[:3]
    return socket.socket(family, kind, protocol)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _parse_proxy(text: str) -> URL | None:
    """Return the proxy's URL. Raises DeliveriesMisconfigured, which does not repeat it: it may hold a password."""
    if not text:
        return None
    try:
        proxy = URL(text)
        if proxy.scheme == "http" and proxy.host and proxy.path in ("", "/"):
            return proxy
    except ValueError:
        pass
    raise DeliveriesMisconfigured(
        "The setting PLANT_DELIVERIES_PROXY_URL can't be used.",
        why="It is no URL of the form http://host:port.",
        next_step="plant settings    # shows where it comes from",
    )


@lru_cache(1)
def _system_context() -> ssl.SSLContext:
    """Return what the system's authorities are checked with. Reading all of them takes some 20 ms."""
    return ssl.create_default_context()


def _tls_context(ca_file: str) -> ssl.SSLContext:
    """Return what certificates are checked with: name and chain, always."""
    if not ca_file:
        return _system_context()
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise DeliveriesMisconfigured("The setting PLANT_DELIVERIES_CA_FILE can't be used.", why=f"{error}.") from error
    return context
