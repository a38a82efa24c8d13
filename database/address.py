"""Postgres addresses: settings hold plain `postgresql://…`, SQLAlchemy wants a driver's name in it."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from database.errors import BadDatabaseAddress

_PLAIN = ("postgresql", "postgres")
_DRIVER = "postgresql+asyncpg"

# libpq's names for what asyncpg calls otherwise, or does on its own.
_RENAMED = {"sslmode": "ssl"}


def sqlalchemy_url(address: str) -> URL:
    """The same address for SQLAlchemy on asyncpg.

    >>> sqlalchemy_url("postgresql://u:p@h:5432/d?sslmode=require").render_as_string(hide_password=False)
    'postgresql+asyncpg://u:p@h:5432/d?ssl=require'

    Raises BadDatabaseAddress. The address itself is never shown: it may hold a password.
    """
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
    query = {_RENAMED.get(name, name): value for name, value in url.query.items()}
    return url.set(drivername=_DRIVER, query=query)


def shown(address: str) -> str:
    """The address without its password, for messages.

    >>> shown("postgresql://u:secret@h:5432/d")
    'h:5432/d as u'
    """
    url = sqlalchemy_url(address)
    return (
        f"{url.host or 'local socket'}:{url.port or 5432}/{url.database or ''} as {url.username or 'the system user'}"
    )
