"""Server addresses in settings, `host:port,host:port`: read once, with an error that says which part can't be used."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

PORT_MAX: Final = 65535
_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@,\[\]'\"]+")


class ServerAddress(NamedTuple):
    """A host, and a port on it. An IPv6 address has no brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_servers(text: str, default_port: int) -> list[ServerAddress]:
    """Return the servers of a list. Raises ValueError with one sentence on the first that can't be used.

    >>> parse_servers("a:9092, [::1]", 9092)
    [ServerAddress(host='a', port=9092), ServerAddress(host='::1', port=9092)]
    """
    servers = [_parse_server(part.strip(), default_port) for part in text.split(",") if part.strip()]
    if not servers:
        raise ValueError("It names no server.")
    return servers


def parse_listener(text: str) -> ServerAddress:
    """Return an address to listen on; port 0 is any free one. Raises ValueError with one sentence.

    >>> parse_listener("[::1]:0")
    ServerAddress(host='::1', port=0)
    """
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        raise ValueError(f"{text[:100]} has no port.")
    if port == "0":
        return _parse_server(f"{host}:1", 1)._replace(port=0)
    return _parse_server(text, 1)


def parse_port(text: str) -> int:
    """Return the port. Raises ValueError with one sentence.

    >>> parse_port("5432")
    5432
    """
    if not text:
        raise ValueError("A port is missing behind a colon.")
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text[:6]) <= PORT_MAX:
        raise ValueError(f"{text[:20]} is no port: ports are numbers from 1 to {PORT_MAX}.")
    return int(text)


def _parse_server(text: str, default_port: int) -> ServerAddress:
    if text[0] in "'\"" or text[-1] in "'\"":
        raise ValueError("It holds quotation marks; leave them out.")
    if "://" in text:
        raise ValueError(f"It begins with {text.partition('://')[0]}://; leave that out.")
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(default_port)
    if not _HOST.fullmatch(host):
        why = "an IPv6 address stands in brackets, [::1]:9092" if ":" in host else "that is no host's name"
        raise ValueError(
            f"{text[:100]} is no host:port: {why}." if host else f"The host before :{port[:10]} is missing."
        )
    return ServerAddress(host.strip("[]"), parse_port(port))
