"""Postgres addresses: settings hold `postgresql://…` with libpq's parameters, and asyncpg connects to them.

asyncpg reads the user, the password, the database and the list of servers out of the address. These stay by hand:

- `connect_timeout`, and the refusal of parameters that Plant does not know: asyncpg sends what it does not know to the
  server as a setting of the session, and knows no `connect_timeout`.
- `application_name`: with asyncpg, that of the code would win over that of the address.
- TLS (see tls.py).
- quoting: a password may hold characters that end a part of a URL, as libpq allows.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from database.errors import BadDatabaseAddress
from database.tls import PARAMETERS, ssl_argument

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_SERVERS = ("host", "port")
"""Parameters for a folder of a Unix socket, or for several servers: `?host=a:5432&host=b:5432`."""
CONNECT_TIMEOUT_SECONDS: Final = 10


def connect_arguments(
    address: str, *, application_name: str, answer_timeout_seconds: float | None = None, **settings: str
) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect`: the address, TLS, timeouts, and settings of the session.

    `answer_timeout_seconds` is how long the client waits for the answer to one statement. The address is connected to
    as a whole: the first of its servers that answers is used.

    Raises BadDatabaseAddress, also for a parameter that Plant does not know. The address itself is never shown: it may
    hold a password.
    """
    url = _parsed(address)
    parameters = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    for name in _SERVERS:
        parameters.pop(name, None)
    tls: dict[str, str] = {name: parameters.pop(name) for name in PARAMETERS if name in parameters}
    timeout = parameters.pop("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
    name = parameters.pop("application_name", application_name)
    if parameters:
        raise BadDatabaseAddress(why=f"Its parameter {min(parameters)} is not known.", next_step="plant settings")
    if not timeout.isdecimal():
        raise BadDatabaseAddress(why="connect_timeout must be whole seconds.", next_step="plant settings")
    return {
        "dsn": _dsn(url),
        "ssl": ssl_argument(tls),
        "timeout": int(timeout),
        "command_timeout": answer_timeout_seconds,
        "server_settings": {"application_name": name, **settings},
    }


def shown(address: str) -> str:
    """Return the address without its password, for messages.

    >>> shown("postgresql://u:secret@h:5432/d")
    'h:5432/d as u'
    """
    url = _parsed(address)
    servers = f"{url.host}:{url.port or 5432}" if url.host else _joined(url.query.get("host", "local socket"))
    return f"{servers}/{url.database or ''} as {url.username or 'the system user'}"


def _dsn(url: URL) -> str:
    """Return the address as asyncpg reads it.

    >>> _dsn(make_url("postgres://u:p#w@/d?host=a:5432&host=b:5433&sslmode=require"))
    'postgresql://u:p%23w@/d?host=a%3A5432%2Cb%3A5433'
    """
    servers = {name: _joined(url.query[name]) for name in _SERVERS if name in url.query}
    if servers or not url.host:
        # A parameter wins over its part of the address, as in libpq; asyncpg would go by the part.
        host = f"[{url.host}]" if url.host and ":" in url.host else url.host
        servers = {"host": host or "", "port": str(url.port or ""), **servers}
        url = URL.create(url.drivername, url.username, url.password, database=url.database)
    query = {name: value for name, value in servers.items() if value}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def _joined(servers: str | tuple[str, ...]) -> str:
    return servers if isinstance(servers, str) else ",".join(servers)


def _parsed(address: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # Not `from error`: SQLAlchemy's message may show the address.
        raise BadDatabaseAddress(why="It can't be parsed as a URL.", next_step="plant settings") from None
    if url.drivername not in _SCHEMES:
        raise BadDatabaseAddress(
            why=f"Its scheme is {url.drivername}, not postgresql.",
            next_step="plant settings",
        )
    return url
