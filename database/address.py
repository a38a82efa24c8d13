"""Postgres addresses: settings hold `postgresql://…` with libpq's parameters; the driver wants other names for them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from database.errors import BadDatabaseAddress
from database.tls import PARAMETERS, ssl_argument

_PLAIN = ("postgresql", "postgres")
_DRIVER = "postgresql+asyncpg"
_PLACE = ("host", "port")
"""Parameters for a folder of a Unix socket, or for several servers: `?host=a:5432&host=b:5432`."""
CONNECT_TIMEOUT_SECONDS: Final = 10


def sqlalchemy_url(address: str) -> URL:
    """The same address for SQLAlchemy on asyncpg: of its parameters, those that say where the server is.

    The others are in :func:`connection_arguments`.

    >>> sqlalchemy_url("postgresql://u:p@h:5432/d?sslmode=require").render_as_string(hide_password=False)
    'postgresql+asyncpg://u:p@h:5432/d'

    Raises BadDatabaseAddress. The address itself is never shown: it may hold a password.
    """
    url = _parsed(address)
    return url.set(drivername=_DRIVER, query={name: url.query[name] for name in _PLACE if name in url.query})


def connection_arguments(
    address: str, *, application_name: str, answer_seconds: float | None = None, **settings: str
) -> dict[str, Any]:
    """What asyncpg's `connect` is to be told beside the address: TLS, timeouts, and settings of the session.

    `answer_seconds` is how long the client waits for the answer to one statement, should the server have gone silent.

    Raises BadDatabaseAddress, also for a parameter that Plant does not know.
    """
    query = _parsed(address).query
    given = {name: value if isinstance(value, str) else value[-1] for name, value in query.items()}
    for place in _PLACE:
        given.pop(place, None)
    tls: dict[str, str] = {name: given.pop(name) for name in PARAMETERS if name in given}
    timeout = given.pop("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
    name = given.pop("application_name", application_name)
    if given:
        raise BadDatabaseAddress(why=f"Its parameter {min(given)} is not known.", next_step="plant settings")
    if not timeout.isdecimal():
        raise BadDatabaseAddress(why="connect_timeout must be whole seconds.", next_step="plant settings")
    return {
        "ssl": ssl_argument(tls),
        "timeout": int(timeout),
        "command_timeout": answer_seconds,
        "server_settings": {"application_name": name, **settings},
    }


def shown(address: str) -> str:
    """The address without its password, for messages.

    >>> shown("postgresql://u:secret@h:5432/d")
    'h:5432/d as u'
    """
    url = _parsed(address)
    where = f"{url.host}:{url.port or 5432}" if url.host else _several(url.query.get("host", "local socket"))
    return f"{where}/{url.database or ''} as {url.username or 'the system user'}"


def _several(hosts: str | tuple[str, ...]) -> str:
    return hosts if isinstance(hosts, str) else ",".join(hosts)


def _parsed(address: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # Not `from error`: what SQLAlchemy says may show the address.
        raise BadDatabaseAddress(why="It can't be parsed as a URL.", next_step="plant settings") from None
    if url.drivername not in (*_PLAIN, _DRIVER):
        raise BadDatabaseAddress(
            why=f"Its scheme is {url.drivername}, not postgresql.",
            next_step="plant settings",
        )
    return url
