"""Postgres addresses: what asyncpg and libpq connect to, and what is shown of them."""

from __future__ import annotations

import doctest
import os
import ssl
from collections.abc import Callable
from urllib.parse import quote

import pytest

from database import address as module
from database.address import connect_arguments, libpq_address, parse_address, shown
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
        ("postgresql://u@/d?host=a,b&port=1,2", "postgresql://u@/d?host=a%3A1%2Cb%3A2"),
        ("postgresql://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://u:p@localhost/d?host=/run/postgresql", "postgresql://u:p@/d?host=%2Frun%2Fpostgresql"),
        ("postgresql://u@h:5432/d?port=5433", "postgresql://u@h:5433/d"),
        ("postgresql://u@[::1]/d?port=5433", "postgresql://u@[::1]:5433/d"),
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


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql+asyncpg://u:Made-Up-1@h:5432/d", "u:Made-Up-1@/d?host=h&port=5432"),
        ("postgresql://u:p%zz1@h/d", "u:p%25zz1@/d?host=h&port=5432"),
        ("postgresql://u:ab/cd+e=#f?g@h:1/d", "u:ab%2Fcd%2Be%3D%23f%3Fg@/d?host=h&port=1"),
        ("postgresql://u@/plant?host=127.0.0.1:1&host=h:2", "u@/plant?host=127.0.0.1%2Ch&port=1%2C2"),
        ("postgresql://u@a:1,b,[::1]:3/d", "u@/d?host=a%2Cb%2C%3A%3A1&port=1%2C5432%2C3"),
        ("postgresql://u@/d?host=/run/postgresql&port=5433", "u@/d?host=%2Frun%2Fpostgresql&port=5433"),
        ("postgresql://u@%2Frun%2Fpostgresql/my%20db", "u@/my%20db?host=%2Frun%2Fpostgresql&port=5432"),
        ("postgresql://na%40me@h/d\n", "na%40me@/d?host=h&port=5432"),
    ],
)
def test_libpq_gets_the_parts_percent_encoded(address: str, expected: str) -> None:
    """What asyncpg takes libpq takes too: dialects, odd passwords, several servers; nothing is looked for at home."""
    made = libpq_address(address, application_name="plant")

    assert made.startswith(
        f"postgresql://{expected}&application_name=plant&connect_timeout=10&client_encoding=UTF8&sslmode=prefer&"
    )
    for name in ("sslcert", "sslkey", "sslrootcert", "sslcrl"):
        assert f"{name}=%2Fnonexistent" in made
    # libpq and asyncpg mean the same servers and the same user.
    again, first = parse_address(made.partition("&application_name")[0]), parse_address(address)
    assert (again.user, again.password, again.database) == (first.user, first.password, first.database)
    assert str(again) == str(first)


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_libpq_trusts_the_system_s_authorities_where_none_are_named(mode: str) -> None:
    """As asyncpg does by Python; libpq alone would want a file in the home folder."""
    root = ssl.get_default_verify_paths().cafile or "system"

    assert f"sslmode={mode}&sslrootcert={quote(root, safe='')}&" in libpq_address(
        f"postgresql://u@h/d?sslmode={mode}", application_name="plant"
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql://u:top@secret@h/d", "more than one @"),
        ("postgresql://u:topsecret/h/d", "no port"),
        ("postgresql://u@h:99999/d", "no port"),
        ("postgresql://u@h:/d", "A port is missing"),
        ("postgresql://u@::x:1/d", "in brackets"),
        ("postgresql://u@[::1/d", "not closed"),
        ("postgresql://u@a,,b/d", "no name"),
        ("postgresql://u@/d?host=a,b,c&port=1,2", "3 hosts and 2 ports"),
        ("postgresql://u:topsecret%00@h/d", "NUL"),
        ("mysql://u:topsecret@h/d", "scheme is mysql"),
        ("h/d topsecret", "parsed as a URL"),
        ("'postgresql://u:topsecret@h/d'", "parsed as a URL"),
        ("postgresql://u@h/d?connect_timeout=1e9", "whole seconds"),
        ("postgresql://u@h/d?connect_timeout=0", "whole seconds, 1 or more"),
        ("postgresql://u:top@secret/x@h/d", "more than one @"),
        ("postgresql://h:5432/d?application_name=topsecret@x", "in two ways"),
        ("postgresql://h:/topsecret@x", "in two ways"),
        ("postgresql://u:topsecret%ff@h/d", "no UTF-8"),
        ("postgresql://u:topsecret@h\n/d", "white space or a control character"),
        ("postgresql://u:topsecret@/d?host=a,%20b", "white space or a control character"),
    ],
)
def test_what_can_not_be_used_says_why_and_shows_no_password(address: str, why: str) -> None:
    """The same for both drivers, before anything connects."""
    for read in (connect_arguments, libpq_address):
        with pytest.raises(BadDatabaseAddress, match=why) as error:
            read(address, application_name="plant")
        assert "secret" not in f"{error.value}{error.value!r}{error.value.__cause__}"


@pytest.mark.parametrize("read", [connect_arguments, libpq_address])
def test_no_driver_follows_a_variable_that_the_other_does_not(
    read: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGHOSTADDR names another server for libpq alone, PGCLIENTENCODING another encoding of all that COPY sends."""
    for name in ("PGHOSTADDR", "PGSERVICE", "PGCLIENTENCODING", "PGREQUIREAUTH", "PGTZ", "PGOPTIONS"):
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("PGHOST", "shared")

    read("postgresql://u@/d", application_name="plant")

    assert {name for name in os.environ if name.startswith("PG") and os.environ[name] == "other"} == set()
    assert os.environ["PGHOST"] == "shared"


def test_the_parts_are_shown_without_the_password() -> None:
    """`repr`, `str` and whatever prints fields."""
    address = parse_address("postgresql://u:topsecret@h/d")

    assert "topsecret" not in f"{address}{address!r}"
    assert address.password == "topsecret"


def test_an_address_without_a_user_needs_one_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the user may have a number only: the driver would fail with an error of its own."""

    def no_name() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", no_name)
    monkeypatch.delenv("PGUSER", raising=False)
    with pytest.raises(BadDatabaseAddress, match="names no user"):
        connect_arguments("postgresql://h/d", application_name="plant")
