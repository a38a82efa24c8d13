"""The URLs of endpoints: parsed in one way, at registration and at each attempt, into one normalised text.

Stricter than a browser: what two parsers could read in two ways is refused. A host whose last label is a number is an
IPv4 address (WHATWG URL, 4.4, "ends in a number"), and it is written as four decimal numbers or refused.

Sources: RFC 3986, RFC 5891 and UTS 46 (names of other scripts), RFC 1123 (host names), https://url.spec.whatwg.org
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

import idna
import msgspec

from deliveries.errors import EndpointRefused
from deliveries.guard.addresses import Address, refused_range
from deliveries.guard.endpoint_policy import NAME_LABEL, NUMBER_LABEL, EndpointPolicy

URL_MAX_CHARACTERS: Final = 2048
NAME_MAX_CHARACTERS: Final = 253
DEFAULT_PORTS: Final = {"https": 443, "http": 80}

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")


class EndpointUrl(msgspec.Struct, frozen=True):
    """A normalised URL. The host is a lower-case name without a dot at its end, or an address."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query."""
    address: Address | None = None
    """Where the host is an address."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path}"

    @property
    def host_header(self) -> str:
        """The host and, where it is not the scheme's own, the port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_endpoint_url(text: str, policy: EndpointPolicy) -> EndpointUrl:
    """Return the normalised URL of an endpoint. Raises EndpointRefused with the reason.

    An address is judged at once; a name is when it is resolved. A normalised URL normalises to itself.

    >>> str(parse_endpoint_url("HTTPS://Hooks.Bücher.de.:443?a=1", EndpointPolicy()))
    'https://hooks.xn--bcher-kva.de/?a=1'
    >>> parse_endpoint_url("https://0x7f.1/", EndpointPolicy())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    deliveries.errors.EndpointRefused: ... Its host is a number: an IPv4 address is written as four decimal numbers.
    """
    scheme, rest = _split_scheme(text, policy)
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    host, port = _split_authority(authority)
    address, name = _parse_host(host)
    port_number = _parse_port_of(port, scheme, policy)
    if address is not None:
        check_address(address, policy)
    if not (policy.allows_name(name) if address is None else policy.allows_literal(address)):
        raise EndpointRefused("refused_hostname", "Endpoints with this name are not allowed.")
    return EndpointUrl(scheme, name, port_number, _parse_path(path), address)


def check_address(address: Address, policy: EndpointPolicy) -> None:
    """Raise EndpointRefused where an address may not be connected to. The error does not name it.

    A subscriber who reads the error would else learn what names resolve to inside the operator's network.
    """
    refused = refused_range(address, policy.allowed_networks)
    if refused is not None:
        raise EndpointRefused("address", f"It leads to an address that is not public ({refused}).")


def _split_scheme(text: str, policy: EndpointPolicy) -> tuple[str, str]:
    if len(text) > URL_MAX_CHARACTERS:
        raise EndpointRefused("malformed", f"It has more than {URL_MAX_CHARACTERS} characters.")
    if "\\" in text or any(character.isspace() or not character.isprintable() for character in text):
        raise EndpointRefused("malformed", "It holds white space, a control character or a backslash.")
    found = _SCHEME.match(text)
    if found is None:
        raise EndpointRefused("malformed", "It does not begin with https://.")
    scheme = found[1].lower()
    if scheme != "https" and not (scheme == "http" and policy.plain_http):
        raise EndpointRefused("scheme", "Only https is allowed.")
    if "#" in text:
        raise EndpointRefused("fragment", "It holds a fragment (#), which is never sent.")
    return scheme, text[found.end() :]


def _split_authority(authority: str) -> tuple[str, str | None]:
    if "@" in authority:
        raise EndpointRefused("userinfo", "It holds a user or a password (@).")
    if "%" in authority:
        raise EndpointRefused("percent_encoding", "Its host holds a percent sign: an encoded character, or a zone.")
    found = _AUTHORITY.fullmatch(authority)
    if found is None or not found["host"]:
        raise EndpointRefused("malformed", "Its host can't be read; an IPv6 address stands in brackets.")
    return found["host"], found["port"]


def _parse_host(host: str) -> tuple[Address | None, str]:
    """Return the address that a host is, if it is one, and its normalised text."""
    if host.startswith("["):
        try:
            address: Address = IPv6Address(host[1:-1])
        except AddressValueError as error:
            raise EndpointRefused("odd_address", "There is no IPv6 address in the brackets.") from error
        return address, str(address)
    name = _to_a_labels(host).removesuffix(".")
    labels = name.split(".")
    if NUMBER_LABEL.fullmatch(labels[-1]):
        try:
            address = IPv4Address(name)  # four decimal numbers without leading zeros, nothing else
        except AddressValueError as error:
            why = "Its host is a number: an IPv4 address is written as four decimal numbers."
            raise EndpointRefused("odd_address", why) from error
        return address, str(address)
    if len(name) > NAME_MAX_CHARACTERS or not all(NAME_LABEL.fullmatch(label) for label in labels):
        raise EndpointRefused("hostname", "Its host is no name: labels of letters, digits and inner hyphens, and dots.")
    return None, name


def _to_a_labels(host: str) -> str:
    """Return a host in lower-case ASCII. Letters of other scripts become A-labels, their digits and dots plain ones."""
    try:
        if not host.isascii():
            return idna.encode(host, uts46=True, std3_rules=True).decode("ascii").lower()
        lowered = host.lower()
        for label in lowered.split("."):
            if label.startswith("xn--") and idna.encode(idna.decode(label)).decode("ascii") != label:
                raise idna.IDNAError("another label stands for the same name")
    except UnicodeError as error:
        raise EndpointRefused("hostname", "Its host is no valid internationalised name.") from error
    return lowered


def _parse_port_of(port: str | None, scheme: str, policy: EndpointPolicy) -> int:
    if port is None:
        number = DEFAULT_PORTS[scheme]
    elif re.fullmatch(r"[1-9][0-9]{0,4}", port):
        number = int(port)
    else:
        raise EndpointRefused("port", "Its port is no number from 1 to 65535, or is written with zeros in front.")
    if not policy.allows_port(number):
        raise EndpointRefused("port", "Endpoints at this port are not allowed.")
    return number


def _parse_path(path: str) -> str:
    absolute = path if path.startswith("/") else f"/{path}"
    if not _PATH.fullmatch(absolute):
        raise EndpointRefused("path", "Its path or query holds a character that has to be percent-encoded.")
    return absolute
