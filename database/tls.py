"""TLS to the server, from the parameters that libpq's addresses have.

By hand, since asyncpg reads certificates only as it connects, fails then with errors that name no file, wants
`~/.postgresql/root.crt` for `verify-full` rather than the system's authorities, and has no `sslrootcert=system`.
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Mapping
from typing import Final

import asyncpg.connect_utils

from database.errors import BadDatabaseAddress

MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
PARAMETERS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")
_NOWHERE: Final = "/nonexistent"
"""A file that is not there: libpq goes on without it, and asks for none in the home folder."""


def ssl_argument(parameters: Mapping[str, str]) -> ssl.SSLContext | str | bool:
    """Return asyncpg's argument `ssl`. Without `sslmode`: TLS if the server has it, as libpq does.

    `require` encrypts and, with `sslrootcert`, checks the certificate; `verify-ca` checks it; `verify-full` checks the
    host's name too. `sslrootcert=system` means the system's authorities, as does its absence. As in libpq, see
    https://www.postgresql.org/docs/current/libpq-ssl.html.

    Raises BadDatabaseAddress for an unknown mode and for a file that can't be used.
    """
    mode = parameters.get("sslmode", "prefer")
    if mode not in MODES:
        raise BadDatabaseAddress(why=f"sslmode must be one of {', '.join(MODES)}.", next_step="plant settings")
    if mode == "disable":
        return False
    if mode in ("allow", "prefer"):
        return mode
    root = parameters.get("sslrootcert", "")
    verified = mode != "require" or bool(root)
    context = ssl.create_default_context() if root in ("", "system") else _trusting(root)
    context.check_hostname = mode == "verify-full"
    if not verified:
        context.verify_mode = ssl.CERT_NONE
    if certificate := parameters.get("sslcert"):
        _identify(context, certificate, parameters.get("sslkey"))
    return context


def libpq_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters that mean the same as :func:`ssl_argument`, whatever is in the home folder.

    libpq takes certificates from `~/.postgresql` where none is named, and ends with an error where it may not look
    there; and it knows the system's authorities only for `verify-full`, and not before version 16.
    """
    mode, root = parameters.get("sslmode", "prefer"), parameters.get("sslrootcert", "")
    if root in ("", "system"):
        verified = mode in ("verify-ca", "verify-full") or (mode == "require" and root == "system")
        root = ssl.get_default_verify_paths().cafile or "system" if verified else _NOWHERE
    certificate, key = parameters.get("sslcert", _NOWHERE), parameters.get("sslkey", _NOWHERE)
    if "sslcert" in parameters and "sslkey" not in parameters:
        key = certificate  # One file may hold both, as with Python.
    return {"sslmode": mode, "sslrootcert": root, "sslcert": certificate, "sslkey": key, "sslcrl": _NOWHERE}


def look_away_from_home() -> None:
    """Let asyncpg look for no certificates in `~/.postgresql`: where it may not enter, every connection would fail.

    By hand for asyncpg 0.31, which tests for the files with `Path.exists` and lets PermissionError through
    (MagicStack/asyncpg#910); it can go once a file that can't be looked at counts as absent there.
    """
    asyncpg.connect_utils._dot_postgresql_path = _nothing


def _nothing(_filename: str) -> None:
    return None


def _trusting(root: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=root)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("sslrootcert", root, error) from error


def _identify(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    try:
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable("sslcert or sslkey", certificate, error) from error


def _unusable(name: str, file: str, error: Exception) -> BadDatabaseAddress:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return BadDatabaseAddress(why=f"{name}: {file} can't be used: {reason}.", next_step=f"ls -l {shlex.quote(file)}")
