"""Postgres addresses: what asyncpg connects to, and what is shown of them."""

from __future__ import annotations

import doctest

import pytest

from database import address as module
from database.address import connect_arguments, shown
from database.errors import BadDatabaseAddress


def dsn(address: str) -> str:
    dsn = connect_arguments(address, application_name="plant test")["dsn"]
    assert isinstance(dsn, str)
    return dsn


def test_its_examples_are_right() -> None:
    """What the docstrings show is what the functions return."""
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql+asyncpg://u@h/d?sslmode=disable&connect_timeout=3", "postgresql://u@h/d"),
        ("postgresql://u:a%40b@h/d", "postgresql://u:a%40b@h/d"),
        ("postgresql://u:a/b?c#d@h/d", "postgresql://u:a%2Fb%3Fc%23d@h/d"),
        ("postgresql://u@/d?host=/run/postgresql&port=5433", "postgresql://u@/d?host=%2Frun%2Fpostgresql&port=5433"),
        ("postgresql://u@/d?host=a:1&host=b:2", "postgresql://u@/d?host=a%3A1%2Cb%3A2"),
        ("postgresql://u@/d?host=a,b&port=1,2", "postgresql://u@/d?host=a%2Cb&port=1%2C2"),
        ("postgresql://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://u:p@localhost/d?host=/run/postgresql", "postgresql://u:p@/d?host=%2Frun%2Fpostgresql"),
        ("postgresql://u@h:5432/d?port=5433", "postgresql://u@/d?host=h&port=5433"),
        ("postgresql://u@[::1]/d?port=5433", "postgresql://u@/d?host=%5B%3A%3A1%5D&port=5433"),
        ("postgresql://u@:5433/d", "postgresql://u@/d?port=5433"),
    ],
)
def test_asyncpg_gets_the_servers_and_the_user(address: str, expected: str) -> None:
    """Parameters for asyncpg's own reading stay, joined as it splits them; what ends a part of a URL is quoted."""
    assert dsn(address) == expected


def test_what_asyncpg_would_send_to_the_server_is_an_argument() -> None:
    """Timeouts, the name and settings of the session go apart; a name in the address wins."""
    address = "postgresql://u@h/d?connect_timeout=3&application_name=mine&sslmode=disable"
    arguments = connect_arguments(address, application_name="plant", answer_timeout_seconds=7.0, lock_timeout="1s")
    assert arguments == {
        "dsn": "postgresql://u@h/d",
        "ssl": False,
        "timeout": 3,
        "command_timeout": 7.0,
        "server_settings": {"application_name": "mine", "lock_timeout": "1s"},
    }
    assert connect_arguments("postgresql://u@h/d", application_name="plant")["timeout"] == 10


@pytest.mark.parametrize("query", ["options=-c%20x", "target_session_attrs=any", "service=x", "password=x"])
def test_an_unknown_parameter_is_refused(query: str) -> None:
    """asyncpg knows more parameters than Plant, and sends the rest to the server: none of them passes."""
    with pytest.raises(BadDatabaseAddress, match=f"parameter {query.partition('=')[0]} is not known"):
        connect_arguments(f"postgresql://u@h/d?{query}", application_name="plant")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://u:secret@h/d", "h:5432/d as u"),
        ("postgresql:///d?host=a:1&host=b:2", "a:1,b:2/d as the system user"),
        ("postgresql://u:secret@/d", "local socket/d as u"),
    ],
)
def test_the_password_is_not_shown(address: str, expected: str) -> None:
    """Messages name server, database and user."""
    assert shown(address) == expected
