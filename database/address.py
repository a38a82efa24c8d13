"""Postgres addresses: `postgresql://…` with libpq's parameters, read here once for both drivers.

A setting's address is taken apart by :func:`parse_address`, and each driver gets the parts in its own form: asyncpg by
:func:`connect_arguments`, libpq (under ADBC) by :func:`libpq_address`. So an address that can be used means the same to
both, and one that can't is an error before anything connects. These stay by hand:

- `connect_timeout`, and the refusal of parameters that Plant does not know: asyncpg sends what it does not know to the
  server as a setting of the session, and knows no `connect_timeout`.
- `application_name`: with asyncpg, that of the code would win over that of the address.
- TLS (see tls.py).
- quoting: a password may hold characters that end a part of a URL, as libpq allows.
- what drivers would look for in the home folder: nothing there is asked for.
- libpq's variables: the driver that reads one would connect elsewhere or otherwise than the one that does not.
"""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from database.errors import BadDatabaseAddress
from database.tls import PARAMETERS, libpq_parameters, look_away_from_home, ssl_argument
from runtime import redaction
from runtime.servers import ServerAddress, parse_port

POSTGRES_PORT: Final = 5432
CONNECT_TIMEOUT_SECONDS: Final = 10
_SCHEMES: Final = ("postgresql", "postgres", "postgresql+asyncpg")
_PARTS: Final = re.compile(
    r"(?P<scheme>[\w+]+)://(?:(?P<user>[^:/@?]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<servers>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_PORT_AND_PATH: Final = re.compile(r"[0-9]*/")
_NO_HOST_CHARACTER: Final = re.compile(r"[\s\x00-\x1f\x7f]")
UNSHARED_VARIABLES: Final = frozenset(
    """
    PGHOSTADDR PGSERVICE PGSERVICEFILE PGSYSCONFDIR PGOPTIONS PGAPPNAME PGCONNECT_TIMEOUT PGLOADBALANCEHOSTS
    PGREQUIREAUTH PGREQUIREPEER PGCHANNELBINDING PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION
    PGSSLMODE PGREQUIRESSL PGSSLCOMPRESSION PGSSLNEGOTIATION PGSSLCERT PGSSLKEY PGSSLCERTMODE PGSSLROOTCERT
    PGSSLCRL PGSSLCRLDIR PGSSLSNI PGSSLMINPROTOCOLVERSION PGSSLMAXPROTOCOLVERSION
    PGGSSENCMODE PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION PGCLIENTENCODING PGDATESTYLE PGTZ PGGEQO
    """.split()  # noqa: SIM905  # a literal of 35 lines says no more
)
"""Variables of libpq that asyncpg does not read, or reads otherwise; PGHOST, PGPORT, PGUSER, PGPASSWORD, PGPASSFILE,
PGDATABASE and PGTARGETSESSIONATTRS mean the same to both."""


class DatabaseAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an address, decoded. Its `repr` shows no password."""

    user: str
    password: str | None
    database: str
    hosts: tuple[tuple[str, int | None], ...]
    """Servers in the order in which they are tried; a host may be the folder of a Unix socket. None: the driver's."""
    tls: dict[str, str]
    connect_timeout_seconds: int
    application_name: str
    options: str
    """Of a libpq session, as `-c name=value`; Plant's own sessions, not settings, have them."""

    def __repr__(self) -> str:
        return f"DatabaseAddress({self})"

    def __str__(self) -> str:
        servers = [f"{_bracketed(host)}:{port or POSTGRES_PORT}" for host, port in self.hosts if host]
        return f"{','.join(servers) or 'local socket'}/{self.database} as {self.user or 'the system user'}"


def parse_address(address: str) -> DatabaseAddress:
    """Return an address's parts.

    Raises BadDatabaseAddress, also for a parameter that Plant does not know. The address itself is never shown: it may
    hold a password.
    """
    parts = _PARTS.fullmatch(address.strip())
    if parts is None:
        raise _unusable("It can't be parsed as a URL.")
    if parts["scheme"] not in _SCHEMES:
        raise _unusable(f"Its scheme is {parts['scheme']}, not postgresql.")
    password = None if parts["password"] is None else _unquoted(parts["password"])
    if password:
        redaction.KNOWN.remember([password])
    if _PORT_AND_PATH.match(parts["password"] or ""):
        # `h:5432/d?application_name=a@b`: libpq looks for no user behind a slash.
        raise _unusable("It can be read in two ways: %2F stands for / in a password, %40 for @ in a parameter.")
    if "@" in parts["servers"] or "@" in (parts["database"] or ""):
        raise _unusable("There is more than one @ in it; in a user's name or password it is written %40.")
    if "\0" in _unquoted(address):
        raise _unusable("It holds a NUL character.")
    query = parse_qsl(parts["query"] or "")
    parameters = {name: value for name, value in query if name not in ("host", "port")}
    tls = {name: parameters.pop(name) for name in PARAMETERS if name in parameters}
    timeout = parameters.pop("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
    name, options = parameters.pop("application_name", ""), parameters.pop("options", "")
    if parameters:
        raise _unusable(f"Its parameter {min(parameters)[:40]} is not known.")
    if not (timeout.isascii() and timeout.isdecimal()) or len(timeout) > 6 or int(timeout) == 0:
        raise _unusable("connect_timeout must be whole seconds, 1 or more.")
    return DatabaseAddress(
        user=_unquoted(parts["user"] or ""),
        password=password,
        database=_unquoted(parts["database"] or ""),
        hosts=_hosts(
            _unquoted(parts["servers"]),
            [value for key, value in query if key == "host"],
            [value for key, value in query if key == "port"],
        ),
        tls=tls,
        connect_timeout_seconds=int(timeout),
        application_name=name,
        options=options,
    )


def connect_arguments(
    address: str, *, application_name: str, answer_timeout_seconds: float | None = None, **settings: str
) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect`: the address, TLS, timeouts, and settings of the session.

    `answer_timeout_seconds` is how long the client waits for the answer to one statement. The address is connected to
    as a whole: the first of its servers that answers is used. Raises BadDatabaseAddress.
    """
    parsed = parse_address(address)
    if parsed.options:
        raise _unusable("Its parameter options is not known.")
    _require_user(parsed)
    look_away_from_home()
    look_away_from_variables()
    return {
        "dsn": _dsn(parsed),
        "ssl": ssl_argument(parsed.tls),
        "timeout": parsed.connect_timeout_seconds,
        "command_timeout": answer_timeout_seconds,
        "server_settings": {"application_name": parsed.application_name or application_name, **settings},
    }


def libpq_address(address: str, *, application_name: str, options: str = "", **parameters: str) -> str:
    """Return the address as libpq reads it, each part percent-encoded, with these parameters.

    `options` go before those of the address, which win. Raises BadDatabaseAddress.

    >>> libpq_address("postgresql+asyncpg://u:p%zz/#@/d?host=a:1,b&sslmode=disable", application_name="plant")
    ... # doctest: +ELLIPSIS
    'postgresql://u:p%25zz%2F%23@/d?host=a%2Cb&port=1%2C5432&application_name=plant&connect_timeout=10&client_encoding=UTF8...'
    """
    parsed = parse_address(address)
    _require_user(parsed)
    ssl_argument(parsed.tls)  # A file that can't be used has the same error as with asyncpg.
    look_away_from_variables()
    query = {
        "host": ",".join(host for host, _ in parsed.hosts),
        "port": ",".join(str(port or POSTGRES_PORT) for _, port in parsed.hosts),
        "application_name": parsed.application_name or application_name,
        "connect_timeout": str(parsed.connect_timeout_seconds),
        "client_encoding": "UTF8",  # asyncpg asks for it too; else a server's default would decode what COPY sends
        **libpq_parameters(parsed.tls),
        "options": f"{options} {parsed.options}".strip(),
        **parameters,
    }
    userinfo = _userinfo(parsed)
    return f"postgresql://{userinfo}/{_quoted(parsed.database)}?{_query(query)}"


def look_away_from_variables() -> None:
    """Take the variables out of this process's environment that only one of the drivers would follow."""
    for name in UNSHARED_VARIABLES & os.environ.keys():
        del os.environ[name]


def shown(address: str) -> str:
    """Return the address without its password, for messages.

    >>> shown("postgresql://u:secret@h:5432/d")
    'h:5432/d as u'
    """
    return str(parse_address(address))


def _hosts(in_url: str, in_query: list[str], ports_in_query: list[str]) -> tuple[tuple[str, int | None], ...]:
    """Return the servers: a parameter wins over its part of the address, as in libpq."""
    named = [part for text in in_query or [in_url] for part in text.split(",")]
    ports = [port for text in ports_in_query for port in text.split(",")]
    if ports and len(ports) not in (1, len(named)):
        raise _unusable(f"It names {len(named)} hosts and {len(ports)} ports.")
    servers = [_host(text) for text in named]
    if ports:
        numbers = [_port(port) for port in ports] * (len(servers) if len(ports) == 1 else 1)
        servers = [(host, number) for (host, _), number in zip(servers, numbers, strict=True)]
    if len(servers) > 1 and not all(host for host, _ in servers):
        raise _unusable("One of its hosts has no name.")
    return tuple(servers)


def _host(text: str) -> tuple[str, int | None]:
    if _NO_HOST_CHARACTER.search(text):
        raise _unusable("There is white space or a control character in a host's name.")
    if text.startswith("/"):
        return text, None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _unusable("The bracket around a host is not closed.")
        return host, _port(rest[1:]) if rest else None
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if ":" in host:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text)), None  # libpq's parameter `host` has no brackets.
        raise _unusable("An IPv6 address stands in brackets, [::1]:5432.")
    return host, _port(port)


def _port(text: str) -> int:
    try:
        return parse_port(text)
    except ValueError:
        # Not what was written there: after a password with a colon or a slash it may be part of it.
        why = "A port is missing behind a colon." if not text else "What follows a host's colon is no port."
        raise _unusable(f"{why} Characters such as : / ? # @ in a password are percent-encoded.") from None


def _dsn(address: DatabaseAddress) -> str:
    """Return the address as asyncpg reads it.

    >>> _dsn(parse_address("postgres://u:p#w@/d?host=a:5432&host=b:5433&sslmode=require"))
    'postgresql://u:p%23w@/d?host=a%3A5432%2Cb%3A5433'
    """
    named = [(host, port) for host, port in address.hosts if host or port]
    simple = len(named) == 1 and named[0][0] and not named[0][0].startswith("/")
    netloc = _server(*named[0]) if simple else ""
    query = {} if simple else _asyncpg_servers(named)
    database = f"/{_quoted(address.database)}" if address.database else ""
    return f"postgresql://{_userinfo(address)}{netloc}{database}{'?' if query else ''}{_query(query)}"


def _asyncpg_servers(named: list[tuple[str, int | None]]) -> Mapping[str, str]:
    if all(not host or host.startswith("/") for host, _ in named):
        ports = ",".join(str(port) for _, port in named if port)
        return {"host": ",".join(host for host, _ in named if host), "port": ports}
    return {"host": ",".join(_server(host, port) for host, port in named)}


def _server(host: str, port: int | None) -> str:
    return str(ServerAddress(host, port)) if port else _bracketed(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def _userinfo(address: DatabaseAddress) -> str:
    password = "" if address.password is None else f":{_quoted(address.password)}"
    return f"{_quoted(address.user)}{password}@" if address.user or password else ""


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{name}={_quoted(value)}" for name, value in parameters.items() if value)


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _unusable("Its percent-encoded characters are no UTF-8.") from None


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _require_user(address: DatabaseAddress) -> None:
    if address.user or os.environ.get("PGUSER"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError):
        raise _unusable("It names no user, and the system knows no name for this process's.") from None


def _unusable(why: str) -> BadDatabaseAddress:
    return BadDatabaseAddress(why=why, next_step="plant settings")
